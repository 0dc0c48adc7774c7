"""A result document as a page of text: what was attacked, what it withstood, what is doubtful, the verdict last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hardbit_deploy.energy import energy_in_words
from hardbit_deploy.known_alarms import alarm_in_words
from hardbit_deploy.network_bits import gain_of_few_bits
from hardbit_deploy.text_table import text_table

__all__ = ["percent", "precision_table", "result_summary", "taps_table"]

_NORMS = {"linf": "L-inf", "l2": "L2"}


def result_summary(document: Mapping[str, Any]) -> str:
    """The whole result on one screen, plain text without colours."""
    return "\n".join(_sections(document)) + "\n"


def precision_table(precision: Mapping[str, Any]) -> str:
    """What the engine executes for each layer that was declared integer, and what is wrong with it."""
    if precision["status"] == "not_run":
        return "Executed precision: not proved"
    nodes = precision["nodes"]
    integer = sum(node["integer"] for node in nodes)
    rows = [
        (
            "ok" if node["integer"] else "WRONG",
            node["name"],
            node["op"],
            node["executed"] or "not found",
            " x ".join(node["operand_types"]),
        )
        for node in nodes
    ]
    lines = [f"Executed precision: {integer} of {len(nodes)} layers declared integer run on integer kernels"]
    if precision["status"] == "float":
        lines = ["Executed precision: no layer is declared integer, the network runs in float"]
    lines += [text_table(rows, "<<<<<")] if rows else []
    lines += [f"  declared float: {layer}" for layer in precision.get("declared_float", [])]
    lines += [f"  problem: {problem}" for problem in precision["problems"]]
    return "\n".join(lines)


def taps_table(taps: Mapping[str, Any]) -> str:
    """Codes of the engine's layers against those of the canonical graph; every layer that diverges has a row."""
    if taps["status"] == "not_run":
        return f"Layer taps: not run, {'; '.join(taps['problems'])}"
    lines, rows = ["Layer taps, engine against canonical graph, in LSB of each layer"], []
    for kind in taps["kinds"]:
        layers = [layer for layer in kind["layers"] if layer["largest_lsb"]]
        values = sum(layer["values"] for layer in kind["layers"])
        first = kind["first_divergent"]
        said = "all codes are equal" if first is None else f"the first that diverges is {first}"
        lines.append(
            f"  {kind['name']}: {kind['images']:,} images, {len(kind['layers'])} layers, {values:,} codes; {said}"
        )
        for layer in layers:
            counts = (f"{count:,}" for count in layer["histogram"])
            rows.append((kind["name"], layer["node"], *counts, f"{100 * layer['share_apart']:.3g} %"))
    if rows:
        lines.append(text_table([("", "layer", "0", "1", "2", "3 and more", "apart"), *rows], "<<>>>>>"))
    return "\n".join(lines)


def percent(rate: float) -> str:
    """A rate as people read it: 66.9 %."""
    return f"{100 * rate:.1f} %"


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    yield _heading(document)
    yield ""
    yield precision_table(document["precision"])
    if document["agreement"]:
        yield from ("", "Agreement of the engine with its twins", text_table(_agreement(document["agreement"]), "<>>>"))
    if "taps" in document:
        yield from ("", taps_table(document["taps"]))
    if document["attacks"]:
        rows = _attacks(document["attacks"])
        yield from ("", "Attacks", text_table(rows, "<>>><"[: len(rows[0])]))
    if document["eps_curve"]:
        points = (f"{point['eps_255']:g}: {percent(point['rate'])}" for point in document["eps_curve"])
        yield from ("", f"Robust accuracy by eps, in grey levels  {', '.join(points)}")
    if document.get("corruptions"):
        images = document["corruptions"][0]["images"]
        heading = f"Accuracy under corruptions, severities rising, {images:,} images (not part of the worst case)"
        rows = _corruptions(document["corruptions"])
        yield from ("", heading, text_table(rows, "<" + ">" * (len(rows[0]) - 1)))
    if document["alarms"]:
        rows = [(_STATUS[alarm["status"]], alarm["name"], alarm_in_words(alarm)) for alarm in document["alarms"]]
        yield from ("", "Alarms", text_table(rows, "<<<"))
    if document["latency"]:
        yield from ("", *_latency(document["latency"]))
    if "energy" in document:
        yield energy_in_words(document["energy"])
    if "clock_lock" in document:
        yield from _clock_lock(document["clock_lock"])
    if document["gate"]:
        rows = [(_STATUS[rule["status"]], rule["name"], rule["reason"]) for rule in document["gate"]]
        yield from ("", "Gate", text_table(rows, "<<<"))
    yield from ("", *_verdict(document["verdict"]))


