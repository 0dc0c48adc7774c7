"""The harness on tiny bundles that really run: planted faults and their verdicts, results, going on."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

import bundle_examples
import planted_faults
from bundle_examples import smooth_images
from canonical_examples import plain_cnn
from hardbit_deploy import check as harness
from hardbit_deploy import chunk_store, results
from hardbit_deploy.bundle import Bundle
from hardbit_deploy.check import CheckOptions, check
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gate import Gate, parse_gate
from hardbit_deploy.junit import junit_xml
from hardbit_deploy.latency import LatencySettings
from hardbit_deploy.summary import result_summary

UNTIMED = CheckOptions(latency=None, workers=1)
WHITE_BOX = CheckOptions(latency=None, workers=1, square_queries=0)  # Square has not converged on 200 images of noise
SHORTEST = LatencySettings(processes=2, queries=20, warmup_min_s=0.01, warmup_max_s=0.05)
CONVERGED = {"name": "standard", "steps": 20, "restarts": 3, "losses": ["cross_entropy", "margin"], "seed": 0}
BOTH = {**CONVERGED, "name": "custom", "steps": 3, "surrogates": ["straight-through", "smooth"]}
SLICED = {"name": "custom", "steps": 3, "restarts": 1, "losses": ["cross_entropy"], "seed": 0, "chunk": 16}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Clean accuracy 1 by construction, robust accuracy far below, and attacks strong enough to have converged."""
    path, model = tmp_path_factory.mktemp("bundles") / "plain", {"norm": "linf", "eps_255": 2.0}
    return bundle_examples.build_bundle(path, count=200, seed=1, suite=CONVERGED, threat_model=model)


def validate(document: Any) -> None:
    jsonschema.Draft202012Validator(results.load_schema("result-v1")).validate(document)


def promise(**sections: Any) -> Gate:
    return parse_gate(sections)


