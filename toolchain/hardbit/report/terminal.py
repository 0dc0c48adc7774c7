"""The end of a run on a terminal: verdict and reasons, attacks with intervals, latency, precision."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

from hardbit.report import wording

__all__ = ["summary"]

COLOURS = {
    "PASS": "green",
    "FAIL": "red",
    "INCONCLUSIVE": "yellow",
    "WRONG_ENGINE": "magenta",
    "ENV_MISMATCH": "blue",
}


def summary(document: Mapping[str, Any], width: int = 100, colour: bool | None = None) -> str:
    """Lines to print; `colour` None means: where standard output is a terminal."""
    from rich.console import Console
    from rich.text import Text

    colour = sys.stdout.isatty() if colour is None else colour
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=width, force_terminal=colour, no_color=not colour, highlight=False, markup=False
    )
    verdict, bundle = document["verdict"], document["bundle"]
    style = f"bold {COLOURS.get(verdict['name'], 'white')}"
    console.print(
        Text(verdict["name"], style), f"{bundle['name']} on {bundle['target']}, exit code {verdict['exit_code']}"
    )
    console.print(f"  {wording.verdict_wording(verdict['name']).headline}")
    for reason in verdict["reasons"]:
        console.print(f"  - {reason}")
    console.print(f"\nThreat model: {wording.perturbation(document['threat_model'])};")
    console.print("the attacker knows the bundle, the engine receives bytes, the engine decides.\n")
    console.print(_attacks(document))
    console.print(_facts(document))
    for step in wording.next_steps(document):
        console.print(f"What to do: {step}")
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _attacks(document: Mapping[str, Any]) -> Any:
    from rich.table import Table

    measured = [attack for attack in document["attacks"] if attack.get("rate") is not None]
    if not measured:
        return f"Attacks not run: {wording.not_run_reason(document)}."
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("attack")
    for name in ("images", "survivors", "rate", "95 % interval"):
        table.add_column(name, justify="right")
    for attack in measured:
        cells = wording.count(attack["images"]), wording.count(attack["survivors"])
        rate = wording.percent(attack["rate"]), wording.interval(attack["interval"])
        style = "bold" if attack["name"] == "worst_case" else None
        table.add_row(wording.attack_label(attack["name"]), *cells, *rate, style=style)
    return table


def _facts(document: Mapping[str, Any]) -> str:
    nodes, latency = document["precision"]["nodes"], document["latency"]
    integer = sum(bool(node["integer"]) for node in nodes)
    alarms = [alarm["name"] for alarm in document["alarms"] if alarm["status"] == "alarm"]
    lines = [
        f"Precision   {integer} of {len(nodes)} declared nodes run as integer kernels"
        if nodes
        else "Precision   not run",
        f"Alarms      {wording.listing(alarms) if alarms else 'none'}" if document["alarms"] else "Alarms      not run",
    ]
    if latency:
        quantiles = ", ".join(f"{name} {wording.milliseconds(latency[f'{name}_ms'])}" for name in ("p50", "p90", "p99"))
        lines.append(f"Latency     {quantiles} a query; grade {latency['grade']}")
    else:
        lines.append(f"Latency     not run: {wording.not_run_reason(document)}")
    for rule in document["gate"]:
        lines.append(f"Gate        {rule['name']}: {rule['status']}; {rule['reason']}")
    return "\n" + "\n".join(lines) + "\n"
