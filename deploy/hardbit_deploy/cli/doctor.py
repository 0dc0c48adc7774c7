"""Tell what this machine can do for a bundle, what is missing for the rest, and what brings it.

Looks only: installs nothing, changes nothing. The exit code is 0 unless something is missing that `hardbit-deploy
check` itself needs.
"""

from __future__ import annotations

import argparse

from hardbit_deploy.cli.parsing import write_text

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = """\
  hardbit-deploy doctor
  hardbit-deploy doctor --json -"""

_MARKS = {"found": "found", "missing": "MISSING", "optional": "absent", "limited": "limited"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", metavar="FILE", help="write the findings as JSON; - for stdout")


def run(args: argparse.Namespace) -> int:
    """Look, show, and return 0 or 1."""
    from dataclasses import asdict

    from hardbit_deploy.doctor import diagnose
    from hardbit_deploy.results import document_text
    from hardbit_deploy.text_table import text_table

    findings = diagnose()
    ready = all(finding.status != "missing" for finding in findings)
    if args.json:
        write_text(args.json, document_text({"ready": ready, "findings": [asdict(finding) for finding in findings]}))
    if args.json != "-":
        rows = []
        for finding in findings:
            rows.append((_MARKS[finding.status], finding.name, finding.detail))
            if finding.remedy:
                rows.append(("", "", f"-> {finding.remedy}"))
        print(text_table(rows, "<<<"))
        print(f"\n{'ready' if ready else 'not ready'} for hardbit-deploy check")
    return 0 if ready else 1
