"""The command `hardbit`: one module a verb, imported when the verb is called, so that help answers at once.

Exit codes: what the verb returns (0 for success, a verdict's code for a verdict), 64 for a user's mistake, 70 for a
defect of hardbit, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from hardbit.processes import place
from hardbit_deploy.errors import HardbitError

__all__ = ["EXIT_DEFECT", "EXIT_INTERRUPTED", "EXIT_USAGE", "VERBS", "main"]

EXIT_USAGE = 64  # EX_USAGE of sysexits.h
EXIT_DEFECT = 70  # EX_SOFTWARE; Python's own 1 would read as the verdict FAIL
EXIT_INTERRUPTED = 130  # 128 + SIGINT

VERBS = {
    "run": "every step of a recipe, ending in a verdict and a report",
    "train": "train the network of a recipe, weights only",
    "convert": "a recipe, trained weights or any ONNX classifier to a bundle",
    "check": "the harness on this machine: agreement, attacks, latency, gate",
    "bench": "latency against robustness of several bundles",
    "report": "results as one page of HTML",
    "zoo": "the models of a folder with their figures",
    "doctor": "what this machine can do, and what is missing for the rest",
}
_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip
"""What the system says to a place that a user named: their mistake, or their disk, and no defect of hardbit."""
_ELSEWHERE = "name a place that can be written"
_INTERRUPTED = "interrupted; the same command goes on from the last finished piece of work"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv's for None) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in VERBS:
            return _run_verb(arguments[0], arguments[1:])
        return _answer_without_verb(arguments)
    except SystemExit as leaving:  # argparse, after help, version or a usage error
        return leaving.code if isinstance(leaving.code, int) else 0


def _run_verb(verb: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"hardbit.cli.{verb}")
    summary, _, description = (module.__doc__ or "").partition("\n")
    parser = _Parser(
        prog=f"hardbit {verb}",
        description=f"{summary}\n{description.rstrip()}",
        epilog=f"examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        _refuse_processes(verb)
        code: int = module.run(parsed)
        sys.stdout.flush()
        return code
    except HardbitError as error:
        return _say(error, wants_json=getattr(parsed, "json", None) is True)
    except KeyboardInterrupt:
        if _may_speak():
            sys.stderr.write(f"\n{_INTERRUPTED}\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `hardbit report | head`: nobody reads on
        sys.stderr.close()
        return 128 + 13
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            refusal = HardbitError(str(error.strerror), where=str(error.filename or ""), remedy=_ELSEWHERE)
            return _say(refusal, wants_json=getattr(parsed, "json", None) is True)
        if _may_speak():
            traceback.print_exc()
            sys.stderr.write("this is a defect of hardbit, not of your input\n")
        return EXIT_DEFECT


def _refuse_processes(verb: str) -> None:
    """Several processes share training; of anything else each would do the whole, and write it to the same place."""
    if verb != "train" and place().size > 1:
        raise HardbitError(
            f"'hardbit {verb}' runs in one process",
            where="torchrun",
            remedy="let torchrun start 'hardbit train', and then go on without torchrun",
        )


def _may_speak() -> bool:
    """Whether this process is the one that says what went wrong: of several, the first that fails."""
    if place().size == 1:
        return True
    from hardbit.train.distributed import is_first_to_fail

    return is_first_to_fail()


def _say(error: HardbitError, *, wants_json: bool) -> int:
    if not _may_speak():
        return error.exit_code
    if wants_json:
        document = {"error": {"message": error.message, "where": error.where, "remedy": error.remedy}}
        sys.stdout.write(json.dumps(document) + "\n")
    sys.stderr.write(f"{error}\n")
    return error.exit_code


def _answer_without_verb(arguments: list[str]) -> int:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items())
    parser = _Parser(
        prog="hardbit",
        usage="hardbit VERB ...",
        description="Ship robust image classifiers in few bits, and prove on the deployed engine that they stay "
        f"robust.\n\nverbs:\n{verbs}",
        epilog="start with:\n  hardbit doctor\n  hardbit run models/fashion-cnn-w4a4/recipe.toml\n\n"
        "'hardbit VERB --help' tells more",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    parsed, _ = parser.parse_known_args(arguments)
    if parsed.verb is None:
        parser.print_help()
        return EXIT_USAGE if arguments else 0
    close = difflib.get_close_matches(parsed.verb, VERBS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"the verbs are {', '.join(VERBS)}"
    sys.stderr.write(f"hardbit: there is no verb '{parsed.verb}'; {hint}\n")
    return EXIT_USAGE


class _Parser(argparse.ArgumentParser):
    """A mistake on the command line is one line and exit code 64."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; '{self.prog} --help' tells what there is\n")


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        sys.stdout.write(f"hardbit {version('hardbit')}\n")
        parser.exit()
