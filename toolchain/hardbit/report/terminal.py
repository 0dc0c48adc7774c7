"""The end of a run on a terminal: attacks with intervals, what was proved and measured, the verdict last."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hardbit.report import wording
from hardbit_deploy.known_alarms import accepted_alarms

__all__ = ["summary"]

WIDEST = 100
"""Columns that a summary takes at most: longer lines are hard to read."""
COLOURS = {
    "PASS": "green",
    "FAIL": "red",
    "INCONCLUSIVE": "yellow",
    "WRONG_ENGINE": "magenta",
    "ENV_MISMATCH": "blue",
}
STATUS_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def summary(document: Mapping[str, Any], width: int | None = None, colour: bool | None = None) -> str:
    """Lines to print; None means for `width` the terminal's, at most 100, and for `colour`: on a terminal, unless the
    environment says NO_COLOR (https://no-color.org)."""
    from rich.console import Console

    if width is None:
        width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    console = Console(file=io.StringIO(), width=width, force_terminal=colour, no_color=not colour, highlight=False)
    with console.capture() as printed:
        for part in _parts(document):
            console.print(part, markup=False, emoji=False)  # a name is a name, whatever is in it
    return "\n".join(line.rstrip() for line in printed.get().splitlines()) + "\n"


def _parts(document: Mapping[str, Any]) -> Iterator[Any]:
    bundle = document["bundle"]
    yield f"{bundle['name']} on {bundle['target']}: {wording.perturbation(document['threat_model'])};"
    yield "the attacker knows the bundle, the engine receives bytes, the engine decides\n"
    yield _attacks(document)
    yield _facts(document)
    yield from _verdict(document)


def _attacks(document: Mapping[str, Any]) -> Any:
    from rich.table import Table

    measured = [attack for attack in document["attacks"] if attack.get("rate") is not None]
    if not measured:
        return f"Attacks not run: {wording.not_run_reason(document)}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("attack")
    for name in ("survive", "rate", "95 % interval"):
        table.add_column(name, justify="right")
    for attack in measured:
        survivors = f"{wording.count(attack['survivors'])} of {wording.count(attack['images'])}"
        rate = wording.percent(attack["rate"]), wording.interval(attack["interval"])
        style = "bold" if attack["name"] == "worst_case" else None
        table.add_row(wording.attack_label(attack["name"]), survivors, *rate, style=style)
    return table


def _facts(document: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    latency = document["latency"]
    reason = f"not run: {wording.not_run_reason(document)}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_row("")
    kernels = wording.precision_in_words(document["precision"], "layers run on integer kernels")
    table.add_row("precision", kernels)
    table.add_row("alarms", _alarms(document) if document["alarms"] else reason)
    table.add_row("latency", f"{_quantiles(latency)}; grade {latency['grade']}" if latency else reason)
    told = document["verdict"]["reasons"]
    for rule in (rule for rule in document["gate"] if rule["reason"] not in told):
        status = Text(rule["status"], STATUS_COLOURS.get(rule["status"], ""))
        table.add_row(f"gate: {rule['name']}", Text.assemble(status, f", {rule['reason']}"))
    table.add_row("")
    return table


def _alarms(document: Mapping[str, Any]) -> str:
    """Those that went off; those that the gate knows of are told apart, not left out."""
    raised = [alarm["name"] for alarm in document["alarms"] if alarm["status"] == "alarm"]
    accepted = [alarm["name"] for alarm in accepted_alarms(document)]
    parts = [wording.listing(raised), f"accepted: {wording.listing(accepted)}" if accepted else ""]
    return "; ".join(part for part in parts if part) or "none"


def _quantiles(latency: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {wording.milliseconds(latency[f'{name}_ms'])}" for name in ("p50", "p90", "p99"))


def _verdict(document: Mapping[str, Any]) -> Iterator[Any]:
    from rich.padding import Padding
    from rich.text import Text

    verdict = document["verdict"]
    name = Text(verdict["name"], f"bold {COLOURS.get(verdict['name'], '')}".strip())
    yield Text.assemble(name, f" (exit code {verdict['exit_code']}): {wording.headline(document)}")
    for reason in verdict["reasons"]:
        yield Padding(Text(reason), (0, 0, 0, 2))
    for step in wording.next_steps(document):
        yield f"What to do: {step}"
