"""The sections of a recipe, as frozen pydantic models. A section holds no default that depends on another section:
those are filled in by `hardbit.recipe.defaults` before validation, so that every field here has its value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from hardbit.recipe.digest import sha256_of, training_digest
from hardbit.recipe.toml_text import to_toml

__all__ = [
    "Data",
    "Evaluation",
    "Gate",
    "Network",
    "Phase",
    "Quantization",
    "Recipe",
    "Suite",
    "Target",
    "ThreatModel",
    "Training",
]


def _no_truth_value(value: object) -> object:
    """True equals 1, and would pass for a width."""
    if isinstance(value, bool):
        raise PydanticCustomError("literal_error", "a width is a number", {"expected": "32, 8, 7, 4, 3, 2 or 1"})
    return value


Bits = Annotated[Literal[32, 8, 7, 4, 3, 2, 1], BeforeValidator(_no_truth_value)]
Augmentation = Literal["crop", "flip"]
Loss = Literal["cross_entropy", "margin"]
Surrogate = Literal["straight-through", "smooth"]
KnownAlarmName = Literal[
    "gradients",
    "iterative_beats_one_step",
    "surrogates",
    "white_box_beats_black_box",
    "white_box_beats_transfer",
    "noise_does_not_win",
    "losses",
    "eps_curve",
    "converged",
    "stronger_attacks",
]
Rate = Annotated[float, Field(ge=0, le=1)]
Margin = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Shape = Annotated[tuple[Count, Count, Count], Field(strict=False)]
FileName = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Network(_Section):
    """[network]: which architecture of `hardbit.nets`, and its options."""

    architecture: Literal["lenet", "vgg-small", "resnet8", "resnet20", "resnet18", "wrn-16-4", "mobilenetv2", "vit"]
    classes: Count = 10
    input_shape: Shape
    """(channels, height, width)"""
    channels: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """lenet: widths of the two convolutions."""
    hidden: Count | None = None
    """lenet: width of the first fully connected layer."""
    width: Count | None = None
    """All but lenet: how wide the network is at its narrowest, in channels; the rest follows."""
    depth: Count | None = None
    """vit: how many blocks."""
    heads: Count | None = None
    """vit: heads of the attention, which share the width."""
    patch: Count | None = None
    """vit: side of the squares that the image is cut into, in pixels."""

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `hardbit.nets.build(architecture, **options)`."""
        return self.model_dump(exclude={"architecture"}, exclude_none=True)


class Evaluation(_Section):
    """[data] evaluation: the images that the verdict is about, the first `count` of a split."""

    split: Literal["test"] = "test"
    count: Count = 2000
    file: FileName | None = None
    """An .npz that carries them, relative to the recipe; without it they come from the data set."""


class Data(_Section):
    """[data]: the image set, what is held out of its train split, and the evaluation images."""

    set: Annotated[str, Field(pattern=r"^(mnist|fashion-mnist|cifar10|gtsrb|(npz|folder):.+)$")]
    validation: Annotated[int, Field(ge=0)] = 0
    """Images carved from the train split by the training seed: never trained on, measured when training ends."""
    evaluation: Evaluation = Evaluation()


class Quantization(_Section):
    """[quantization]: the numerics profile, and bits by kind of layer and by single places; 32 bits are float."""

    profile: str = "onnxruntime"
    weights: Bits = 8
    activations: Bits = 8
    first_layer: Bits = 8
    last_layer: Bits = 8
    layers: dict[str, Bits] = {}
    """Widths of single places by the path of a module, or by the beginning of one."""
    calibration: Literal["range", "saturating"] = "range"
    """How activation scales are found: see `hardbit.quantize.observation`."""


