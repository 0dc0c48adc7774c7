"""The command `hardbit-deploy`: check, build, bench and doctor on the board.

Nothing heavier than argparse is imported before a command runs, so help answers at once and doctor can speak on a
machine where a runtime is missing.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from hardbit_deploy.cli.parsing import ArgumentParser, run_command

__all__ = ["main"]

COMMANDS = ("check", "build", "bench", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = ArgumentParser(
        prog="hardbit-deploy",
        description="Attack, time and judge a deployed classifier on this machine.",
        epilog="Exit codes: 0 PASS, 1 FAIL, 2 WRONG_ENGINE, 3 ENV_MISMATCH, 75 INCONCLUSIVE, 64 a mistake in the call.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"hardbit_deploy.cli.{name}")
        summary, _, description = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}\n{description.rstrip()}",
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as leaving:  # argparse, after help or a mistake
        return leaving.code if isinstance(leaving.code, int) else 0
    return run_command(parser.prog, arguments)


if __name__ == "__main__":
    sys.exit(main())
