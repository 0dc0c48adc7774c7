"""card.md: what a published model is, what its engine scored and what limits that, for people.

Boundary: says in Markdown what a `hardbit.zoo.card.Card` holds; adds no number of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hardbit.report.wording import (
    MISSING,
    agreement_label,
    attack_label,
    count,
    interval,
    milliseconds,
    percent,
)
from hardbit.zoo.card import Alarm, Card, Phase
from hardbit_deploy.network_bits import gain_of_few_bits

__all__ = ["model_card", "scores"]

FLOAT = 32
_NORMS = {"linf": "L-inf", "l2": "L2"}


def model_card(card: Card) -> str:
    """The whole page."""
    parts = [
        f"# {card.name}",
        _what_it_is(card),
        "## What the deployed engine scored",
        _conditions(card),
        scores(card),
        _agreement(card),
        "## What limits these numbers",
        "\n".join(f"- {note}" for note in (*card.notes, *_alarms(card.alarms))),
        "## How it was trained",
        _training(card),
        "## Files",
        _table(("file", "bytes"), [(f"`{file}`", f"{size:,}") for file, size in card.files.items()]),
        "## Again",
        "One command trains it and attacks it, and writes weights, this card, the same for machines (`card.json`) and "
        f"the bundle's manifest:\n\n```\n{card.provenance.command}\n```",
        _provenance(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def scores(card: Card) -> str:
    """The table of attacks, the strongest of them, and the latency: also what a page about the model quotes."""
    rows = [
        (
            attack_label(attack.name),
            f"{count(attack.survivors)} of {count(attack.images)}",
            percent(attack.rate),
            interval(attack.interval),
        )
        for attack in card.attacks
    ]
    lines = [_table(("attack", "right", "rate", "95 % interval"), rows)]
    given = [attack for attack in card.attacks if attack.attacked is not None]
    if given:
        told = ", ".join(f"{attack_label(a.name)} {count(a.fell)} of {count(a.attacked)}" for a in given)
        lines.append(
            f"Further attacks were made one after another on what still stood, and felled of it: {told}. Their rows "
            "count what stands after them."
        )
    worst = card.attack(card.worst_attack) if card.worst_attack else None
    if worst is not None:
        lines.append(f"The strongest single attack was {attack_label(worst.name)}: {percent(worst.rate)} survived it.")
    latency = card.latency
    if latency is not None:
        lines.append(
            f"Latency ({latency.protocol}, {latency.metric}, batch 1, one thread, grade {latency.grade}): median "
            f"{milliseconds(latency.p50_ms)}, 90th percentile {milliseconds(latency.p90_ms)}, 99th "
            f"{milliseconds(latency.p99_ms)}, on {latency.processor}."
        )
    return "\n\n".join(lines)


def _what_it_is(card: Card) -> str:
    network, bits, engine = card.network, card.bits, card.engine
    first, last = (_width(width) for width in (bits.first_layer, bits.last_layer))
    if {bits.weights, bits.activations, bits.first_layer, bits.last_layer} == {FLOAT}:
        widths = "in 32-bit float throughout"
    else:
        ends = (
            f"{first} in the first and last layer" if first == last else f"{first} in the first and {last} in the last"
        )
        widths = f"weights in {_width(bits.weights)} ({ends}), activations in {_width(bits.activations)}"
    own = "; ".join(f"`{name}` in {_width(width)}" for name, width in bits.layers.items())
    text = (
        f"{network.architecture} ({network.parameters:,} parameters) on {card.data.set}, {network.classes} classes, "
        f"{widths}{f', {own}' if own else ''}.\n\nEngine: {engine.runtime}, a graph of {engine.bytes:,} bytes. "
    )
    gain = gain_of_few_bits(engine.target, bits.model_dump())
    text += f"{gain} " if gain else ""
    integer = engine.integer_layers
    text += f"Layers proved to run on integer kernels: {integer}." if integer else "No layer runs on an integer kernel."
    reasons: dict[str, list[str]] = {}
    for layer in engine.float_layers:
        reasons.setdefault(layer.reason, []).append(f"`{layer.name}`")
    for reason, names in reasons.items():
        text += f" In float, because {reason}: {', '.join(names)}."
    return text


def _width(width: int) -> str:
    return "float" if width == FLOAT else f"{width} bit{'' if width == 1 else 's'}"


def _conditions(card: Card) -> str:
    suite, evaluation = card.suite, card.evaluation
    of_all = f" of {evaluation.published:,}" if evaluation.published else ""
    restarts = suite.get("restarts", 1)
    return (
        f"Verdict: **{card.verdict}**. Threat model: {_NORMS[card.threat_model.norm]}, eps "
        f"{card.threat_model.eps_255:g}/255 on the byte grid; the attacker knows the bundle, the engine receives bytes "
        f"and decides. {evaluation.images:,}{of_all} {evaluation.split} images of {evaluation.set}, every attack "
        f"through the engine, PGD with {restarts} restart{'' if restarts == 1 else 's'} a loss; robust is what "
        "survives all attacks."
    )


def _agreement(card: Card) -> str:
    if not card.agreement:
        return ""
    rows = [
        (
            agreement_label(entry.name),
            f"{entry.label_flips} of {count(entry.images)}",
            MISSING if entry.max_logit_difference is None else f"{entry.max_logit_difference:.2g}",
        )
        for entry in card.agreement
    ]
    return f"Engine against its twins:\n\n{_table(('with', 'labels that differ', 'largest logit difference'), rows)}"


def _alarms(alarms: Sequence[Alarm]) -> Iterable[str]:
    """One line for all that passed, one for each that did not."""
    passed = [alarm.name.replace("_", " ") for alarm in alarms if alarm.status == "pass"]
    if passed:
        yield f"Checks of the evaluation that passed: {', '.join(passed)}."
    for alarm in alarms:
        if alarm.status != "pass":
            word = "Not run" if alarm.status == "not_run" else "ALARM"
            because = f"; the gate accepts it because {alarm.accepted_because}" if alarm.accepted_because else ""
            yield f"{word}: {alarm.name.replace('_', ' ')} ({alarm.reason}){because}."


def _training(card: Card) -> str:
    data, training, bits = card.data, card.training, card.bits
    is_float = {bits.weights, bits.activations} == {FLOAT}
    kind = "Adversarial training in float" if is_float else "Quantization-aware adversarial training with Brevitas"
    start = f"the weights `{training.initial_weights}`" if training.initial_weights else "random weights"
    teacher = f", with the teacher `{training.teacher}`" if training.teacher else ""
    threads = f"{training.threads} thread{'' if training.threads == 1 else 's'}"
    lines = [
        f"{kind}, from {start} (seed {training.seed}){teacher}, batch {training.batch_size}, {threads}: "
        f"{training.seconds / 60:.0f} minutes.",
        f"Data: {data.images:,} images{_held_out(data.held_out)}; {data.provenance}.",
        _table(_PHASE_COLUMNS, [_phase(phase) for phase in training.phases]),
    ]
    if data.sha256:
        lines[1] += f" SHA-256 of all images and labels of the split: `{data.sha256}`."
    if training.overfitting_epochs:
        epochs = ", ".join(map(str, training.overfitting_epochs))
        lines.append(
            f"Catastrophic overfitting was seen in epoch {epochs}: accuracy under PGD fell while accuracy under the "
            "training adversary did not."
        )
    return "\n\n".join(lines)


def _held_out(images: int) -> str:
    return f", after {images:,} were held out" if images else ""


_PHASE_COLUMNS = (
    "epochs",
    "adversary",
    "loss",
    "eps / 255",
    "learning rate",
    "weights, activations",
    "BatchNorm and scales",
    "training accuracy under attack",
)


def _phase(phase: Phase) -> tuple[str, ...]:
    frozen = "folded" if {phase.weights, phase.activations} == {FLOAT} else "folded, scales fixed"
    return (
        str(phase.epochs),
        phase.adversary,
        phase.loss.replace("_", "-"),
        f"{phase.eps_255:g}",
        f"{phase.learning_rate:g}, {phase.schedule}",
        f"{_width(phase.weights)}, {_width(phase.activations)}",
        frozen if phase.frozen else "learning",
        percent(phase.adversarial_accuracy),
    )


def _provenance(card: Card) -> str:
    made = card.provenance
    versions = ", ".join(f"{name} {value}" for name, value in made.versions.items())
    return (
        f"SHA-256 of the bundle's manifest `{made.manifest_sha256}`, of the weights `{made.weights_sha256}`; measured "
        f"{made.measured} with {versions}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
