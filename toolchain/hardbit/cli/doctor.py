"""Tell what this machine can do, what is missing for the rest, and the command that brings it.

Looks only: installs nothing, downloads nothing, changes nothing. The exit code is 0 unless something is missing that
`hardbit run` itself needs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

EXAMPLES = """\
  hardbit doctor
  hardbit doctor --json"""

_MARKS = {
    "found": "[green]found  [/]",
    "missing": "[red]MISSING[/]",
    "limited": "[yellow]limited[/]",
    "optional": "absent ",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from hardbit.diagnosis import diagnose

    findings = diagnose()
    is_ready = all(finding.status != "missing" for finding in findings)
    if args.json:
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
