"""card.json: what one published model is and what it scored, for machines. `card.md` says the same to people.

The form is published as a JSON schema (`card-v1.json` beside this module), which is made of the models below. Rates lie
between 0 and 1, radii are in grey levels of 255, times carry their unit in the name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hardbit_deploy.errors import HardbitError

__all__ = [
    "CARD_FILE",
    "FORMAT",
    "SCHEMA_VERSION",
    "Agreement",
    "Alarm",
    "Attack",
    "Bits",
    "Card",
    "Data",
    "Engine",
    "Evaluation",
    "FloatLayer",
    "Latency",
    "Network",
    "Phase",
    "Provenance",
    "ThreatModel",
    "Training",
    "card_schema",
    "card_text",
    "read_card",
]

CARD_FILE = "card.json"
FORMAT: Final = "hardbit-card"
SCHEMA_VERSION: Final = 1

Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=1, le=32)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Network(_Part):
    """The architecture; `input_shape` is (channels, height, width)."""

    architecture: str
    parameters: Count
    classes: Count
    input_shape: Annotated[tuple[Count, Count, Count], Field(strict=False)]


class Bits(_Part):
    """Widths in bits, 32 for float; `layers` has the layers that differ from their kind."""

    weights: Width
    activations: Width
    first_layer: Width
    last_layer: Width
    layers: dict[str, Width] = {}


class Data(_Part):
    """What it was trained on: `provenance` in words, `images` without the `held_out` ones, and the SHA-256 of all
    images and labels of the split where it was recorded."""

    set: str
    provenance: str
    images: Count
    held_out: Count = 0
    sha256: Sha256 | None = None


class Evaluation(_Part):
    """The images that the scores are about, and of how many published ones they are, where that is known."""

    set: str
    split: str
    images: Count
    published: Count | None = None
    sha256: Sha256 | None = None


class ThreatModel(_Part):
    """Norm and radius of the attacks."""

    norm: Literal["linf", "l2"]
    eps_255: Annotated[float, Field(ge=0)]


class Attack(_Part):
    """How many images were right (`clean`), survived this attack, or all of them (`worst_case`), with the 95 % interval
    of the rate.

    An attack that was given only what others had left standing says how many images that were (`attacked`) and how many
    of them `fell`; its survivors are those of everything up to it.
    """

    name: str
    images: Count
    survivors: Count
    rate: Rate
    interval: Annotated[tuple[Rate, Rate], Field(strict=False)]
    attacked: Count | None = None
    fell: Count | None = None
    settings: dict[str, Any] = {}


class Agreement(_Part):
    """How far the engine and another implementation of the same network differ on some images."""

    name: str
    images: Count
    label_flips: Count
    max_logit_difference: float | None


class Alarm(_Part):
    """A check of the evaluation itself, and what it saw; `accepted` is an alarm that the gate knows of, and why."""

    name: str
    status: Literal["pass", "alarm", "accepted", "not_run"]
    reason: str
    accepted_because: str | None = None


class Latency(_Part):
    """One query, image on the host to logits on the host, batch 1; grade A: clocks locked, B: not, C: foreign load."""

    protocol: str
    metric: str
    grade: Literal["A", "B", "C"]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    processor: str


class FloatLayer(_Part):
    """A layer that the engine runs in float, and why."""

    name: str
    reason: str


class Engine(_Part):
    """What was attacked and timed; `bytes` is the size of its graph with all weights."""

    target: str
    runtime: str
    bytes: Count
    integer_layers: Count
    float_layers: Annotated[tuple[FloatLayer, ...], Field(strict=False)] = ()


class Phase(_Part):
    """Some epochs against one adversary; accuracies are those of its last epoch, on the images named in the field."""

    epochs: Count
    adversary: str
    loss: str
    eps_255: float
    learning_rate: float
    schedule: str
    frozen: bool
    weights: Width
    activations: Width
    adversarial_accuracy: Rate | None = None
    held_out_pgd_accuracy: Rate | None = None


class Training(_Part):
    """How the weights came about; `overfitting_epochs` are those in which catastrophic overfitting was seen."""

    seed: int
    threads: int
    batch_size: Count
    epochs: Count
    seconds: Annotated[float, Field(ge=0)]
    phases: Annotated[tuple[Phase, ...], Field(strict=False)]
    initial_weights: str | None = None
    teacher: str | None = None
    overfitting_epochs: Annotated[tuple[int, ...], Field(strict=False)] = ()


class Provenance(_Part):
    """What ties the card to files and versions, and the command that makes all of them again."""

    measured: str
    command: str
    manifest_sha256: Sha256
    weights_sha256: Sha256
    versions: dict[str, str]


class Card(_Part):
    """One model. `worst_attack` is the single attack that fewest images survived, of those made on all images."""

    format: Literal["hardbit-card"] = FORMAT
    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    network: Network
    bits: Bits
    data: Data
    evaluation: Evaluation
    threat_model: ThreatModel
    suite: dict[str, Any]
    verdict: str
    attacks: Annotated[tuple[Attack, ...], Field(strict=False)]
    worst_attack: str | None
    agreement: Annotated[tuple[Agreement, ...], Field(strict=False)]
    alarms: Annotated[tuple[Alarm, ...], Field(strict=False)]
    engine: Engine
    latency: Latency | None
    training: Training
    files: dict[str, Count]
    provenance: Provenance

    def attack(self, name: str) -> Attack | None:
        """The row of that name."""
        return next((attack for attack in self.attacks if attack.name == name), None)

    def strongest(self, *kinds: str) -> Attack | None:
        """Of the attacks on all images whose names begin with one of `kinds`, the one that fewest images survived."""
        rows = [attack for attack in self.attacks if attack.name.startswith(kinds) and attack.attacked is None]
        return min(rows, key=lambda attack: attack.rate, default=None)


def card_text(card: Card) -> str:
    """The card as JSON."""
    return json.dumps(card.model_dump(mode="json", exclude_none=False), indent=1, ensure_ascii=False) + "\n"


def card_schema() -> dict[str, Any]:
    """The JSON schema of card.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Card.model_json_schema()}


def read_card(file: Path) -> Card:
    """The card in a file. Raises HardbitError for one that is missing, damaged or of another version."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise HardbitError(f"this card cannot be read: {error.strerror}", where=str(file)) from error
    except ValueError as error:
        raise HardbitError(f"this card is not JSON: {error}", where=str(file), remedy=_AGAIN) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HardbitError(f'this is not a card: its "format" is not {FORMAT}', where=str(file), remedy=_AGAIN)
    if document.get("schema_version") != SCHEMA_VERSION:
        version = document.get("schema_version")
        raise HardbitError(f"it has schema version {version}, this hardbit reads {SCHEMA_VERSION}", where=str(file))
    try:
        return Card.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise HardbitError(f"this card is damaged: {place}: {first['msg']}", where=str(file), remedy=_AGAIN) from error


_AGAIN = "'hardbit run RECIPE --publish' writes it again"
