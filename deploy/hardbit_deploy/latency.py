"""Protocol `latency-v1`: `query_ms`, from input bytes on the host to logits on the host.

One outstanding query (MLPerf single stream), batch 1, at least 662 queries (the least for a 99th percentile by MLPerf's
early-stopping rule) in each of five fresh processes, several bundles interleaved ABBA so that a drift of the machine
hits them alike. Each process warms up until its timings have settled. Intervals come from drawing whole processes
again. A shorter measurement is named `latency-v1-short` and is never taken for the full one. Where the engine's device
has a clock of its own, the same queries are told in `device_ms` besides: what it computed, without copies.

Boundary: proves nothing about precision and judges no limit: the caller proves executed precision first, and
verdict.py judges.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.preflight import Grade, LoadMeter, describe_machine, grade, worse_grade
from hardbit_deploy.statistics import bootstrap_over_processes

__all__ = [
    "FULL",
    "SHORT",
    "LatencyComparison",
    "LatencyReport",
    "LatencySettings",
    "compare_latency",
    "measure",
    "measure_interleaved",
    "settle_regression",
    "worker_environment",
]

REGRESSION_RATIO = 1.03
REGRESSION_US = 20.0
_PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}


@dataclass(frozen=True)
class LatencySettings:
    """How long and how often; the defaults are `latency-v1`, anything less is `latency-v1-short`."""

    processes: int = 5
    queries: int = 662  # in each process
    warmup_min_s: float = 2.0
    warmup_max_s: float = 30.0
    threads: int = 1  # intra-op threads of the engine

    @property
    def protocol(self) -> str:
        """The name under which a report of these settings goes."""
        full = self.processes >= 5 and self.queries >= 662 and self.warmup_min_s >= 2.0 and self.warmup_max_s >= 30.0
        return "latency-v1" if full else "latency-v1-short"


FULL = LatencySettings()
SHORT = LatencySettings(processes=2, queries=200, warmup_min_s=0.2, warmup_max_s=2.0)


@dataclass(frozen=True)
class LatencyReport:
    """Raw samples `query_ms` (processes, queries) in milliseconds, and what the machine was like meanwhile.

    `device_ms` are the same queries by the device's own clock; None where it has none.
    """

    query_ms: NDArray[np.float32]
    settings: LatencySettings
    grade: Grade
    warmup_s: tuple[float, ...]
    foreign_load: float | None  # the highest among the processes
    device_ms: NDArray[np.float32] | None = None

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The raw samples by their names."""
        return {"query_ms": self.query_ms} | ({} if self.device_ms is None else {"device_ms": self.device_ms})

    def to_document(self) -> dict[str, Any]:
        """As it stands in result.json."""
        summary: dict[str, Any] = {
            "protocol": self.settings.protocol,
            "metric": "query_ms",
            "grade": self.grade.letter,
            "grade_reasons": list(self.grade.reasons),
            "processes": len(self.query_ms),
            "queries": int(self.query_ms.size),
            **_quantiles(self.query_ms),
            "settings": {
                **asdict(self.settings),
                "warmup_s": [round(seconds, 3) for seconds in self.warmup_s],
                "foreign_load": self.foreign_load,
            },
        }
        if self.device_ms is not None:
            summary["device"] = {"metric": "device_ms", **_quantiles(self.device_ms)}
        return summary


Progress = Callable[[int, int], None]


