"""Tell what this machine can do, what is missing for the rest, and the command that brings it; or, with --onnx, which
nodes of a network an attack can pass through.

Looks only: installs nothing, downloads nothing, changes nothing. The exit code is 0 unless something is missing that
`hardbit run` itself needs, or a node that the gradient has to pass has no rule."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

EXAMPLES = """\
  hardbit doctor
  hardbit doctor --json
  hardbit doctor --onnx classifier.onnx"""

_MARKS = {
    "found": "[green]found  [/]",
    "missing": "[red]MISSING[/]",
    "limited": "[yellow]limited[/]",
    "optional": "absent ",
}
_COVERAGE_MARKS = {"covered": "[green]covered[/]", "missing": "[red]MISSING[/]", "not on the path": "beside "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="list which nodes of FILE have a gradient rule")


def run(args: argparse.Namespace) -> int:
    return _network(args.onnx, as_json=args.json) if args.onnx is not None else _machine(as_json=args.json)


def _machine(*, as_json: bool) -> int:
    from hardbit.diagnosis import diagnose

    findings = diagnose()
    is_ready = all(finding.status != "missing" for finding in findings)
    if as_json:
        print(json.dumps({"ready": is_ready, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 0 if is_ready else 1
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for finding in findings:
        console.print(f"{_MARKS[finding.status]}  {finding.name:<15} {escape(finding.detail)}", soft_wrap=True)
        if finding.remedy:
            console.print(f"{'':<25}-> {escape(finding.remedy)}", soft_wrap=True)
    console.print(f"\n{'ready' if is_ready else 'not ready'} for 'hardbit run'")
    return 0 if is_ready else 1


def _network(path: Path, *, as_json: bool) -> int:
    from hardbit.onnx_diagnosis import diagnose_onnx

    found = diagnose_onnx(path)
    code = 0 if found.is_covered else 1
    if as_json:
        nodes = [asdict(node) for node in found.nodes]
        document = {"file": str(path), "covered": found.is_covered, "refusal": found.refusal, "nodes": nodes}
        print(json.dumps(document, indent=1))
        return code
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for node in found.nodes:
        console.print(f"{_COVERAGE_MARKS[node.status]}  {node.operator:<22} {escape(node.name)}", soft_wrap=True)
        if node.reason:
            console.print(f"{'':<32}{escape(node.reason)}", soft_wrap=True)
    if found.refusal:
        console.print(f"\n'hardbit convert' does not take this file as it is: {escape(found.refusal)}", soft_wrap=True)
    covered = sum(node.status == "covered" for node in found.nodes)
    console.print(f"\n{covered} of {covered + len(found.missing)} nodes between image and logits have a gradient rule")
    return code
