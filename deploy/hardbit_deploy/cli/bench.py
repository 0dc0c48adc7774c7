"""Measure latency against robustness for several bundles side by side, as one table.

Each bundle is checked as `check` does; the timings are interleaved, A B B A, so that a drift of the machine hits all
alike. With --baseline the others are compared with it: slower by more than 3 % for sure and by more than 20 us, twice,
is a regression and exit code 1. A bundle whose engine is WRONG_ENGINE is not timed, and the exit code is 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hardbit_deploy.cli.check import add_evaluation_arguments, add_latency_arguments, latency_settings
from hardbit_deploy.cli.parsing import write_text

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = """\
  hardbit-deploy bench BUNDLE BUNDLE
  hardbit-deploy bench CANDIDATE --baseline RELEASED --json bench.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command; the host's `hardbit bench` has the same."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="folders of bundles")
    parser.add_argument(
        "--baseline", type=Path, metavar="BUNDLE", help="compare the latency of the others with this one"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="results (default: runs/bench)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON; - for stdout")
    add_evaluation_arguments(parser)
    add_latency_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and return 0, 1 or 2."""
    from hardbit_deploy.bench import bench, bench_table
    from hardbit_deploy.cli.check import check_options
    from hardbit_deploy.cli.progress import ProgressLine
    from hardbit_deploy.results import document_text

    with ProgressLine() as progress:
        document = bench(
            args.bundles,
            args.out,
            check_options(args),
            latency_settings(args),
            baseline=args.baseline,
            progress=progress,
        )
    if args.json:
        write_text(args.json, document_text(document))
    if args.json != "-":
        print(bench_table(document))
        print(f"\nresults in {args.out}")
    return int(document["exit_code"])
