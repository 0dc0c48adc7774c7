"""latency-v1: warm-up and timing by a clock that the test winds, intervals, regressions, processes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import result_examples
from hardbit_deploy import latency
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.latency import LatencyReport, LatencySettings, compare_latency
from hardbit_deploy.latency_worker import time_queries, warm_up
from hardbit_deploy.preflight import Grade
from hardbit_deploy.results import document_text, load_schema
from hardbit_deploy.summary import result_summary


class ScriptedEngine:
    """An engine whose query number i takes `milliseconds(i)` of a clock that nothing else moves."""

    def __init__(self, milliseconds: Any) -> None:
        self.milliseconds = milliseconds
        self.now_ns = 0
        self.asked: list[int] = []

    def query(self, number: int) -> None:
        self.asked.append(number)
        self.now_ns += int(self.milliseconds(len(self.asked) - 1) * 1e6)

    def clock_ns(self) -> int:
        return self.now_ns


# --- warm-up ----------------------------------------------------------------------------------------------------------


def test_a_steady_engine_warms_up_for_the_least_time() -> None:
    engine = ScriptedEngine(lambda i: 1.0)
    warmth = warm_up(engine.query, 2.0, 30.0, engine.clock_ns)
    assert (warmth.seconds, warmth.queries, warmth.settled) == (2.0, 2000, True)


def test_an_engine_that_starts_slowly_gets_another_window() -> None:
    engine = ScriptedEngine(lambda i: 2.0 if i < 700 else 1.0)
    warmth = warm_up(engine.query, 2.0, 30.0, engine.clock_ns)
    assert warmth.settled
    assert warmth.seconds == pytest.approx(4.0, abs=0.01)


def test_an_engine_that_never_settles_is_given_up_before_the_longest_time() -> None:
    engine = ScriptedEngine(lambda i: 1.1 ** (i / 100))
    warmth = warm_up(engine.query, 2.0, 10.0, engine.clock_ns)
    assert not warmth.settled
    assert 8.0 <= warmth.seconds <= 10.5


def test_an_engine_slower_than_the_window_is_queried_twice_at_least() -> None:
    engine = ScriptedEngine(lambda i: 5000.0)
    assert warm_up(engine.query, 2.0, 30.0, engine.clock_ns).queries == 2


def test_every_query_is_timed_by_itself() -> None:
    engine = ScriptedEngine(lambda i: i + 1)
    times = time_queries(engine.query, 5, engine.clock_ns)
    assert times.dtype == np.float32
    assert times.tolist() == [1, 2, 3, 4, 5]


# --- reports ----------------------------------------------------------------------------------------------------------


def report(samples: Any, letter: str = "B", settings: LatencySettings = latency.FULL) -> LatencyReport:
    query_ms = np.asarray(samples, np.float32)
    return LatencyReport(query_ms, settings, Grade(letter, ("why",)), (2.0,) * len(query_ms), 0.0)


def test_a_report_keeps_percentiles_that_were_really_seen() -> None:
    samples = np.arange(1, 101, dtype=np.float32).reshape(5, 20)
    document = report(samples).to_document()
    assert (document["p50_ms"], document["p90_ms"], document["p99_ms"], document["min_ms"]) == (50, 90, 99, 1)
    assert document["cv"] == pytest.approx(np.std(samples) / np.mean(samples))
    assert (document["processes"], document["queries"]) == (5, 100)
    low, high = document["p50_interval_ms"]
    assert low < 50 < high


def test_only_the_full_protocol_bears_its_name() -> None:
    assert latency.FULL.protocol == "latency-v1"
    assert latency.SHORT.protocol == "latency-v1-short"
    for less in ({"processes": 4}, {"queries": 661}, {"warmup_min_s": 1.9}, {"warmup_max_s": 20.0}):
        assert LatencySettings(**less).protocol == "latency-v1-short"


@pytest.mark.parametrize(
    ("baseline_ms", "candidate_ms", "regression"),
    [
        (1.0, 1.10, True),
        (1.0, 1.02, False),  # within 3 %
        (0.1, 0.115, False),  # 15 %, but 15 us
        (0.1, 0.125, True),  # 25 us
        (1.0, 0.5, False),
    ],
)
def test_a_regression_is_relative_and_absolute(baseline_ms: float, candidate_ms: float, regression: bool) -> None:
    noise = np.random.default_rng(0).normal(1, 0.005, (5, 662))
    comparison = compare_latency(report(baseline_ms * noise), report(candidate_ms * noise[::-1]))
    assert comparison.regression is regression
    assert comparison.ratio == pytest.approx(candidate_ms / baseline_ms, rel=0.01)


def test_processes_that_differ_more_than_the_bundles_show_no_regression() -> None:
    """The medians differ by 6 %, but from process to process they wander by 20 %."""
    wander = np.array([1.0, 1.2, 0.9, 1.1, 0.8])[:, None] * np.ones(662)
    assert not compare_latency(report(wander), report(1.06 * wander[[1, 0, 3, 2, 4]])).regression


def test_unequal_grades_are_not_compared() -> None:
    samples = np.ones((5, 10))
    comparison = compare_latency(report(samples, "B"), report(2 * samples, "C"))
    assert not comparison.equal_grades
    assert not comparison.regression


def test_a_regression_must_show_twice() -> None:
    samples = np.ones((5, 10))
    slow = compare_latency(report(samples), report(2 * samples))
    asked = []

    def again(factor: float) -> Any:
        asked.append(factor)
        return report(samples), report(factor * samples)

    assert latency.settle_regression(slow, lambda: again(2.0)).regression
    assert not latency.settle_regression(slow, lambda: again(1.0)).regression
    assert latency.settle_regression(slow, lambda: again(1.0)).remeasured
    fine = compare_latency(report(samples), report(samples))
    assert latency.settle_regression(fine, lambda: again(9.0)) is fine
    assert 9.0 not in asked


# --- processes --------------------------------------------------------------------------------------------------------


def pretend_workers(monkeypatch: pytest.MonkeyPatch, settled: bool = True) -> list[str]:
    started: list[str] = []

    def run(bundle: Path, settings: LatencySettings) -> dict[str, Any]:
        started.append(bundle.name)
        return {"query_ms": np.ones(settings.queries, np.float32), "warmup_s": 2.0, "settled": settled}

    monkeypatch.setattr(latency, "_run_worker", run)
    return started


MACHINE = {"foreign_load": 0.0, "clocks_locked": True}


def test_bundles_are_interleaved_abba(monkeypatch: pytest.MonkeyPatch) -> None:
    started = pretend_workers(monkeypatch)
    counted: list[tuple[int, int]] = []
    settings = LatencySettings(queries=10)
    reports = latency.measure_interleaved(
        [Path("a"), Path("b")], settings, MACHINE, lambda done, total: counted.append((done, total))
    )
    assert "".join(started) == "abbaabbaab"
    assert [one.query_ms.shape for one in reports] == [(5, 10), (5, 10)]
    assert counted[0] == (0, 10)
    assert counted[-1] == (10, 10)


def test_timings_that_never_settle_are_worth_no_more_than_grade_c(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_workers(monkeypatch, settled=False)
    found = latency.measure(Path("a"), LatencySettings(queries=10), MACHINE).grade
    assert found.letter == "C"


def test_a_worker_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match=r"a timing process failed: .*no such folder"):
        latency.measure(tmp_path / "none", latency.SHORT, MACHINE)


# --- a device with a clock of its own ---------------------------------------------------------------------------------


def test_what_follows_a_query_is_not_part_of_its_time() -> None:
    engine = ScriptedEngine(lambda i: 2.0)
    noted: list[int] = []

    def note(number: int) -> None:
        noted.append(number)
        engine.now_ns += 1_000_000_000

    assert time_queries(engine.query, 3, engine.clock_ns, note).tolist() == [2, 2, 2]
    assert noted == [0, 1, 2]


def test_the_clock_of_the_device_is_told_beside_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose clock nobody can tell is of grade B, though processor and load deserve an A."""

    def run(bundle: Path, settings: LatencySettings) -> dict[str, Any]:
        query_ms = np.linspace(1, 2, settings.queries, dtype=np.float32)
        on_gpu = {"device_ms": query_ms / 2, "target": np.array("tensorrt")} if bundle.name == "gpu" else {}
        return {"query_ms": query_ms, "warmup_s": 2.0, "settled": True, "target": np.array("onnxruntime"), **on_gpu}

    monkeypatch.setattr(latency, "_run_worker", run)
    on_gpu, on_cpu = latency.measure_interleaved([Path("gpu"), Path("cpu")], LatencySettings(queries=11), MACHINE)
    assert (on_cpu.grade.letter, on_gpu.grade.letter) == ("A", "B")
    assert on_gpu.grade.reasons == ("whether the GPU's clock is locked cannot be read",)
    assert set(on_cpu.arrays) == {"query_ms"}
    assert on_gpu.arrays["device_ms"].shape == (5, 11)
    document = on_gpu.to_document()
    assert (document["p50_ms"], document["device"]["p50_ms"]) == (1.5, 0.75)
    assert document["device"]["metric"] == "device_ms"
    assert document["device"]["p50_interval_ms"] == [0.75, 0.75]
    assert "device" not in on_cpu.to_document()


def test_both_clocks_stand_in_a_result_and_its_summary() -> None:
    document, _ = result_examples.example_run()
    timed = report(np.full((5, 20), 2.0)).to_document()
    document["latency"] = timed | {"device": {"metric": "device_ms", **latency._quantiles(np.full((5, 20), 0.5))}}
    document["bundle"]["target"], document["environment"]["tensorrt"] = "tensorrt", "10.3.0"
    jsonschema.Draft202012Validator(load_schema("result-v1")).validate(json.loads(document_text(document)))
    text = result_summary(document)
    assert "on tensorrt 10.3.0, AMD EPYC" in text
    query, device = text.index("Latency, query_ms"), text.index("Of that on the device, device_ms, without copies")
    assert re.search(r"p50 +2 ms", text[query:device])
    assert re.search(r"p50 +0\.5 ms", text[device:])
