"""Bench: one row a bundle, a folder each, and a regression that must be seen twice before it breaks a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import result_examples as examples
from hardbit_deploy import bench as benching
from hardbit_deploy.bench import bench, bench_table
from hardbit_deploy.latency import FULL, LatencyReport
from hardbit_deploy.preflight import Grade

RELEASED, CANDIDATE = Path("released/net"), Path("candidate/net")


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[dict[Path, float]]:
    """Medians in milliseconds that measurements give, one entry for each measurement that is made."""
    queue: list[dict[Path, float]] = []

    def time(paths: Any, *_: Any) -> dict[Path, LatencyReport]:
        medians = queue.pop(0)
        noise = np.random.default_rng(0).normal(1, 0.001, (5, 662))
        grade = Grade("B", ("why",))
        return {
            path: LatencyReport((medians[path] * noise).astype(np.float32), FULL, grade, (2.0,) * 5, 0.0)
            for path in paths
            if path in medians
        }

    def check(path: Path, gate: Any, folder: Path, options: Any, progress: Any) -> dict[str, Any]:
        document, _ = examples.example_run()
        document["latency"] = options.latency.to_document() if options.latency else None
        return document

    monkeypatch.setattr(benching, "_time", time)
    monkeypatch.setattr(benching, "check", check)
    return queue


def test_a_regression_seen_twice_is_exit_code_1(timings: list[dict[Path, float]]) -> None:
    timings += [{RELEASED: 1.0, CANDIDATE: 1.2}, {RELEASED: 1.0, CANDIDATE: 1.2}]
    document = bench([CANDIDATE], Path("out"), latency=FULL, baseline=RELEASED)
    assert document["exit_code"] == 1
    assert [row["label"] for row in document["rows"]] == ["net", "net-2"]
    assert document["rows"][0]["against_baseline"] is None
    seen = document["rows"][1]["against_baseline"]
    assert seen["regression"]
    assert seen["remeasured"]
    assert "1.200 times the baseline (+200 us): a REGRESSION, seen twice" in bench_table(document)


def test_a_regression_that_does_not_show_again_is_none(timings: list[dict[Path, float]]) -> None:
    timings += [{RELEASED: 1.0, CANDIDATE: 1.2}, {RELEASED: 1.0, CANDIDATE: 1.0}]
    document = bench([RELEASED, CANDIDATE], Path("out"), latency=FULL, baseline=RELEASED)
    assert document["exit_code"] == 0
    assert not document["rows"][1]["against_baseline"]["regression"]


def test_bundles_without_a_baseline_are_only_set_side_by_side(timings: list[dict[Path, float]]) -> None:
    timings += [{RELEASED: 1.0, CANDIDATE: 9.0}]
    document = bench([RELEASED, CANDIDATE], Path("out"), latency=FULL)
    assert document["exit_code"] == 0
    table = bench_table(document).splitlines()
    assert len({line.index("ms", line.index("%")) for line in table[1:3]}) == 1  # aligned


def test_a_bundle_that_was_not_timed_has_a_row_all_the_same(timings: list[dict[Path, float]]) -> None:
    timings += [{RELEASED: 1.0}]
    document = bench([RELEASED, CANDIDATE], Path("out"), latency=FULL, baseline=RELEASED)
    assert document["rows"][1]["latency"] is None
    assert document["rows"][1]["against_baseline"] is None


def test_folders_of_results_never_collide(timings: list[dict[Path, float]]) -> None:
    paths = [Path("x/net-2"), Path("x/net"), Path("y/net"), Path("z/net")]
    labels = [row["label"] for row in bench(paths, Path("out"))["rows"]]
    assert labels == ["net-2", "net", "net-3", "net-4"]


def test_no_latency_times_nothing(timings: list[dict[Path, float]]) -> None:
    assert [row["latency"] for row in bench([RELEASED], Path("out"))["rows"]] == [None]


def test_an_accepted_alarm_stands_beside_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: Any) -> dict[str, Any]:
        document, _ = examples.example_run()
        document["alarms"][0] |= {"status": "accepted", "accepted_because": "so it is"}
        return document

    monkeypatch.setattr(benching, "check", check)
    document = bench([CANDIDATE], Path("out"))
    assert document["rows"][0]["accepted_alarms"] == ["parity"]
    assert "PASS, accepted parity" in bench_table(document)
