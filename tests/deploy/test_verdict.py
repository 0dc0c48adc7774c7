"""Verdicts on planted evidence: each of the five, the order among them, and what the reasons say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import result_examples as examples
from hardbit_deploy import results
from hardbit_deploy.baseline import load_baseline
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gate import Gate, parse_gate
from hardbit_deploy.verdict import judge

PROMISE = parse_gate({"clean": {"reference": 0.84}, "robust": {"reference": 0.66}})


def verdict_of(document: dict[str, Any], gate: Gate, records: dict[str, Any] | None = None) -> tuple[str, int, str]:
    _, verdict = judge(document, records or {}, gate)
    return verdict.name, verdict.exit_code, "; ".join(verdict.reasons)


def raise_alarm(document: dict[str, Any]) -> None:
    document["alarms"][0] |= {"status": "alarm", "reason": "labels agree on 97.1 %, below 99 %"}


def test_kept_promises_pass_and_say_by_which_bound() -> None:
    document, _ = examples.example_run(images=2000, clean=1720, robust=1338)
    name, code, reasons = verdict_of(document, PROMISE)
    assert (name, code) == ("PASS", 0)
    assert "robust accuracy 66.9 % (95 % lower bound 65.1 %) keeps the promise of 66.0 % less 1 point" in reasons


def test_a_broken_promise_fails() -> None:
    document, _ = examples.example_run(clean=1720, robust=400)
    name, code, reasons = verdict_of(document, PROMISE)
    assert (name, code) == ("FAIL", 1)
    assert reasons == "robust accuracy 20.0 % (95 % upper bound 21.5 %) breaks the promise of 66.0 % less 1 point"


def test_two_hundred_images_cannot_see_one_point_and_the_verdict_says_how_many_can() -> None:
    document, _ = examples.example_run(images=200, clean=172, robust=132)
    name, code, reasons = verdict_of(document, parse_gate({"robust": {"reference": 0.66}}))
    assert (name, code) == ("INCONCLUSIVE", 75)
    assert "on 200 images cannot decide the promise of 66.0 % less 1 point: it takes 14,001 images" in reasons


def test_every_rule_carries_its_evidence() -> None:
    document, _ = examples.example_run()
    rules, _ = judge(document, {}, PROMISE)
    robust = next(rule for rule in rules if rule.name == "robust").to_document()
    assert robust["estimate"] == pytest.approx(0.669)
    assert robust["bound"] < 0.669 < robust["opposite_bound"]
    assert (robust["reference"], robust["margin"], robust["images"]) == (0.66, 0.01, 2000)
    assert robust["images_needed"] == 14_001


def test_an_engine_of_another_precision_is_wrong_before_anything_else() -> None:
    document, _ = examples.example_run(robust=0)
    raise_alarm(document)
    document["precision"] |= {"status": "wrong", "problems": ["conv1 runs as Conv in float"]}
    gate = parse_gate({"robust": {"reference": 0.66}, "environment": {"machine": "riscv64"}})
    assert verdict_of(document, gate) == ("WRONG_ENGINE", 2, "conv1 runs as Conv in float")


def test_a_baseline_that_the_gate_names_and_nobody_loaded_is_no_pass(tmp_path: Path) -> None:
    document, _ = examples.example_run()
    gate = parse_gate({"baseline": {"result": "earlier"}}, folder=tmp_path)
    name, code, reasons = verdict_of(document, gate)
    assert (name, code) == ("INCONCLUSIVE", 75)
    assert reasons == f"the baseline {tmp_path / 'earlier'} was not loaded"


@pytest.mark.parametrize("damage", ["missing", "shorter", "numbers"])
def test_a_baseline_of_damaged_records_is_refused(tmp_path: Path, damage: str) -> None:
    document, records = examples.example_run()
    if damage == "missing":
        del records["worst_case"]
    else:
        records["worst_case"] = records["worst_case"][:5] if damage == "shorter" else records["worst_case"] * 0.5
    results.write_result(tmp_path, document, records)
    with pytest.raises(HardbitError, match="records are damaged: worst_case is missing or of another kind"):
        load_baseline(tmp_path)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"machine": "aarch64"}, "this machine is x86_64, the gate speaks of aarch64"),
        ({"onnxruntime": ">=1.23"}, "ONNX Runtime is 1.22.0, the gate speaks of >=1.23"),
        ({"tensorrt": ">=10.3,<11"}, "TensorRT is 11.4.1, the gate speaks of >=10.3,<11"),
        ({"tensorrt_rtx": ">=1.5"}, "TensorRT for RTX is missing, the gate speaks of >=1.5"),
        ({"power_mode": "MAXN"}, "timings are of power mode 25W, the gate asks for MAXN"),
        ({"min_grade": "A"}, "timings are of grade B, the gate asks for A: the clocks cannot be read"),
    ],
)
def test_another_environment_than_the_gate_speaks_of(rule: dict[str, str], reason: str) -> None:
    document, _ = examples.example_run(robust=0)
    document["environment"] |= {"tensorrt": "11.4.1", "tensorrt_rtx": None, "power_mode": "25W"}
    gate = parse_gate({"robust": {"reference": 0.66}, "environment": rule})
    assert verdict_of(document, gate) == ("ENV_MISMATCH", 3, reason)


def test_the_power_mode_is_that_of_the_timings() -> None:
    gate = parse_gate({"environment": {"power_mode": "MAXN"}})
    document, _ = examples.example_run()
    document["environment"]["power_mode"] = "25W"
    assert verdict_of({**document, "clock_lock": {"power_mode": "MAXN"}}, gate)[0] == "PASS"
    assert verdict_of({**document, "latency": None}, gate)[0] == "PASS"
    del document["environment"]["power_mode"]
    assert verdict_of(document, gate)[2] == "timings are of power mode unknown, the gate asks for MAXN"


def test_a_matching_environment_is_no_obstacle() -> None:
    document, _ = examples.example_run()
    gate = parse_gate(
        {"environment": {"machine": "x86_64", "onnxruntime": ">=1.20", "min_grade": "B", "power_mode": "25W"}}
    )
    document["environment"]["power_mode"] = "25W"
    assert verdict_of(document, gate)[:2] == ("PASS", 0)


def test_an_alarm_makes_kept_promises_inconclusive() -> None:
    document, _ = examples.example_run(clean=1720)
    raise_alarm(document)
    assert verdict_of(document, PROMISE) == (
        "INCONCLUSIVE",
        75,
        "alarm parity: labels agree on 97.1 %, below 99 %",
    )


def test_a_promise_broken_outright_fails_in_spite_of_an_alarm() -> None:
    document, _ = examples.example_run(robust=400)
    raise_alarm(document)
    assert verdict_of(document, PROMISE)[0] == "FAIL"


def test_unproved_precision_is_inconclusive() -> None:
    document, _ = examples.example_run(clean=1720)
    document["precision"] |= {"status": "not_run", "nodes": []}
    assert verdict_of(document, PROMISE)[::2] == ("INCONCLUSIVE", "executed precision was not proved")


def test_without_rules_a_sound_run_passes_and_says_that_nothing_was_promised() -> None:
    name, _, reasons = verdict_of(examples.example_run()[0], Gate())
    assert name == "PASS"
    assert reasons.startswith("the gate has no rules")


# --- latency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit_ms", "changes", "status"),
    [
        (1.5, {}, "pass"),
        (1.01, {}, "inconclusive"),  # within the interval over processes
        (0.5, {}, "fail"),
        (0.5, {"grade": "C"}, "inconclusive"),
        (1.5, {"grade": "C"}, "pass"),  # a neighbour slows down, never speeds up
        (1.5, {"protocol": "latency-v1-short"}, "inconclusive"),
        (0.5, {"protocol": "latency-v1-short"}, "inconclusive"),
    ],
)
def test_a_latency_limit_is_judged_by_the_interval_over_processes(
    limit_ms: float, changes: dict[str, str], status: str
) -> None:
    document, _ = examples.example_run()
    document["latency"] |= changes
    (rule,), _ = judge(document, {}, parse_gate({"latency": {"max_p50_ms": limit_ms}}))
    assert (rule.name, rule.status) == ("latency_p50", status)


def test_a_latency_limit_without_a_measurement_is_inconclusive() -> None:
    document, _ = examples.example_run()
    document["latency"] = None
    assert verdict_of(document, parse_gate({"latency": {"max_p99_ms": 9.0}}))[::2] == (
        "INCONCLUSIVE",
        "latency was not measured",
    )


# --- paired baseline --------------------------------------------------------------------------------------------------


def paired_gate(folder: Path) -> Gate:
    return parse_gate({"baseline": {"result": "result.json"}}, folder=folder)


def test_a_paired_gate_decides_with_images_that_a_promised_rate_could_not(tmp_path: Path) -> None:
    document, records = examples.example_run()
    results.write_result(tmp_path, document, records)
    candidate = {**records, "worst_case": records["worst_case"].copy()}
    candidate["worst_case"][:5] = False
    candidate["worst_case"][1500:1504] = True
    rules, verdict = judge(document, candidate, paired_gate(tmp_path), load_baseline(tmp_path))
    assert verdict.name == "PASS"
    robust = next(rule for rule in rules if rule.name == "baseline_robust").to_document()
    assert robust["details"]["lost"] == 5
    assert robust["details"]["gained"] == 4
    assert robust["details"]["mcnemar_p"] == pytest.approx(1.0)
    assert "lost 5, gained 4 of 2,000 images" in robust["reason"]


def test_a_paired_loss_of_five_points_fails(tmp_path: Path) -> None:
    document, records = examples.example_run()
    results.write_result(tmp_path, document, records)
    candidate = {**records, "worst_case": records["worst_case"].copy()}
    candidate["worst_case"][:100] = False
    _, verdict = judge(document, candidate, paired_gate(tmp_path), load_baseline(tmp_path))
    assert verdict.name == "FAIL"
    assert "robust accuracy -5.0 points against the baseline" in verdict.reasons[0]


def test_images_are_paired_by_index_not_by_position(tmp_path: Path) -> None:
    document, records = examples.example_run()
    results.write_result(tmp_path, document, records)
    order = np.random.default_rng(0).permutation(len(records["index"]))
    shuffled = {key: values[order] for key, values in records.items()}
    comparison = load_baseline(tmp_path).compare(shuffled, "worst_case")
    assert (comparison.lost, comparison.gained) == (0, 0)


@pytest.mark.parametrize("evaluation", [None, 1, {"split": "test"}])
def test_a_baseline_that_does_not_say_what_it_saw_is_refused(tmp_path: Path, evaluation: Any) -> None:
    document, records = examples.example_run()
    results.write_result(tmp_path, document | {"evaluation": evaluation}, records)
    with pytest.raises(HardbitError, match="was made with data_set unknown, this run with fashion-mnist"):
        load_baseline(tmp_path).refuse_other_conditions(document)


@pytest.mark.parametrize("key", ["index", "label"])
def test_other_images_are_refused(tmp_path: Path, key: str) -> None:
    document, records = examples.example_run()
    results.write_result(tmp_path, document, records)
    other = {**records, key: records[key] + 1}
    with pytest.raises(HardbitError, match="holds other images"):
        judge(document, other, paired_gate(tmp_path), load_baseline(tmp_path))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("threat_model", {"eps_255": 8.0}, r"made with eps_255 25\.0, this run with 8\.0"),
        ("evaluation", {"data_set": "mnist"}, "made with data_set fashion-mnist, this run with mnist"),
        ("suite", {"steps": 10}, "made with steps 20, this run with 10"),
    ],
)
def test_other_attacks_are_refused(tmp_path: Path, part: str, change: dict[str, Any], message: str) -> None:
    document, records = examples.example_run()
    results.write_result(tmp_path, document, records)
    document[part] = document[part] | change
    with pytest.raises(HardbitError, match=message):
        judge(document, records, paired_gate(tmp_path), load_baseline(tmp_path))


def test_an_earlier_result_without_further_attacks_is_no_baseline_for_one_with_them(tmp_path: Path) -> None:
    document, records = examples.example_run()
    assert "attacks" not in document["suite"]
    results.write_result(tmp_path, document, records)
    baseline = load_baseline(tmp_path)
    baseline.refuse_other_conditions(document | {"suite": document["suite"] | {"attacks": []}})
    with pytest.raises(HardbitError, match=r"was made with attacks \[\], this run with \['spsa-40'\]"):
        baseline.refuse_other_conditions(document | {"suite": document["suite"] | {"attacks": ["spsa-40"]}})
