"""One fresh process of a latency measurement: `python -m hardbit_deploy.latency_worker BUNDLE OUTPUT ...`.

Opens the bundle's engine, warms it up, times single queries from bytes on the host to logits on the host, and writes
an npz: `query_ms` float32 (queries,), `warmup_s`, `warmup_queries`, `settled`, `target`, and where the engine's device
has a clock of its own `device_ms` like `query_ms`. Started by latency.py, never by hand.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.engines import open_engine

__all__ = ["WarmUp", "main", "time_queries", "warm_up"]

SETTLED_WITHIN = 0.05  # the medians of two halves of a window of warm-up may differ by this much


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up saw."""

    seconds: float
    queries: int
    settled: bool


def warm_up(
    query: Callable[[int], None], min_s: float, max_s: float, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> WarmUp:
    """Query in windows of `min_s` until the medians of a window's two halves agree within 5 %, for `max_s` at most.

    Each window is judged by itself: slow first queries must not be averaged away, nor count against later windows.
    """
    started, queries = clock_ns(), 0
    while True:
        window_started = clock_ns()
        times: list[int] = []
        while not times or clock_ns() - window_started < min_s * 1e9 or len(times) < 2:
            before = clock_ns()
            query(queries)
            times.append(clock_ns() - before)
            queries += 1
        first, second = np.median(times[: len(times) // 2]), np.median(times[len(times) // 2 :])
        settled = bool(abs(first - second) <= SETTLED_WITHIN * min(first, second))
        seconds = (clock_ns() - started) / 1e9
        if settled or seconds + min_s > max_s:
            return WarmUp(seconds, queries, settled)


def time_queries(
    query: Callable[[int], None],
    queries: int,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    after: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Milliseconds of each of `queries` queries, one outstanding at a time; the collector of garbage stands still.

    `after` is called after each of them, outside of its time.
    """
    times_ns = np.empty(queries, np.int64)
    gc.collect()
    gc.disable()
    try:
        for number in range(queries):
            before = clock_ns()
            query(number)
            times_ns[number] = clock_ns() - before
            if after is not None:
                after(number)
    finally:
        gc.enable()
    return (times_ns / 1e6).astype(np.float32)


def main(argv: list[str] | None = None) -> int:
    """Measure as told by the command line."""
    parser = argparse.ArgumentParser(prog="hardbit_deploy.latency_worker")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--queries", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warmup-min-s", type=float, required=True)
    parser.add_argument("--warmup-max-s", type=float, required=True)
    options = parser.parse_args(argv)
    bundle = load_bundle(options.bundle)
    # Real images, in memory and contiguous: a memory-mapped file would put page faults into the first queries.
    images = [np.ascontiguousarray(bundle.images[i : i + 1]) for i in range(min(256, len(bundle.images)))]
    with open_engine(bundle, threads=options.threads) as engine:

        def query(number: int) -> None:
            engine.infer(images[number % len(images)])

        warmth = warm_up(query, options.warmup_min_s, options.warmup_max_s)
        device_ms: list[float] = []

        def note(number: int) -> None:
            if engine.device_ms is not None:
                device_ms.append(engine.device_ms)

        query_ms = time_queries(query, options.queries, after=note)
    measured: dict[str, Any] = {
        "query_ms": query_ms,
        "warmup_s": warmth.seconds,
        "warmup_queries": warmth.queries,
        "settled": warmth.settled,
        "target": bundle.manifest.target,
    }
    if device_ms:
        measured["device_ms"] = np.asarray(device_ms, np.float32)
    np.savez(options.output, **measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
