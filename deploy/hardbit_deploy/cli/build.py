"""Build a bundle's engine on this machine and show what it really executes, layer by layer.

For ONNX Runtime that is the session that the attacks and the timings will use, opened and profiled on one image. The
exit code is 0 if every layer that was declared integer runs on an integer kernel, else 2 (WRONG_ENGINE).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hardbit_deploy.cli.parsing import write_text

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = """\
  hardbit-deploy build BUNDLE
  hardbit-deploy build BUNDLE --json precision.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON; - for stdout")


def run(args: argparse.Namespace) -> int:
    """Build, show, and return 0 or the exit code of WRONG_ENGINE."""
    from hardbit_deploy.bundle import load_bundle
    from hardbit_deploy.engines import executed_precision, open_engine
    from hardbit_deploy.results import document_text
    from hardbit_deploy.summary import precision_table
    from hardbit_deploy.verdict import EXIT_CODES

    bundle = load_bundle(args.bundle)
    with open_engine(bundle) as engine:
        engine.infer(bundle.images[:1])
        runtime = engine.runtime
    precision = executed_precision(bundle).to_document()
    if args.json:
        write_text(args.json, document_text({"bundle": bundle.manifest.name, "runtime": runtime, **precision}))
    if args.json != "-":
        print(f"{bundle.manifest.name}: built on {runtime}")
        print(precision_table(precision))
    return EXIT_CODES["PASS"] if precision["status"] != "wrong" else EXIT_CODES["WRONG_ENGINE"]
