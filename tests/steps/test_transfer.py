"""Images of other networks: made on their weights in this recipe's ball, carried in the bundle, judged here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hardbit import pipeline
from hardbit.recipe import load_recipe
from hardbit.steps.transfer import Transferred
from hardbit_deploy.attacks import ThreatModel, random_start
from hardbit_deploy.attacks.pgd import start_stream
from hardbit_deploy.attacks.transfer import last_iterates
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.results import load_result
from linear_examples import linear_target
from recipe_examples import RECIPE, write_bars

FEW_BITS = RECIPE.replace("weights = 4\nactivations = 4", "weights = 4\nactivations = 3").replace(
    '"bars"', '"bars-w4a3"'
)
WITH_TRANSFER = FEW_BITS.replace("restarts = 1\n", 'restarts = 2\nlosses = ["margin"]\ntransfer = ["../source"]\n')
OPTIONS = pipeline.RunOptions(latency="off")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network of 3-bit activations, checked against the images of one of 4 bits."""
    home = tmp_path_factory.mktemp("transfer")
    for name in ("source", "target"):
        (home / name).mkdir()
    source = load_recipe(write_bars(home / "source"))
    trained = pipeline.run(source, home / "source" / "run", until="train")
    source.weights_path.write_bytes((trained.folder("train") / "weights.safetensors").read_bytes())
    recipe = load_recipe(write_bars(home / "target", WITH_TRANSFER))
    return recipe, source, pipeline.run(recipe, home / "target" / "run", options=OPTIONS)


def test_every_loss_and_restart_is_a_candidate_in_the_ball_of_the_recipe(run):
    result = run[2]
    transferred = Transferred.at(result.folder("transfer"))
    (entry,) = transferred.read_sources()
    assert (entry["name"], entry["candidates"]) == ("bars", 4)
    assert entry["made"]["losses"] == ["cross_entropy", "margin"]
    made, images = np.load(transferred.images("bars")), np.load(result.folder("export") / "images.npy")
    assert made.shape == (64, 4, 1, 28, 28)
    assert made.dtype == np.uint8
    delta = np.abs(made.astype(int) - images[:, None])
    assert delta.max() == 8
    assert all((made[:, one] != made[:, other]).any() for one in range(4) for other in range(one))


def test_the_bundle_carries_them_and_the_smooth_graph_and_its_engine_judges(run):
    recipe, _, result = run
    bundle = load_bundle(result.folder("bundle"))
    assert bundle.manifest.smooth_attack_file == "attack_smooth.onnx"
    assert bundle.manifest.bits.activations == 3
    assert bundle.manifest.suite.square_queries == recipe.suite.square_queries == 500
    np.testing.assert_array_equal(
        bundle.transfers["bars"], np.load(Transferred.at(result.folder("transfer")).images("bars"))
    )
    document = load_result(result.folder("check"))
    names = [attack["name"] for attack in document["attacks"]]
    assert names == [
        "clean",
        "fgsm",
        "pgd-3 margin",
        "pgd-3 margin smooth",
        "square-500",
        "transfer bars",
        "apgd-50 cross_entropy",
        "worst_case",
    ]
    statuses = {alarm["name"]: alarm["status"] for alarm in document["alarms"]}
    assert statuses["feasible"] == statuses["surrogates"] == statuses["parity"] == "pass"
    assert document["suite"]["transfer"] == ["bars"]


def test_it_is_made_again_when_the_other_network_changes_and_not_otherwise(run, tmp_path):
    recipe, source, result = run
    again = pipeline.run(recipe, result.run_dir, until="transfer", options=OPTIONS)
    assert all(step.skipped for step in again.steps)
    weights = source.weights_path.read_bytes()
    other = load_recipe(write_bars(tmp_path, RECIPE.replace("epochs = 1", "epochs = 2", 1)))
    trained = pipeline.run(other, tmp_path / "run", until="train")
    try:
        source.weights_path.write_bytes((trained.folder("train") / "weights.safetensors").read_bytes())
        changed = pipeline.run(recipe, result.run_dir, until="transfer", options=OPTIONS)
    finally:
        source.weights_path.write_bytes(weights)
    assert {step.name: step.skipped for step in changed.steps}["transfer"] is False


def test_a_source_that_cannot_be_used_is_refused_in_one_line(run, tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    write_bars(tmp_path / "source")
    recipe = load_recipe(write_bars(tmp_path / "target", WITH_TRANSFER))
    with pytest.raises(HardbitError, match=r"suite\.transfer: the network bars has no weights in .*; train it first"):
        pipeline.run(recipe, tmp_path / "run", until="transfer")


def test_without_sources_nothing_is_made(tmp_path, run):
    source = run[1]
    result = pipeline.run(source, tmp_path / "run", until="transfer")
    assert result.steps[-1].note == "no other networks are named"
    assert json.loads((result.folder("transfer") / "sources.json").read_text()) == []


class TestClimbing:
    """A linear source: its worst point is the corner, wherever its own label fell on the way."""

    def test_it_does_not_stop_where_the_source_falls(self):
        target = linear_target(classes=2, input_shape=(1, 6, 6), seed=1)
        images = np.random.default_rng(0).integers(0, 256, (20, 1, 6, 6)).astype(np.uint8)
        labels = target.engine.infer(images).argmax(axis=1)
        model = ThreatModel("linf", 40.0)
        found = last_iterates(target.gradient, images, labels, model, 10, loss="margin", restart=0, seed=0)
        direction = np.sign(target.engine.weights[1] - target.engine.weights[0]).reshape(1, 6, 6)
        sign = np.where(labels == 0, 1, -1)[:, None, None, None]
        corner = np.clip(images.astype(int) + 40 * (sign * direction).astype(int), 0, 255)
        np.testing.assert_array_equal(found, corner)
        assert (target.engine.infer(found).argmax(axis=1) != labels).all()

    def test_starts_are_those_of_the_images_places(self):
        target = linear_target(classes=2, input_shape=(1, 6, 6), seed=1)
        images = np.full((3, 1, 6, 6), 128, np.uint8)
        model, places = ThreatModel("l2", 40.0), np.arange(3)
        found = last_iterates(target.gradient, images, np.zeros(3, int), model, 0, loss="margin", restart=2, seed=5)
        start = random_start(images, model, seed=5, stream=start_stream(2, "margin"), indices=places)
        np.testing.assert_array_equal(found, start)
