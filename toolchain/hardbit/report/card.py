"""The card of a model: how it was trained and what its engine scored, in Markdown, from a run's own records.

Boundary: writes down what a run measured; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hardbit.report.wording import agreement_label, attack_label, count, interval, milliseconds, percent

__all__ = ["model_card"]


def model_card(
    document: Mapping[str, Any],
    recipe: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    parameters: int,
    files: Mapping[str, int],
    command: str,
) -> str:
    """Markdown for the model that `document` (a result) judges.

    `recipe` is the resolved recipe as plain data, `training` the log of the train step, `files` the sizes in bytes of
    what ships, `command` what makes both weights and scores anew.
    """
    bits = recipe["quantization"]
    name, target = document["bundle"]["name"], document["bundle"]["target"]
    network = recipe["network"]
    parts = [
        f"# {name}",
        f"{network['architecture']} ({parameters:,} parameters) on {recipe['data']['set']}, "
        f"{bits['weights']}-bit weights, {bits['activations']}-bit activations, first and last layer "
        f"{bits['first_layer']} and {bits['last_layer']} bits, for the target `{target}`.",
        "## What the deployed engine scored",
        _scores(document),
        "## How it was trained",
        _training(recipe, training),
        "## Files",
        _table(("file", "bytes"), [(f"`{file}`", f"{size:,}") for file, size in files.items()]),
        "## Again",
        f"One command trains it and attacks it, and writes weights, this card and the bundle's manifest:\n\n"
        f"```\n{command}\n```",
        _provenance(document),
    ]
    return "\n\n".join(parts) + "\n"


def _scores(document: Mapping[str, Any]) -> str:
    model, suite = document["threat_model"], document["suite"]
    norm = {"linf": "L-inf", "l2": "L2"}[model["norm"]]
    rows = [
        (
            attack_label(a["name"]),
            f"{count(a['survivors'])} of {count(a['images'])}",
            percent(a["rate"]),
            interval(a["interval"]),
        )
        for a in document["attacks"]
    ]
    lines = [
        f"Verdict: **{document['verdict']['name']}**. Threat model: {norm}, eps {model['eps_255']:g}/255 on the byte "
        f"grid; the attacker knows the bundle, the engine receives bytes and decides. First {count(suite['images'])} "
        f"test images, every attack through the engine, PGD with {suite['restarts']} restart"
        f"{'' if suite['restarts'] == 1 else 's'} a loss; robust is what survives all attacks.",
        _table(("attack", "right", "rate", "95 % interval"), rows),
    ]
    agreement = [
        (agreement_label(a["name"]), f"{a['label_flips']} of {count(a['images'])}", f"{a['max_logit_difference']:.2g}")
        for a in document["agreement"]
    ]
    if agreement:
        lines += [
            "Engine against its twins:",
            _table(("with", "labels that differ", "largest logit difference"), agreement),
        ]
    latency = document.get("latency")
    if latency:
        lines.append(
            f"Latency ({latency['protocol']}, {latency['metric']}, batch 1, one thread, grade {latency['grade']}): "
            f"median {milliseconds(latency['p50_ms'])}, 90th percentile {milliseconds(latency['p90_ms'])}, 99th "
            f"{milliseconds(latency['p99_ms'])}, on {document['environment'].get('cpu', 'a CPU')}."
        )
    return "\n\n".join(lines)


def _training(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    rows = []
    history = list(training.get("history", ()))
    for phase in recipe["training"]["phases"]:
        done, history = history[: phase["epochs"]], history[phase["epochs"] :]
        last = f"{100 * done[-1]['adversarial_accuracy']:.1f} %" if done else "–"
        attack = phase["adversary"] if phase["adversary"] != "pgd" else f"pgd-{phase['steps']}"
        rows.append(
            (
                str(phase["epochs"]),
                attack,
                f"{phase['eps_255']:g}",
                f"{phase['learning_rate']:g}, {phase['schedule']}",
                "folded, scales fixed" if phase["frozen"] else "learning",
                last,
            )
        )
    seconds = sum(record["seconds"] for record in training.get("history", ()))
    header = (
        "epochs",
        "adversary",
        "eps / 255",
        "learning rate",
        "BatchNorm and scales",
        "training accuracy under attack",
    )
    plan = recipe["training"]
    return (
        f"Quantization-aware adversarial training with Brevitas, from random weights (seed {plan['seed']}), batch "
        f"{plan['batch_size']}, {plan['threads']} thread: {seconds / 60:.0f} minutes.\n\n{_table(header, rows)}"
    )


def _provenance(document: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    digest = document["bundle"]["manifest_sha256"]
    return f"Bundle manifest SHA-256 `{digest}`; measured {document['created']} with {versions}."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