MASKED = {"name": "white_box_beats_black_box", "reason": "few bits hide their gradients"}


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Activations of 2 bits by its manifest, attacked without Square: an alarm by itself."""
    path = tmp_path_factory.mktemp("masked") / "b"
    network = bundle_examples.manifest_fields(plain_cnn(), smooth_images(2, (1, 12, 12)))["network"] | {
        "bits": {"weights": 8, "activations": 2}
    }
    return bundle_examples.build_bundle(path, count=20, with_smooth=True, network=network, suite=BOTH, gate={})


# --- the five verdicts, by planted faults -----------------------------------------------------------------------------


def test_a_kept_promise_is_pass(bundle: Bundle, tmp_path: Path) -> None:
    document = check(bundle.path, promise(clean={"reference": 0.95}), tmp_path, WHITE_BOX)
    assert (document["verdict"]["name"], document["verdict"]["exit_code"]) == ("PASS", 0)
    validate(document)
    statuses = {alarm["name"]: alarm["status"] for alarm in document["alarms"]}
    assert {name for name, status in statuses.items() if status != "pass"} == {
        "surrogates",
        "white_box_beats_black_box",
        "white_box_beats_transfer",
    }
    assert "alarm" not in statuses.values()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (
            {"eps_255": 8.0},
            r"attack: the bundle is attacked in linf 2/255, the gate speaks of linf 8/255",
        ),
        ({"norm": "l2"}, r"the gate speaks of l2 2/255"),
        (
            {"min_steps": 50},
            r"min_steps: the suite 'standard' has 20 steps, the gate asks for 50; give --steps 50",
        ),
        ({"min_restarts": 4}, r"the suite 'standard' has 3 restarts, the gate asks for 4"),
        (
            {"min_square_queries": 1500},
            r"min_square_queries: the suite 'standard' has 500 square queries, .*; give --square-queries 1500",
        ),
        (
            {"surrogates": ["straight-through", "smooth"]},
            r"surrogates: .* without the smooth surrogate, which the gate",
        ),
    ],
)
def test_a_promise_against_a_stronger_attack_is_not_kept_by_a_weaker_one(
    bundle: Bundle, attack: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "evaluate", lambda *_, **__: pytest.fail("attacked before the refusal"))
    with pytest.raises(HardbitError, match=message):
        check(bundle.path, promise(clean={"reference": 0.95}, attack=attack), None, UNTIMED)


def test_a_promise_against_this_very_attack_is_judged(bundle: Bundle) -> None:
    attack = {"norm": "linf", "eps_255": 2.0, "min_steps": 20, "min_restarts": 3}
    document = check(bundle.path, promise(clean={"reference": 0.95}, attack=attack), None, WHITE_BOX)
    assert document["verdict"]["name"] == "PASS"


def test_a_network_that_is_not_robust_fails_its_robustness_gate(bundle: Bundle) -> None:
    document = check(bundle.path, promise(clean={"reference": 0.95}, robust={"reference": 0.66}), None, UNTIMED)
    assert (document["verdict"]["name"], document["verdict"]["exit_code"]) == ("FAIL", 1)
    assert document["verdict"]["reasons"][0].startswith("robust accuracy ")
    validate(document)


def test_a_convolution_that_falls_back_to_float_is_the_wrong_engine(tmp_path: Path) -> None:
    planted = bundle_examples.build_bundle(tmp_path / "float", engine=planted_faults.engine_with_a_float_convolution())
    document = check(planted.path, promise(clean={"reference": 0.1}), tmp_path / "out")
    assert (document["verdict"]["name"], document["verdict"]["exit_code"]) == ("WRONG_ENGINE", 2)
    assert any(reason.startswith("conv2 ") for reason in document["verdict"]["reasons"])
    validate(document)
    assert document["attacks"] == []
    assert document["latency"] is None  # timings of another program would only mislead
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]


def test_two_hundred_images_cannot_decide_a_margin_of_one_point(bundle: Bundle) -> None:
    """200 of 200 are right; that may still be a system at 98.5 %, which a promise of 100 % less 1 point excludes."""
    document = check(bundle.path, promise(clean={"reference": 1.0, "margin": 0.01}), None, WHITE_BOX)
    assert (document["verdict"]["name"], document["verdict"]["exit_code"]) == ("INCONCLUSIVE", 75)
    (rule,) = document["gate"]
    assert (rule["images"], rule["images_needed"]) == (200, 299)
    assert "it takes 299 images" in document["verdict"]["reasons"][0]


def test_another_machine_than_the_gate_speaks_of_is_not_measured(bundle: Bundle) -> None:
    document = check(bundle.path, promise(environment={"machine": "s390x"}), None)
    assert (document["verdict"]["name"], document["verdict"]["exit_code"]) == ("ENV_MISMATCH", 3)
    assert document["attacks"] == []
    validate(document)


def test_an_engine_unlike_its_twin_raises_the_parity_alarm_and_is_inconclusive(tmp_path: Path) -> None:
    """An engine that ignores its image looks perfectly robust where the label fits: the alarm is what tells."""
    engine = planted_faults.engine_that_ignores_its_image()
    planted = bundle_examples.build_bundle(tmp_path / "deaf", engine=engine)
    document = check(planted.path, promise(), None, UNTIMED)
    assert (document["verdict"]["name"], document["verdict"]["exit_code"]) == ("INCONCLUSIVE", 75)
    assert any(reason.startswith("alarm parity") for reason in document["verdict"]["reasons"])


def test_the_manifest_is_valid_by_its_published_schema(bundle: Bundle) -> None:
    schema = jsonschema.Draft202012Validator(results.load_schema("manifest-v1"))
    schema.validate(json.loads((bundle.path / "manifest.json").read_text()))


# --- what is measured and written -------------------------------------------------------------------------------------


def test_a_run_is_written_with_its_arrays_and_leaves_no_work_behind(bundle: Bundle, tmp_path: Path) -> None:
    stages: list[str] = []
    options = CheckOptions(images=40, latency=SHORTEST)
    document = check(bundle.path, None, tmp_path, options, lambda stage, done, total: stages.append(stage))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "examples.npz",
        "latency.npz",
        "records.npz",
        "result.json",
    ]
    assert results.load_result(tmp_path) == document
    validate(document)
    records = results.load_records(tmp_path, document)
    counts = {attack["name"]: attack["survivors"] for attack in document["attacks"]}
    assert records["index"].tolist() == list(range(40))
    assert counts["worst_case"] == np.count_nonzero(records["worst_case"])
    assert counts["clean"] == np.count_nonzero(records["clean"]) == 40
    assert results.load_records(tmp_path, document, "latency")["query_ms"].shape == (2, 20)
    assert document["latency"]["protocol"] == "latency-v1-short"
    assert stages[:2] == ["verify the bundle", "prove executed precision"]
    assert stages[-1] == "latency"


def test_two_checks_of_one_bundle_count_the_same(bundle: Bundle) -> None:
    first, second = (check(bundle.path, None, None, CheckOptions(images=40, latency=None)) for _ in range(2))
    assert [a["survivors"] for a in first["attacks"]] == [a["survivors"] for a in second["attacks"]]


def test_the_gate_of_the_bundle_is_judged_when_no_other_is_given(tmp_path: Path) -> None:
    strict = bundle_examples.build_bundle(tmp_path / "strict", gate={"robust": {"reference": 0.9}})
    document = check(strict.path, None, None, UNTIMED)
    assert document["verdict"]["name"] == "FAIL"
    assert document["gate_source"] == "bundle"


def test_the_gate_of_a_bundle_is_refused_by_its_path(tmp_path: Path) -> None:
    odd = bundle_examples.build_bundle(tmp_path / "odd", gate={"robust": {"referense": 0.9}})
    with pytest.raises(HardbitError, match=r"manifest\.json: gate\.robust\.referense: unknown key"):
        check(odd.path, None, None, UNTIMED)


@pytest.mark.parametrize(
    ("changes", "name", "steps"),
    [
        ({}, "standard", 20),
        ({"seed": 7}, "standard", 20),  # another draw of the same hardness
        ({"steps": 3}, "custom", 3),
        ({"suite": "quick"}, "quick", 10),
        ({"suite": "quick", "restarts": 2}, "custom", 10),
        ({"square_queries": 0}, "custom", 20),
    ],
)
def test_a_suite_that_is_changed_loses_its_name(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], name: str, steps: int
) -> None:
    seen = []

    def stop(bundle: Bundle, suite: Any, **_: Any) -> None:
        seen.append(suite)
        raise HardbitError("enough")

    monkeypatch.setattr(harness, "evaluate", stop)
    with pytest.raises(HardbitError, match="enough"):
        check(bundle.path, None, None, CheckOptions(**changes))
    assert (seen[0].name, seen[0].steps) == (name, steps)


def test_a_paired_baseline_of_the_same_run_passes(bundle: Bundle, tmp_path: Path) -> None:
    check(bundle.path, None, tmp_path / "earlier", WHITE_BOX)
    gate = parse_gate({"baseline": {"result": "earlier", "margin": 0.05}}, folder=tmp_path)
    document = check(bundle.path, gate, None, WHITE_BOX)
    assert document["verdict"]["name"] == "PASS"
    assert [rule["details"]["lost"] for rule in document["gate"]] == [0, 0]
    validate(document)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, "was made with steps 20, this run with 5"),
        ({"images": 100}, "holds other images: 40 against 100"),
    ],
)
def test_an_unlike_baseline_is_refused_before_any_work(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    check(bundle.path, None, tmp_path / "earlier", CheckOptions(images=40, latency=None))
    monkeypatch.setattr(harness, "evaluate", lambda *_, **__: pytest.fail("work was done"))
    gate = parse_gate({"baseline": {"result": "earlier"}}, folder=tmp_path)
    with pytest.raises(HardbitError, match=message):
        check(bundle.path, gate, None, CheckOptions(**{"images": 40, "latency": None, **changes}))


@pytest.mark.parametrize("place", ["", "out", "a/b"])
def test_results_inside_the_bundle_are_refused_before_any_work(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(harness, "executed_precision", lambda *_: pytest.fail("work was done"))
    with pytest.raises(HardbitError, match="lies in the bundle"):
        check(bundle.path, None, bundle.path / place, UNTIMED)
    assert harness.load_bundle(bundle.path).manifest_sha256 == bundle.manifest_sha256


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "executed_precision", lambda *_: pytest.fail("work was done"))
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(HardbitError, match=r"file.*: results cannot be written: .*; choose another folder"):
            check(bundle.path, None, tmp_path / place, UNTIMED)


def test_a_disk_that_fills_up_is_a_sentence_and_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sliced = bundle_examples.build_bundle(tmp_path / "sliced", count=32, suite=SLICED)
    write, writes = chunk_store.write_atomically, []

    def fill_up(path: Path, content: bytes) -> None:
        writes.append(path)
        if len(writes) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(chunk_store, "write_atomically", fill_up)
    with pytest.raises(HardbitError, match="measurements cannot be kept: No space left on device; make room"):
        check(sliced.path, None, tmp_path / "out", UNTIMED)
    monkeypatch.undo()
    assert check(sliced.path, None, tmp_path / "out", UNTIMED)["resumed_images"] == 16


def test_what_others_keep_in_a_folder_named_unfinished_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    mine = harness.work_folder(tmp_path) / "my novel.txt"
    mine.parent.mkdir()
    mine.write_text("Chapter 1")
    check(bundle.path, None, tmp_path, CheckOptions(images=8, steps=1, restarts=1, latency=None, workers=1))
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_counts_as_an_uninterrupted_one(tmp_path: Path) -> None:
    sliced = bundle_examples.build_bundle(tmp_path / "sliced", count=96, suite=SLICED)
    whole = check(sliced.path, None, None, UNTIMED)

    def interrupt(stage: str, done: int, total: int) -> None:
        if total > 1 and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(sliced.path, None, tmp_path / "out", UNTIMED, interrupt)
    assert harness.work_folder(tmp_path / "out").is_dir()
    assert not (tmp_path / "out" / "result.json").exists()
    resumed = check(sliced.path, None, tmp_path / "out", UNTIMED)
    assert resumed["resumed_images"] > 0
    assert [a["survivors"] for a in resumed["attacks"]] == [a["survivors"] for a in whole["attacks"]]
    assert not harness.work_folder(tmp_path / "out").exists()


# --- alarms that a gate knows of --------------------------------------------------------------------------------------


def test_a_known_alarm_is_accepted_and_never_hidden(masked: Bundle, tmp_path: Path) -> None:
    document = check(masked.path, promise(known_alarms=[MASKED]), tmp_path, UNTIMED)
    assert document["verdict"]["name"] == "PASS"
    (alarm,) = [alarm for alarm in document["alarms"] if alarm["name"] == MASKED["name"]]
    assert (alarm["status"], alarm["accepted_because"]) == ("accepted", MASKED["reason"])
    validate(document)
    told = (
        f"accepted alarm white_box_beats_black_box: {alarm['reason']}; accepted because few bits hide their gradients"
    )
    assert told in document["verdict"]["reasons"]
    assert "no alarm was raised" not in " ".join(document["verdict"]["reasons"])
    assert f"{alarm['reason']}; accepted because few bits" in " ".join(result_summary(document).split())
    (case,) = [case for case in ElementTree.fromstring(junit_xml(document))[0] if case.get("name") == MASKED["name"]]
    assert case[0].tag == "skipped"
    assert "accepted because few bits hide" in str(case[0].get("message"))


def test_an_alarm_that_nobody_knows_of_stays_one(masked: Bundle) -> None:
    other = {**MASKED, "name": "converged"}
    for gate in (promise(), promise(known_alarms=[other])):
        document = check(masked.path, gate, None, UNTIMED)
        assert document["verdict"]["name"] == "INCONCLUSIVE"
        assert "alarm white_box_beats_black_box" in document["verdict"]["reasons"][0]
