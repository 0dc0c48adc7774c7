"""Latency against robustness of several bundles on this machine: every check, with the timings interleaved.

Boundary: one row for each bundle and the comparison with a baseline; pictures are drawn by the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.check import CheckOptions, Progress, check
from hardbit_deploy.clock_lock import ClockLock, locked_clocks, refuse_unlockable_clocks
from hardbit_deploy.energy import energy_in_words
from hardbit_deploy.engines import executed_precision
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.known_alarms import accepted_alarms
from hardbit_deploy.latency import (
    LatencyComparison,
    LatencyReport,
    LatencySettings,
    compare_latency,
    measure_interleaved,
    settle_regression,
)
from hardbit_deploy.summary import percent
from hardbit_deploy.text_table import text_table
from hardbit_deploy.verdict import EXIT_CODES

__all__ = ["bench", "bench_table"]


def bench(
    bundles: Sequence[Path],
    out_dir: Path,
    options: CheckOptions | None = None,
    latency: LatencySettings | None = None,
    baseline: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check every bundle into a folder of its own under `out_dir`; return rows, comparisons and an exit code.

    `latency` None times nothing. `baseline` names one of `bundles`, or another bundle that joins them as the first. The
    exit code is 2 where an engine is wrong, 1 where a regression against the baseline was seen twice, else 0.
    """
    paths = _with_baseline(bundles, baseline)
    folders = _folders(paths, out_dir)
    options = options or CheckOptions()
    if options.lock_clocks:
        refuse_unlockable_clocks(options.power_mode)
    locks: list[ClockLock] = []
    with _locked(options, latency, locks):
        reports = _time(paths, latency, progress) if latency else {}
    rows = []
    for path, folder in zip(paths, folders, strict=True):
        settings = replace(options, latency=reports.get(path))
        document = check(path, None, folder, settings, _prefixed(progress, folder.name))
        rows.append(_row(document, path, folder))
    with _locked(options, latency if baseline else None, locks):
        comparisons = _compare(paths, reports, latency, baseline, progress) if latency and baseline else {}
    for row in rows:
        comparison = comparisons.get(Path(row["path"]))
        row["against_baseline"] = asdict(comparison) | {"regression": comparison.regression} if comparison else None
    wrong = any(row["verdict"] == "WRONG_ENGINE" for row in rows)
    slower = any(comparison.regression for comparison in comparisons.values())
    return {
        "format": "hardbit-bench",
        "schema_version": 1,
        "rows": rows,
        "clock_lock": locks[0].to_document() | {"problems": [text for lock in locks for text in lock.problems]}
        if locks
        else None,
        "exit_code": EXIT_CODES["WRONG_ENGINE"] if wrong else EXIT_CODES["FAIL"] if slower else EXIT_CODES["PASS"],
    }


def bench_table(document: Mapping[str, Any]) -> str:
    """One line for each bundle, and a sentence for each comparison."""
    rows = [("bundle", "clean", "robust", "95 % interval", "p50", "p90", "p99", "grade", "verdict")]
    for row in document["rows"]:
        robust, timing = row["robust"], row["latency"]
        rows.append(
            (
                row["label"],
                percent(row["clean"]["rate"]) if row["clean"] else "-",
                percent(robust["rate"]) if robust else "-",
                f"{100 * robust['interval'][0]:.1f} to {100 * robust['interval'][1]:.1f}" if robust else "-",
                *(f"{timing[f'{name}_ms']:.4g} ms" if timing else "-" for name in ("p50", "p90", "p99")),
                timing["grade"] if timing else "-",
                row["verdict"] + (f", accepted {', '.join(row['accepted_alarms'])}" if row["accepted_alarms"] else ""),
            )
        )
    lines = [text_table(rows, "<>>>>>><<")]
    protocols = {row["latency"]["protocol"] for row in document["rows"] if row["latency"]}
    lines += [f"\n  query_ms by {protocol}, interleaved" for protocol in sorted(protocols)]
    lines += [f"  {row['label']}: {energy_in_words(row['energy'])}" for row in document["rows"] if row["energy"]]
    lines += [f"  WARNING: {problem}" for problem in (document["clock_lock"] or {"problems": ()})["problems"]]
    lines += [_sentence(row) for row in document["rows"] if row["against_baseline"]]
    return "\n".join(lines)


