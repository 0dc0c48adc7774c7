"""Attack, time and judge a bundle on this machine, and say PASS, FAIL, or why not.

The harness verifies the bundle, proves which kernels its engine executes, measures how far engine and twin agree,
attacks the engine, times it, and judges the gate. Ctrl-C keeps what was measured: the same command goes on from there.
Exit codes: 0 PASS, 1 FAIL, 75 INCONCLUSIVE, 2 WRONG_ENGINE, 3 ENV_MISMATCH, 64 a mistake in the call.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hardbit_deploy.cli.parsing import EXIT_INTERRUPTED, positive_integer, whole_number, write_text
from hardbit_deploy.errors import HardbitError

__all__ = ["EXAMPLES", "add_arguments", "add_evaluation_arguments", "add_latency_arguments", "latency_settings", "run"]

EXAMPLES = """\
  hardbit-deploy check BUNDLE
  hardbit-deploy check BUNDLE --gate gate.toml --junit out.xml --json out.json
  hardbit-deploy check BUNDLE --images 200 --suite quick --no-latency"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command; the host's `hardbit check` has the same."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--gate", type=Path, metavar="FILE", help="gate.toml to judge by, instead of the bundle's gate")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of result.json and its arrays (default: runs/NAME-check)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result document there too; - for stdout")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML for a CI server; - for stdout")
    parser.add_argument(
        "--taps", action="store_true", help="compare the engine's codes with the canonical graph's, layer by layer"
    )
    add_evaluation_arguments(parser)
    parser.add_argument(
        "--transfer",
        type=Path,
        action="append",
        default=[],
        metavar="BUNDLE",
        help="try adversarial images of this network too; more than once for several",
    )
    add_latency_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="print the verdict only")


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """How hard to attack; what is not given is as the bundle declares it."""
    group = parser.add_argument_group("attacks", "what is not given is as the bundle declares it")
    group.add_argument("--suite", metavar="NAME", help="suite of attacks: quick, standard or full")
    group.add_argument("--steps", type=positive_integer, metavar="N", help="steps of PGD")
    group.add_argument("--restarts", type=positive_integer, metavar="N", help="restarts of PGD")
    group.add_argument(
        "--square-queries", type=whole_number, metavar="N", help="queries of Square for every image; 0 leaves it out"
    )
    group.add_argument("--images", type=positive_integer, metavar="N", help="only the first N images")
    group.add_argument("--seed", type=whole_number, metavar="N", help="seed of random starts and squares")
    group.add_argument(
        "--workers", type=positive_integer, metavar="N", help="threads that attack (default: one a core)"
    )


def add_latency_arguments(parser: argparse.ArgumentParser) -> None:
    """How to time; the default is the protocol latency-v1."""
    group = parser.add_argument_group("latency", "the default is latency-v1, about 15 seconds")
    group.add_argument(
        "--quick-latency",
        action="store_true",
        help="fewer processes and queries: reported as latency-v1-short, decides no gate",
    )
    group.add_argument("--no-latency", action="store_true", help="do not time at all")
    group.add_argument(
        "--no-energy", action="store_true", help="do not measure energy, which boards with power sensors are asked for"
    )
    group.add_argument(
        "--lock-clocks",
        action="store_true",
        help="lock a Jetson's clocks while it is timed, and put them back; as root",
    )
    group.add_argument(
        "--power-mode", type=whole_number, metavar="N", help="with --lock-clocks: nvpmodel's mode N, and put it back"
    )
    group.add_argument(
        "--threads", type=positive_integer, default=1, metavar="N", help="threads of the timed engine (default 1)"
    )


def run(args: argparse.Namespace) -> int:
    """Check and return the verdict's exit code."""
    from hardbit_deploy.check import check, work_folder
    from hardbit_deploy.cli.progress import ProgressLine
    from hardbit_deploy.junit import junit_xml
    from hardbit_deploy.results import document_text
    from hardbit_deploy.summary import result_summary

    if args.json == args.junit == "-":
        raise HardbitError("two documents on stdout are none", "--json and --junit", "write one of them to a file")
    out_dir = args.out or Path("runs") / f"{args.bundle.resolve().name}-check"
    try:
        with ProgressLine() as progress:
            document = check(args.bundle, args.gate, out_dir, check_options(args), progress)
    except KeyboardInterrupt:
        kept = f"; the same command goes on from {work_folder(out_dir)}" if work_folder(out_dir).is_dir() else ""
        print(f"interrupted{kept}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if args.json:
        write_text(args.json, document_text(document))
    if args.junit:
        write_text(args.junit, junit_xml(document))
    verdict = document["verdict"]
    people = sys.stderr if "-" in (args.json, args.junit) else sys.stdout
    text = f"{verdict['name']}: {'; '.join(verdict['reasons'])}\n" if args.quiet else result_summary(document)
    people.write(text)
    if not args.quiet:
        people.write(f"\nresult in {out_dir}\n")
    return int(verdict["exit_code"])


def check_options(args: argparse.Namespace) -> Any:
    """`CheckOptions` of the parsed options."""
    from hardbit_deploy.check import CheckOptions

    if args.lock_clocks and args.no_latency:
        raise HardbitError("locks clocks for timings only", "--lock-clocks", "leave out --no-latency")
    if args.power_mode is not None and not args.lock_clocks:
        raise HardbitError("is set for locked clocks only", "--power-mode", "give --lock-clocks too")
    return CheckOptions(
        suite=args.suite,
        steps=args.steps,
        restarts=args.restarts,
        square_queries=args.square_queries,
        seed=args.seed,
        images=args.images,
        workers=args.workers,
        transfer=tuple(getattr(args, "transfer", ())),
        taps=getattr(args, "taps", False),  # `bench` has neither of these
        latency=latency_settings(args),
        energy=energy_settings(args),
        lock_clocks=args.lock_clocks,
        power_mode=args.power_mode,
    )


def energy_settings(args: argparse.Namespace) -> Any:
    """`EnergySettings` of the parsed options, as thorough as the timing; None for no measurement of energy."""
    from dataclasses import replace

    from hardbit_deploy.energy import FULL_ENERGY, SHORT_ENERGY

    if args.no_latency or args.no_energy:
        return None
    return replace(SHORT_ENERGY if args.quick_latency else FULL_ENERGY, threads=args.threads)


def latency_settings(args: argparse.Namespace) -> Any:
    """`LatencySettings` of the parsed options, None for no timing."""
    from dataclasses import replace

    from hardbit_deploy.latency import FULL, SHORT

    if args.no_latency:
        return None
    return replace(SHORT if args.quick_latency else FULL, threads=args.threads)