_STATUS = {
    "pass": "ok",
    "alarm": "ALARM",
    "accepted": "accepted",
    "not_run": "not run",
    "fail": "FAIL",
    "inconclusive": "open",
}


def _heading(document: Mapping[str, Any]) -> str:
    bundle, machine, threat = document["bundle"], document["environment"], document["threat_model"]
    suite = document["suite"]
    version = machine.get(bundle["target"])
    runtime = f"{bundle['target']} {version}" if version else bundle["target"]
    norm = _NORMS.get(threat["norm"], threat["norm"])
    gain = gain_of_few_bits(bundle["target"], bundle["network"].get("bits"))
    return "\n".join(
        (
            f"{bundle['name']} for {bundle['target']}, on {runtime}, {machine['cpu']} ({machine['machine']})",
            f"{norm} eps {threat['eps_255']:g} grey levels, suite {suite['name']}, {suite['images']:,} images; "
            "the attacker knows the bundle, the engine decides from bytes",
            *([gain] if gain else []),
        )
    )


def _agreement(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "labels differ", "at most", "largest logit difference")]
    for entry in entries:
        difference = entry["max_logit_difference"]
        rows.append(
            (
                entry["name"].replace("_", " "),
                f"{entry['label_flips']:,} of {entry['images']:,}",
                f"{100 * entry['flips_upper_bound']:.2f} %",
                "-" if difference is None else f"{difference:.2g}",
            )
        )
    return rows


def _attacks(attacks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "survive", "rate", "95 % interval", "")]
    for attack in attacks:
        low, high = attack["interval"]
        given = f"  ({attack['fell']:,} of {attack['attacked']:,} given fell)" if "attacked" in attack else ""
        rows.append(
            (
                attack["name"].replace("_", " "),
                f"{attack['survivors']:,} of {attack['images']:,}",
                percent(attack["rate"]),
                f"{100 * low:.1f} to {100 * high:.1f}",
                given,
            )
        )
    return rows if any(row[-1] for row in rows) else [row[:-1] for row in rows]


def _corruptions(corruptions: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each kind, severities rising."""
    kinds = dict.fromkeys(entry["kind"] for entry in corruptions)
    return [(kind, *(percent(entry["rate"]) for entry in corruptions if entry["kind"] == kind)) for kind in kinds]


def _latency(latency: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Latency, {latency['metric']} by {latency['protocol']}: {latency['queries']:,} queries in "
        f"{latency['processes']} processes, grade {latency['grade']} ({'; '.join(latency['grade_reasons'])})"
    )
    yield text_table(_quantiles(latency), "<><")
    if "device" in latency:
        yield f"Of that on the device, {latency['device']['metric']}, without copies"
        yield text_table(_quantiles(latency["device"]), "<><")


def _quantiles(timed: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name in ("p50", "p90", "p99"):
        low, high = timed[f"{name}_interval_ms"]
        rows.append((name, f"{timed[f'{name}_ms']:.4g} ms", f"{low:.4g} to {high:.4g} over processes"))
    return [*rows, ("min", f"{timed['min_ms']:.4g} ms", f"coefficient of variation {timed['cv']:.3f}")]


def _clock_lock(lock: Mapping[str, Any]) -> Iterator[str]:
    mode = f" in power mode {lock['power_mode']}" if lock["power_mode"] else ""
    undone = "" if lock["problems"] else ", and put back"
    yield f"Clocks locked by {lock['by']}{mode}{undone}"
    for problem in lock["problems"]:
        yield f"  WARNING: {problem}"


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    yield f"{verdict['name']} (exit code {verdict['exit_code']})"
    for reason in verdict["reasons"]:
        yield f"  {reason}"
