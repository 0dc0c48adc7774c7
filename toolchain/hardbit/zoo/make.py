"""A finished run -> its card.

Boundary: puts together what the run's steps recorded, and adds the doubts that the numbers themselves give reason for;
measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hardbit.data.load import PUBLISHED
from hardbit.recipe import Recipe
from hardbit.zoo.card import (
    Agreement,
    Alarm,
    Attack,
    Bits,
    Card,
    Data,
    Engine,
    Evaluation,
    FloatLayer,
    Latency,
    Network,
    Phase,
    Provenance,
    ThreatModel,
    Training,
)

__all__ = ["make_card"]

_RAISED = ("alarm", "accepted")
_FEWEST_BITS_WITHOUT_DOUBT = 4  # below, straight-through gradients have been seen to mislead


def make_card(
    recipe: Recipe,
    document: Mapping[str, Any],
    training: Mapping[str, Any],
    manifest: Mapping[str, Any],
    *,
    parameters: int,
    files: Mapping[str, int],
    command: str,
) -> Card:
    """The card of the model that `document` (a result) judges.

    `training` is the log of the train step, `manifest` the bundle's, `parameters` counts the network's, `files` are the
    sizes in bytes of what ships, `command` is what makes weights and scores anew.
    """
    network, environment = recipe.network, document["environment"]
    attacks = tuple(_pick(Attack, attack) for attack in document["attacks"])
    single = [attack for attack in attacks if attack.name not in ("clean", "worst_case") and attack.attacked is None]
    target, bits = document["bundle"]["target"], Bits(**manifest["network"]["bits"])
    return Card(
        name=recipe.name,
        notes=(*([recipe.notes] if recipe.notes else []), *_doubts(recipe, document, attacks, bits)),
        network=Network(
            architecture=network.architecture,
            parameters=parameters,
            classes=network.classes,
            input_shape=network.input_shape,
        ),
        bits=bits,
        data=Data(
            set=recipe.data.set,
            provenance=str(training.get("data", "not recorded")),
            images=training.get("images", 0),
            held_out=training.get("validation", {}).get(
                "images", recipe.data.validation
            ),  # whole groups: it may be more
            sha256=training.get("data_sha256"),
        ),
        evaluation=Evaluation(
            set=recipe.data.set,
            split=recipe.data.evaluation.split,
            images=document["suite"]["images"],
            published=_published(recipe),
            sha256=document.get("evaluation", {}).get("images_sha256"),
        ),
        threat_model=_pick(ThreatModel, document["threat_model"]),
        suite={key: document["suite"][key] for key in _SUITE_KEYS if key in document["suite"]},
        verdict=document["verdict"]["name"],
        attacks=attacks,
        worst_attack=min(single, key=lambda attack: attack.rate).name if single else None,
        agreement=tuple(_pick(Agreement, entry) for entry in document["agreement"]),
        alarms=tuple(_pick(Alarm, alarm) for alarm in document["alarms"]),
        engine=Engine(
            target=target,
            runtime=f"{target} {environment.get(target) or ''}".strip(),
            bytes=files["bundle/engine.onnx"],
            integer_layers=len(manifest["engine"]["integer_nodes"]),
            float_layers=tuple(_pick(FloatLayer, node) for node in manifest["engine"].get("float_nodes", ())),
        ),
        latency=_latency(document),
        training=_training(recipe, training),
        files=dict(files),
        provenance=Provenance(
            measured=document["created"],
            command=command,
            manifest_sha256=document["bundle"]["manifest_sha256"],
            weights_sha256=manifest["provenance"]["weights_sha256"],
            versions=dict(document["versions"]),
        ),
    )


_SUITE_KEYS = ("name", "steps", "restarts", "losses", "surrogates", "square_queries", "attacks", "seed")


def _pick(part: type[Any], document: Mapping[str, Any]) -> Any:
    """The part made of those of its fields that the document has."""
    return part(**{key: document[key] for key in part.model_fields if key in document})


def _published(recipe: Recipe) -> int | None:
    data_set = PUBLISHED.get(recipe.data.set)
    return data_set.counts[recipe.data.evaluation.split] if data_set is not None else None


def _latency(document: Mapping[str, Any]) -> Latency | None:
    measured = document.get("latency")
    if measured is None:
        return None
    return _pick(Latency, measured | {"processor": document["environment"].get("cpu", "a processor")})


def _training(recipe: Recipe, training: Mapping[str, Any]) -> Training:
    plan, history = recipe.training, list(training.get("history", ()))
    return Training(
        seed=plan.seed,
        threads=plan.threads,
        batch_size=plan.batch_size,
        epochs=sum(phase.epochs for phase in plan.phases),
        seconds=round(sum(float(record.get("seconds", 0)) for record in history), 1),
        phases=tuple(_phases(recipe, history)),
        initial_weights=plan.initial_weights,
        teacher=plan.teacher,
        overfitting_epochs=tuple(record["epoch"] for record in history if record.get("overfitting")),
    )


def _phases(recipe: Recipe, history: Sequence[Mapping[str, Any]]) -> Iterator[Phase]:
    first = 0
    for phase in recipe.training.phases:
        done = history[first : first + phase.epochs]
        first += phase.epochs
        last = done[-1] if done else {}
        yield Phase(
            epochs=phase.epochs,
            adversary=f"{phase.adversary}-{phase.steps}" if phase.steps > 1 else phase.adversary,
            loss=phase.loss,
            eps_255=phase.eps_255,
            learning_rate=phase.learning_rate,
            schedule=phase.schedule,
            frozen=phase.frozen,
            weights=phase.weights or recipe.quantization.weights,
            activations=phase.activations or recipe.quantization.activations,
            adversarial_accuracy=last.get("adversarial_accuracy"),
            held_out_pgd_accuracy=last.get("pgd"),
        )


def _doubts(recipe: Recipe, document: Mapping[str, Any], attacks: Sequence[Attack], bits: Bits) -> Iterator[str]:
    """What limits the numbers, as far as they tell it themselves."""
    yield f"One network of one seed ({recipe.training.seed}): how far another seed lies from it was not measured."
    worst = next((attack for attack in attacks if attack.name == "worst_case"), None)
    if worst is not None:
        half = 100 * (worst.interval[1] - worst.interval[0]) / 2
        yield f"{worst.images:,} test images: a rate is known to about {half:.0f} points either way at 95 % confidence."
    names = [attack.name for attack in attacks]
    has_square, has_smooth = any(n.startswith("square") for n in names), any(n.endswith(" smooth") for n in names)
    if min(bits.weights, bits.activations, *bits.layers.values()) < _FEWEST_BITS_WITHOUT_DOUBT and not (
        has_square and has_smooth
    ):
        yield "Below 4 bits and without both a smooth surrogate and Square, its robust rate is an upper bound only."
    elif not has_square:
        yield "No attack without gradients was run: masked gradients would have gone unnoticed by the attacks."
    raised = [alarm["name"].replace("_", " ") for alarm in document["alarms"] if alarm["status"] in _RAISED]
    if raised:
        yield f"Alarms went off ({', '.join(raised)}): the worst case of all attacks may still be overstated."