@contextmanager
def _locked(options: CheckOptions, latency: LatencySettings | None, locks: list[ClockLock]) -> Iterator[None]:
    """Locked clocks for interleaved timings; what was changed is added to `locks`."""
    with locked_clocks(options.lock_clocks and latency is not None, options.power_mode) as lock:
        if lock is not None:
            locks.append(lock)
        yield


def _time(paths: Sequence[Path], latency: LatencySettings, progress: Progress | None) -> dict[Path, LatencyReport]:
    """Time those bundles whose engines are what they say they are."""
    sound = [path for path in paths if executed_precision(load_bundle(path)).status != "wrong"]

    def report(done: int, total: int) -> None:
        if progress:
            progress("latency", done, total)

    return dict(zip(sound, measure_interleaved(sound, latency, progress=report), strict=True)) if sound else {}


def _compare(
    paths: Sequence[Path],
    reports: Mapping[Path, LatencyReport],
    latency: LatencySettings,
    baseline: Path,
    progress: Progress | None,
) -> dict[Path, LatencyComparison]:
    """Every timed bundle against the baseline; what looks like a regression is measured once more."""
    comparisons = {}
    for path in paths:
        if path == baseline or path not in reports or baseline not in reports:
            continue

        def measure_again(candidate: Path = path) -> tuple[LatencyReport, LatencyReport]:
            again = _time([baseline, candidate], latency, progress)
            return again[baseline], again[candidate]

        comparisons[path] = settle_regression(compare_latency(reports[baseline], reports[path]), measure_again)
    return comparisons


def _row(document: Mapping[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    attacks = {attack["name"]: attack for attack in document["attacks"]}
    return {
        "label": folder.name,
        "name": document["bundle"]["name"],
        "path": str(path),
        "result": str(folder / "result.json"),
        "clean": attacks.get("clean"),
        "robust": attacks.get("worst_case"),
        "latency": document["latency"],
        "energy": document.get("energy"),
        "verdict": document["verdict"]["name"],
        "accepted_alarms": [alarm["name"] for alarm in accepted_alarms(document)],
    }


def _with_baseline(bundles: Sequence[Path], baseline: Path | None) -> list[Path]:
    paths = list(dict.fromkeys([baseline, *bundles] if baseline and baseline not in bundles else bundles))
    if baseline and len(paths) < 2:
        raise HardbitError(
            "there is nothing to compare with the baseline", where=str(baseline), remedy="name a candidate"
        )
    return paths


def _folders(paths: Sequence[Path], out_dir: Path) -> list[Path]:
    """A folder of results for each bundle, named after it; bundles of the same name are numbered."""
    folders: list[Path] = []
    for path in paths:
        name = path.resolve().name
        numbered = (out_dir / (f"{name}-{number}" if number > 1 else name) for number in itertools.count(1))
        folders.append(next(folder for folder in numbered if folder not in folders))
    return folders


def _prefixed(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None

    def report(stage: str, done: int, total: int) -> None:
        progress(f"{name}: {stage}", done, total)

    return report


def _sentence(row: Mapping[str, Any]) -> str:
    seen = row["against_baseline"]
    if not seen["equal_grades"]:
        return f"  {row['label']}: not compared with the baseline, for the grades of the timings differ"
    change = f"{seen['ratio']:.3f} times the baseline ({seen['difference_us']:+.0f} us)"
    judgement = "a REGRESSION, seen twice" if seen["regression"] else "no regression"
    return f"  {row['label']}: {change}: {judgement}"