class Phase(_Section):
    """[[training.phases]]: some epochs against one adversary."""

    epochs: Count
    adversary: Literal["none", "fgsm", "n-fgsm", "pgd", "trades", "square"]
    steps: Annotated[int, Field(ge=0)]
    step_size_255: Annotated[float, Field(ge=0)]
    """Length of a step in grey levels."""
    eps_255: Annotated[float, Field(ge=0)]
    """Radius in grey levels."""
    random_start: bool
    on_grid: bool = False
    """Adversarial images are rounded to bytes inside the ball."""
    surrogate: Literal["straight-through", "smooth", "both"] = "straight-through"
    """What the adversary's gradients flow through where activations are rounded; both take turns."""
    eps_warmup: Annotated[int, Field(ge=0)] = 0
    """Epochs over which the radius grows to its full size."""
    loss: Literal["cross_entropy", "trades", "distillation"]
    beta: Positive | None = None
    """Weight of the divergence in loss trades."""
    learning_rate: Positive = 0.002
    """The peak of the schedule."""
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    optimiser: Literal["adam", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    frozen: bool = False
    """BatchNorm is folded and scales stand still: the arithmetic of the engine. Later phases must be frozen too."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the average of the weights that the phase ends with; 0 for none."""
    weights: Bits | None = None
    """Bits of weights in this phase, the network's own without it."""
    activations: Bits | None = None
    """The same of activations."""


class Training(_Section):
    """[training]: what holds for all phases, and the phases in order."""

    phases: Annotated[tuple[Phase, ...], Field(strict=False)]
    seed: Seed = 0
    threads: Count = 1
    """Threads of PyTorch; the weights are the same bit for bit only for the same number."""
    batch_size: Count = 128
    augmentation: Annotated[tuple[Augmentation, ...], Field(strict=False)] = ()
    initial_weights: FileName | None = None
    """Weights of the same architecture at any widths to begin with, relative to the recipe."""
    initial_batch_norm: Literal["folded", "restored"] = "folded"
    """Whether BatchNorm stays folded into the initial weights, or gets its places back: few bits need it."""
    teacher: FileName | None = None
    """The folder of a trained model for loss distillation, relative to the recipe."""
    inner_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the adversary's passes; auto is bfloat16 where the machine computes it fast."""
    outer_precision: Literal["float32", "bfloat16"] = "float32"
    """Of the passes that the weights learn from."""
    inner_batch_norm: Literal["batch", "running", "folded"] = "batch"
    """What BatchNorm normalises by for the adversary."""
    select: Literal["last", "best"] = "last"
    """Which epoch of the last phase ends training: best is the most robust on held-out images."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Longest time between checkpoints within an epoch; 0 for none within."""


class ThreatModel(_Section):
    """[threat_model]: the norm and radius of the attacks, in grey levels on the grid of bytes."""

    norm: Literal["linf", "l2"]
    eps_255: Positive


class Suite(_Section):
    """[suite]: how the engine is attacked. `custom` is a named suite with something overridden."""

    name: Literal["quick", "standard", "full", "custom"]
    steps: Count
    restarts: Count
    losses: Annotated[tuple[Loss, ...], Field(strict=False)]
    surrogates: Annotated[tuple[Surrogate, ...], Field(strict=False)]
    """What stands for the quantizers in the backward pass; each is climbed, and an image must survive all."""
    square_queries: Annotated[int, Field(ge=0)]
    """Queries of the Square attack for every image; 0 leaves it out."""
    attacks: Annotated[tuple[str, ...], Field(strict=False)]
    """Further attacks, such as `apgd-50 cross_entropy`, in order, on the images that still stand."""
    corruption_images: Annotated[int, Field(ge=0)]
    """Images on which accuracy under corruptions is seen; 0 leaves it out."""
    seed: Seed = 0
    transfer: Annotated[tuple[FileName, ...], Field(strict=False)] = ()
    """Other recipes with weights, relative to this one: adversarial images made on their networks are judged too."""

    def document(self) -> dict[str, Any]:
        """The same as plain data, in the form of a bundle's manifest: what the harness itself decides by."""
        return self.model_dump(mode="json", exclude={"transfer"})


class Target(_Section):
    """[target]: which engine the network is lowered to."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"] = "onnxruntime"
    float16: bool = False
    """Whether what the network computes in float is computed in float16."""


class RateRule(_Section):
    """A promised rate: passes when the lower bound of what was seen is above reference - margin."""

    reference: Rate
    margin: Margin = 0.01


class AttackRule(_Section):
    """What the promise is made against: this ball, and at least this effort."""

    norm: Literal["linf", "l2"] | None = None
    eps_255: Positive | None = None
    min_steps: Count | None = None
    min_restarts: Count | None = None
    min_square_queries: Count | None = None
    surrogates: Annotated[tuple[Surrogate, ...], Field(strict=False)] | None = None


class BaselineRule(_Section):
    """Paired comparison with an earlier result on the same images."""

    result: FileName
    margin: Margin = 0.01


class KnownAlarm(_Section):
    """An alarm that may go off, up to `most`, without making the verdict inconclusive; it is shown all the same."""

    name: KnownAlarmName
    reason: Annotated[str, Field(min_length=1)]
    most: Annotated[float, Field(gt=0, lt=1)] | None = None


class LatencyRule(_Section):
    """Limits of one query's latency, in milliseconds."""

    max_p50_ms: Positive | None = None
    max_p90_ms: Positive | None = None
    max_p99_ms: Positive | None = None


class EnvironmentRule(_Section):
    """What the machine must be for the verdict to count."""

    machine: str | None = None
    onnxruntime: str | None = None
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    power_mode: str | None = None
    min_grade: Literal["A", "B", "C"] | None = None


class GateSettings(_Section):
    """Confidence of every bound, and the power that a count of images must have."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    power: Annotated[float, Field(gt=0, lt=1)] = 0.80


class Gate(_Section):
    """[gate]: the rules of the verdict; a section that is absent sets no rule."""

    clean: RateRule | None = None
    robust: RateRule | None = None
    attack: AttackRule | None = None
    baseline: BaselineRule | None = None
    latency: LatencyRule | None = None
    environment: EnvironmentRule | None = None
    settings: GateSettings = GateSettings()
    known_alarms: Annotated[tuple[KnownAlarm, ...], Field(strict=False)] = ()

    def document(self) -> dict[str, Any]:
        """The same as plain data, in the form of gate.toml and of the bundle's manifest."""
        document = self.model_dump(mode="json", exclude_none=True)
        if not self.known_alarms:
            del document["known_alarms"]
        return document


class Recipe(_Section):
    """Everything from the network to the gate. Made by `load_recipe`, which also checks how the sections fit."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    weights: Annotated[str, Field(pattern=r"\.safetensors$")] = "weights.safetensors"
    """The file of trained weights, relative to the recipe."""
    notes: str = ""
    """What a reader of the model's card should know; decides nothing, and is in no digest."""
    network: Network
    data: Data
    quantization: Quantization = Quantization()
    training: Training
    threat_model: ThreatModel
    suite: Suite
    target: Target = Target()
    gate: Gate = Gate()
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The folder of the recipe's file, which relative paths in it start from."""
        return self._folder

    @property
    def weights_path(self) -> Path:
        """Where shipped weights lie, whether or not they exist."""
        return self._folder / self.weights

    @property
    def initial_weights_path(self) -> Path | None:
        """The file of `training.initial_weights`."""
        return self._folder / self.training.initial_weights if self.training.initial_weights else None

    @property
    def teacher_folder(self) -> Path | None:
        """The folder of `training.teacher`."""
        return self._folder / self.training.teacher if self.training.teacher else None

    @property
    def data_set(self) -> str:
        """`data.set` for `hardbit.data.load_images`, with the path in it, if it has one, made absolute."""
        kind, separator, file = self.data.set.partition(":")
        return f"{kind}:{(self._folder / file).resolve()}" if separator else kind

    @property
    def evaluation_set(self) -> str:
        """The set that the evaluation images are loaded from, for `hardbit.data.load_images`."""
        file = self.data.evaluation.file
        return f"npz:{(self._folder / file).resolve()}" if file else self.data_set

    def document(self) -> dict[str, Any]:
        """The resolved recipe as plain data, without its notes: JSON types only, nothing absent that has a value."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"notes"})

    def resolved_toml(self) -> str:
        """The recipe with every default written out; it loads to an equal recipe from the same folder."""
        document = {"notes": self.notes} | self.document() if self.notes else self.document()
        return f"# hardbit recipe '{self.name}', every default resolved\n{to_toml(document)}"

    def training_digest(self) -> str:
        """SHA-256 of what decides the weights, see `hardbit.recipe.digest`."""
        return training_digest(self)

    def digest(self, *parts: str) -> str:
        """SHA-256 of the named parts of the resolved recipe (`section` or `section.key`); of all of it for none."""
        document = self.document()
        chosen = {part: _at(document, part) for part in parts} if parts else document
        return sha256_of(chosen)


def _at(document: dict[str, Any], part: str) -> Any:
    value: Any = document
    for key in part.split("."):
        value = value.get(key)
    return value
