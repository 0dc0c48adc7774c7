"""What every command of hardbit's command lines shares: exit codes, one-line errors, numbers and files as arguments."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from hardbit_deploy.errors import HardbitError

__all__ = [
    "EXIT_DEFECT",
    "EXIT_INTERRUPTED",
    "ArgumentParser",
    "positive_integer",
    "run_command",
    "whole_number",
    "write_text",
]

EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
EXIT_DEFECT = 70  # EX_SOFTWARE: Python's own 1 would read as the verdict FAIL


class ArgumentParser(argparse.ArgumentParser):
    """argparse ends wrong calls with exit code 2, which is the verdict WRONG_ENGINE here: 64 (EX_USAGE) instead."""

    def error(self, message: str) -> NoReturn:
        self.exit(HardbitError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")


def run_command(program: str, arguments: argparse.Namespace) -> int:
    """Run the command that was parsed; a user's mistake becomes one line on stderr and exit code 64, a defect 70."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no reason to stop
    try:
        return int(arguments.run(arguments))
    except HardbitError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does. Python would complain once more while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        print(f"{program}: this is a defect of hardbit or of its runtime, not of your input", file=sys.stderr)
        return EXIT_DEFECT


def positive_integer(text: str) -> int:
    """An argument that is a whole number of at least one."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return value


def whole_number(text: str) -> int:
    """An argument that is a whole number, zero or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def write_text(destination: str, text: str) -> None:
    """Write to a file, or to stdout for `-`: as UTF-8 in either case, for that is what JSON and XML are in."""
    if destination == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.flush()
        return
    path = Path(destination)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HardbitError(f"cannot be written: {error.strerror}", where=destination) from error
