"""Check a bundle on this machine: agreement, attacks, latency, gate.

The same harness as `hardbit-deploy check` on a board, and the same result. The bundle is verified, its executed
precision proved, the engine attacked and timed, the gate judged. Ctrl-C keeps what was measured: the same command goes
on from there. Exit codes: 0 PASS, 1 FAIL, 75 INCONCLUSIVE, 2 WRONG_ENGINE, 3 ENV_MISMATCH, 64 a mistake in the call."""

from __future__ import annotations

import argparse
from pathlib import Path

from hardbit_deploy.cli import check as board
from hardbit_deploy.cli.parsing import EXIT_INTERRUPTED

EXAMPLES = """\
  hardbit check runs/fashion-cnn-w4a4/bundle
  hardbit check BUNDLE --gate gate.toml --junit out.xml --json out.json --html out.html
  hardbit check BUNDLE --images 200 --suite quick --no-latency"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    board.add_arguments(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the result as one page of HTML")


def run(args: argparse.Namespace) -> int:
    args.out = args.out or _out_folder(args.bundle)
    code = board.run(args)
    if args.html is not None and code != EXIT_INTERRUPTED:
        from hardbit.report import html_report
        from hardbit_deploy.cli.parsing import write_text
        from hardbit_deploy.results import load_result

        write_text(str(args.html), html_report(load_result(args.out), args.out))
    return code


def _out_folder(bundle: Path) -> Path:
    """runs/NAME-check: NAME is the folder's, or its run's where it is the `bundle` that every run leaves."""
    folder = bundle.resolve()
    name = folder.parent.name if folder.name == "bundle" else folder.name
    return Path("runs") / f"{name}-check"
