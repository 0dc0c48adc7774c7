"""Transfer from other bundles: their own attack graphs make the images, this engine judges them."""

from __future__ import annotations

import numpy as np
import pytest

from bundle_examples import build_bundle
from canonical_examples import plain_cnn, residual_net
from hardbit_deploy import evaluate as harness
from hardbit_deploy.attacks.transfer import last_iterates
from hardbit_deploy.check import CheckOptions, check
from hardbit_deploy.cli import main
from hardbit_deploy.engines import open_target
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.suite import Suite
from hardbit_deploy.transfer_bundles import open_sources, with_transfers

SUITE = Suite("custom", steps=4, restarts=2, losses=("cross_entropy", "margin"))
COUNT = 300


def silent(*_: object) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("judged") / "b", count=COUNT, name="judged")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Another network, and images that it was not built with."""
    return build_bundle(tmp_path_factory.mktemp("source") / "b", plain_cnn(seed=5), count=8, seed=3, name="other")


def test_candidates_are_the_last_iterates_on_the_source_at_the_images_own_places(bundle, source):
    with with_transfers(bundle, [source], SUITE, None, silent) as attacked, open_target(source) as target:
        made = np.array(attacked.transfers["other"])
        model, labels = bundle.manifest.threat_model, np.array(bundle.labels)
        assert made.shape == (COUNT, 4, *bundle.manifest.input_shape)
        for candidate, (loss, restart) in enumerate(
            [("cross_entropy", 0), ("cross_entropy", 1), ("margin", 0), ("margin", 1)]
        ):
            expected = last_iterates(
                target.gradient, np.array(bundle.images), labels, model, 4, loss=loss, restart=restart, seed=0
            )
            np.testing.assert_array_equal(made[:, candidate], expected)
        assert np.abs(made.astype(int) - np.array(bundle.images)[:, None]).max() <= model.eps_255


def test_the_engine_judges_them_in_a_row_of_their_own(bundle, source):
    with with_transfers(bundle, [source], SUITE, 40, silent) as attacked:
        evaluation = harness.evaluate(attacked, SUITE, workers=1, limit=40)
        made = np.array(attacked.transfers["other"])
    with open_target(bundle) as target:
        labels = np.array(bundle.labels[:40])
        right = [target.engine.infer(np.array(made[:40, k])).argmax(axis=1) == labels for k in range(made.shape[1])]
    row = next(row for row in evaluation.attacks if row["name"] == "transfer other")
    assert row["survivors"] == np.all(right, axis=0).sum() < 40
    assert row["settings"]["candidates"] == 4


def test_check_names_them_in_the_suite_and_alarms_know_of_them(bundle, source):
    options = CheckOptions(latency=None, energy=None, workers=1, images=40, transfer=(source.path,))
    document = check(bundle.path, options=options)
    assert document["suite"]["transfer"] == ["other"]
    assert "transfer other" in [row["name"] for row in document["attacks"]]
    statuses = {alarm["name"]: alarm["status"] for alarm in document["alarms"]}
    assert statuses["white_box_beats_transfer"] in ("pass", "alarm")


def test_what_was_measured_with_another_source_is_not_resumed_from(bundle, source, tmp_path):
    for sources, resumed in (([source], 0), ([source], 40), ([], 0)):
        with with_transfers(bundle, sources, SUITE, 40, silent) as attacked:
            evaluation = harness.evaluate(attacked, SUITE, workers=1, limit=40, work_dir=tmp_path)
        assert evaluation.resumed_images == resumed


class TestRefusals:
    def test_of_other_images(self, bundle, tmp_path):
        foreign = build_bundle(tmp_path / "b", residual_net(), count=4, name="coloured")
        with pytest.raises(HardbitError, match="coloured takes images") as error:
            open_sources(bundle, [foreign.path])
        assert str(foreign.path) in error.value.where

    def test_of_a_name_that_is_taken(self, bundle, source):
        with pytest.raises(HardbitError, match="images of other are there already"):
            open_sources(bundle, [source.path, source.path])

    def test_on_the_command_line_in_one_sentence(self, bundle, tmp_path, capsys):
        assert main(["check", str(bundle.path), "--transfer", str(tmp_path / "nowhere"), "--no-latency"]) == 64
        said = capsys.readouterr().err.splitlines()[-1]
        assert "nowhere: there is no such folder; point at the folder of a bundle" in said


def test_without_sources_the_bundle_is_what_it_was(bundle):
    with with_transfers(bundle, [], SUITE, None, silent) as attacked:
        assert attacked is bundle
