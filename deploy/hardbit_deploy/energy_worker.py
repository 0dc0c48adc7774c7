"""The load of a measurement of energy: `python -m hardbit_deploy.energy_worker BUNDLE --seconds=30 ...`.

Opens the bundle's engine, warms it up, says `ready`, answers one query after another for so many seconds, and says how
many as one line of JSON: `queries`, `seconds`. Started by energy.py, never by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.engines import open_engine
from hardbit_deploy.latency_worker import warm_up

__all__ = ["main", "query_for"]


def query_for(
    query: Callable[[int], None], seconds: float, clock_s: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    """Query until `seconds` have passed, at least once; how many queries, and the seconds that they took."""
    begun_s, queries = clock_s(), 0
    while True:
        query(queries)
        queries += 1
        elapsed_s = clock_s() - begun_s
        if elapsed_s >= seconds:
            return queries, elapsed_s


def main(argv: list[str] | None = None) -> int:
    """Draw power as told by the command line."""
    parser = argparse.ArgumentParser(prog="hardbit_deploy.energy_worker")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warmup-min-s", type=float, required=True)
    parser.add_argument("--warmup-max-s", type=float, required=True)
    options = parser.parse_args(argv)
    bundle = load_bundle(options.bundle)
    images = [np.ascontiguousarray(bundle.images[i : i + 1]) for i in range(min(256, len(bundle.images)))]
    with open_engine(bundle, threads=options.threads) as engine:

        def query(number: int) -> None:
            engine.infer(images[number % len(images)])

        warm_up(query, options.warmup_min_s, options.warmup_max_s)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        queries, seconds = query_for(query, options.seconds)
    sys.stdout.write(json.dumps({"queries": queries, "seconds": seconds}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
