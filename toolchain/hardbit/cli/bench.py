"""Measure latency against robustness of several bundles, as a table and a picture.

Each bundle is checked as `hardbit check` does; the timings are interleaved, A B B A, so that a drift of the machine
hits all alike. With --baseline the others are compared with it: slower by more than 3 % for sure and by more than
20 us, twice, is a regression and exit code 1. A bundle whose engine is WRONG_ENGINE is not timed, and the exit code
is 2."""

from __future__ import annotations

import argparse
from pathlib import Path

from hardbit_deploy.cli import bench as board

EXAMPLES = """\
  hardbit bench w8a8/bundle w4a4/bundle --html bench.html
  hardbit bench CANDIDATE --baseline RELEASED --svg bench.svg --json bench.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    board.add_arguments(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the results side by side as one page of HTML")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture alone")


def run(args: argparse.Namespace) -> int:
    from hardbit.report import bench_picture, html_report
    from hardbit_deploy.bench import bench, bench_table
    from hardbit_deploy.cli.check import check_options, latency_settings
    from hardbit_deploy.cli.parsing import write_text
    from hardbit_deploy.cli.progress import ProgressLine
    from hardbit_deploy.errors import HardbitError
    from hardbit_deploy.results import document_text, load_result

    if args.svg is not None and args.no_latency:
        raise HardbitError("there is no picture without latencies", where="--svg", remedy="leave out --no-latency")
    with ProgressLine() as progress:
        document = bench(
            args.bundles, args.out, check_options(args), latency_settings(args), args.baseline, progress=progress
        )
    results = [load_result(row["result"]) for row in document["rows"]]
    if args.json:
        write_text(args.json, document_text(document))
    if args.json != "-":
        print(bench_table(document))
    if args.html is not None:
        write_text(str(args.html), html_report(results))
    if args.svg is not None:
        if all(result["latency"] is None for result in results):
            raise HardbitError("no bundle could be timed: there is nothing to draw", where="--svg")
        write_text(str(args.svg), bench_picture(results))
    return int(document["exit_code"])
