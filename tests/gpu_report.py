"""Runs every test that is marked `gpu` and writes what ran, what failed and what was skipped: `make test-gpu`.

`python tests/gpu_report.py runs/gpu-report` leaves gpu-report.xml (JUnit) and gpu-report.txt, which names the machine
first and every skipped test with its reason. The exit code is pytest's, and 1 where nothing ran at all: a report of
skipped tests proves nothing about a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from hardbit_deploy.doctor import Finding, diagnose

ROOT = Path(__file__).parents[1]
NOTHING_RAN = 1
_SHOWN = ("python", "onnxruntime", "board", "power mode", "gpu clock", "gpu", "tensorrt", "tensorrt_rtx", "pycuda")


@dataclass(frozen=True)
class Outcome:
    """One test: `status` is "passed", "failed" or "skipped", `reason` is pytest's own for the last two."""

    name: str
    status: str
    seconds: float
    reason: str = ""


def read_outcomes(xml: str) -> list[Outcome]:
    """Outcomes of the tests in a JUnit file, in its order."""
    outcomes = []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        status = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
        reason = "" if problem is None else " ".join((problem.get("message") or "").split())
        outcomes.append(Outcome(name, status, float(case.get("time") or 0), reason))
    return outcomes


def report_text(outcomes: Sequence[Outcome], findings: Iterable[Finding]) -> str:
    """The report for people: counts first, then the machine, then every test that did not pass, then those that did."""
    groups = {
        status: [outcome for outcome in outcomes if outcome.status == status]
        for status in ("failed", "skipped", "passed")
    }
    ran = len(groups["failed"]) + len(groups["passed"])
    counts = ", ".join(f"{len(groups[status])} {status}" for status in ("passed", "failed", "skipped"))
    verdict = f"{ran} of {len(outcomes)} tests ran: {counts}" if ran else f"NOTHING RAN on a GPU here: {counts}"
    lines = [verdict, "", "Machine"]
    lines += [f"  {found.name}: {found.status}, {found.detail}" for found in findings if found.name in _SHOWN]
    for status, group in groups.items():
        if group:
            lines += ["", status.capitalize()]
            lines += [f"  {one.name} ({one.seconds:.1f} s){': ' + one.reason if one.reason else ''}" for one in group]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run the tests and write both files beside the name that is given."""
    stem = Path(arguments[0])
    stem.parent.mkdir(parents=True, exist_ok=True)
    xml, text = stem.with_suffix(".xml").resolve(), stem.with_suffix(".txt")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={xml}", *arguments[1:]]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    outcomes = read_outcomes(xml.read_text(encoding="utf-8")) if xml.is_file() else []
    text.write_text(report_text(outcomes, diagnose()), encoding="utf-8")
    sys.stdout.write(f"\nreport in {text} and {xml.name}\n")
    ran = any(outcome.status != "skipped" for outcome in outcomes)
    return code if ran else code or NOTHING_RAN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