def measure(
    bundle: Path,
    settings: LatencySettings = FULL,
    environment: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> LatencyReport:
    """Time one bundle in fresh processes; `progress(done, total)` counts processes. Raises HardbitError."""
    return measure_interleaved([bundle], settings, environment, progress)[0]


def measure_interleaved(
    bundles: Sequence[Path],
    settings: LatencySettings = FULL,
    environment: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[LatencyReport]:
    """Time several bundles side by side, A B B A A B ...; one report each, in the order given.

    `environment` is preflight's description of this machine, taken here where it is missing.
    """
    machine = environment if environment is not None else describe_machine()
    samples: list[list[NDArray[np.float32]]] = [[] for _ in bundles]
    warmups: list[list[float]] = [[] for _ in bundles]
    device: list[list[NDArray[np.float32]]] = [[] for _ in bundles]
    loads: list[list[float]] = [[] for _ in bundles]
    grades = [grade(machine)] * len(bundles)
    order = list(_interleaved(len(bundles), settings.processes))
    for done, index in enumerate(order):
        if progress:
            progress(done, len(order))
        meter = LoadMeter()
        run = _run_worker(bundles[index], settings)
        load = meter.foreign_share()
        samples[index].append(run["query_ms"])
        if "device_ms" in run:
            device[index].append(run["device_ms"])
        warmups[index].append(float(run["warmup_s"]))
        if load is not None:
            loads[index].append(load)
        before = grade(machine, on_gpu=str(run.get("target", "")).startswith("tensorrt"))
        grades[index] = worse_grade(grades[index], _grade_of_run(bool(run["settled"]), load, before))
    if progress:
        progress(len(order), len(order))
    return [
        LatencyReport(
            query_ms=np.stack(samples[i]),
            settings=settings,
            grade=grades[i],
            warmup_s=tuple(warmups[i]),
            foreign_load=max(loads[i], default=None),
            device_ms=np.stack(device[i]) if device[i] else None,
        )
        for i in range(len(bundles))
    ]


@dataclass(frozen=True)
class LatencyComparison:
    """Candidate against baseline: medians, their ratio with a one-sided lower bound, and the difference."""

    ratio: float
    ratio_lower_bound: float
    difference_us: float
    equal_grades: bool
    remeasured: bool = False

    @property
    def regression(self) -> bool:
        """Slower by more than 3 % for sure *and* by more than 20 us: small networks jitter by percents."""
        return self.equal_grades and self.ratio_lower_bound > REGRESSION_RATIO and self.difference_us > REGRESSION_US


def compare_latency(baseline: LatencyReport, candidate: LatencyReport, resamples: int = 2000) -> LatencyComparison:
    """Compare two reports of one interleaved measurement; rounds are drawn together, for they shared the machine."""
    rounds = min(len(baseline.query_ms), len(candidate.query_ms))
    draws = np.random.default_rng(0).integers(0, rounds, (resamples, rounds))
    ratios = [np.median(candidate.query_ms[draw]) / np.median(baseline.query_ms[draw]) for draw in draws]
    first, second = float(np.median(baseline.query_ms)), float(np.median(candidate.query_ms))
    return LatencyComparison(
        ratio=second / first,
        ratio_lower_bound=float(np.quantile(ratios, 0.05)),
        difference_us=1000 * (second - first),
        equal_grades=baseline.grade.letter == candidate.grade.letter,
    )


def settle_regression(
    first: LatencyComparison, measure_again: Callable[[], tuple[LatencyReport, LatencyReport]]
) -> LatencyComparison:
    """Believe a regression only when one automatic re-measurement of (baseline, candidate) shows it too."""
    if not first.regression:
        return first
    second = compare_latency(*measure_again())
    return LatencyComparison(
        second.ratio, second.ratio_lower_bound, second.difference_us, second.equal_grades, remeasured=True
    )


def _interleaved(bundles: int, rounds: int) -> Iterator[int]:
    for round_number in range(rounds):
        forward = range(bundles)
        yield from forward if round_number % 2 == 0 else reversed(forward)


def _grade_of_run(settled: bool, load: float | None, before: Grade) -> Grade:
    """The grade of one process: foreign load is measured while it ran, not only before."""
    during = grade({"foreign_load": load}) if load is not None else before
    if during.letter == "C":
        return during
    return before if settled else Grade("C", ("timings did not settle within the longest warm-up",))


def _run_worker(bundle: Path, settings: LatencySettings) -> dict[str, Any]:
    """Run latency_worker in a fresh interpreter, from an empty folder so that nothing lying about can be imported."""
    with tempfile.TemporaryDirectory(prefix="hardbit-latency-") as folder:
        output = Path(folder) / "timings.npz"
        command = [
            sys.executable,
            "-m",
            "hardbit_deploy.latency_worker",
            str(bundle.resolve()),
            str(output),
            f"--queries={settings.queries}",
            f"--threads={settings.threads}",
            f"--warmup-min-s={settings.warmup_min_s}",
            f"--warmup-max-s={settings.warmup_max_s}",
        ]
        environment = worker_environment(settings.threads)
        finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            lines = finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"]
            raise HardbitError(
                f"a timing process failed: {lines[-1]}", where=str(bundle), remedy="try --no-latency for the rest"
            )
        with np.load(output, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}


def worker_environment(threads: int) -> dict[str, str]:
    """Variables for a process that is measured: PYTHONPATH resolved, since it starts in another folder, and threads."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    resolved = os.pathsep.join(str(Path(entry).resolve()) for entry in entries if entry)
    return {**os.environ, "PYTHONPATH": resolved, "OMP_NUM_THREADS": str(threads)}


def _quantiles(samples: NDArray[np.float32]) -> dict[str, Any]:
    """Percentiles of samples (processes, queries), each with an interval over the processes; minimum and variation."""
    rows, found = list(samples), {}
    for name, percentile in _PERCENTILES.items():
        found[f"{name}_ms"] = float(_percentile(samples, percentile))
        found[f"{name}_interval_ms"] = list(  # type: ignore[assignment]
            bootstrap_over_processes(rows, lambda pooled, q=percentile: _percentile(pooled, q))  # type: ignore[misc]
        )
    exact = samples.astype(np.float64)
    return {**found, "min_ms": float(exact.min()), "cv": float(exact.std() / exact.mean())}


def _percentile(samples: NDArray[Any], percentile: float) -> float:
    """A latency that was really seen: the smallest sample that at least so many percent do not exceed."""
    return float(np.percentile(samples, percentile, method="inverted_cdf"))
