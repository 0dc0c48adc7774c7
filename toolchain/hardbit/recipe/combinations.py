"""Values that are each allowed and cannot stand together. Every rule is one small function that yields problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from hardbit.data import ImageFacts, image_facts
from hardbit.recipe.defaults import NETWORK_OPTIONS
from hardbit.recipe.finding import Finding
from hardbit.recipe.toml_text import KeyPath
from hardbit.recipe.training_rules import TRAINING_RULES, numbered_phases
from hardbit_deploy.attack_specs import parse_attack
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gate import parse_gate
from hardbit_deploy.suite import SURROGATES

__all__ = ["TARGETS_OF_PROFILE", "Finding", "impossible_combinations"]

TARGETS_OF_PROFILE = {
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt", "tensorrt_rtx"),
    "tensorrt-signed": ("tensorrt", "tensorrt_rtx"),
}
"""Numerics profiles, and the targets whose arithmetic each describes."""
_DIVISOR_OF_IMAGES = {"vgg-small": 8}


def impossible_combinations(sections: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    """Everything wrong between the values of a recipe.

    `sections` has an attribute for each section, None where the section itself is invalid: rules that need it pass.
    """
    for rule in _RULES:
        yield from rule(sections, folder)


def _network_options(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.network is None:
        return
    own = NETWORK_OPTIONS[s.network.architecture]
    foreign = {key for options in NETWORK_OPTIONS.values() for key in options} - set(own)
    for key in sorted(foreign & set(s.network.options())):
        yield Finding(("network", key), f"{s.network.architecture} has no '{key}'", f"its options are {', '.join(own)}")


def _network_sizes(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    """Sizes that have to divide each other."""
    if s.network is None:
        return
    divisor = s.network.patch or _DIVISOR_OF_IMAGES.get(s.network.architecture)
    if divisor is not None and any(size % divisor for size in s.network.input_shape[1:]):
        yield Finding(
            ("network", "input_shape"),
            f"{s.network.architecture} divides height and width by {divisor}, which {list(s.network.input_shape[1:])} "
            "do not allow",
            "write a patch that divides them" if s.network.patch else "choose another network",
        )
    if s.network.heads is not None and s.network.width is not None and s.network.width % s.network.heads:
        yield Finding(
            ("network", "heads"),
            f"{s.network.heads} heads cannot share a width of {s.network.width}",
            "write a number of heads that divides the width",
        )


def _data(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    """Images are looked at where their files are; those to train on are not needed where weights are shipped."""
    if s.data is None:
        return
    train_source, evaluation_source, split = s.data.set, s.data.set, s.data.evaluation.split
    path: KeyPath = ("data", "set")
    if s.data.evaluation.file is not None:
        evaluation_source, path = f"npz:{s.data.evaluation.file}", ("data", "evaluation", "file")
        if not (folder / s.data.evaluation.file).is_file():
            message = f"there is no file {folder / s.data.evaluation.file}"
            yield Finding(path, message, "'python -m hardbit.data.extract' makes one")
    shape = s.network.input_shape if s.network is not None else None
    train = yield from _facts(train_source, "train", ("data", "set"), folder, shape)
    evaluation = yield from _facts(evaluation_source, split, path, folder, shape)
    if train is not None:
        yield from _network_fits(s, train, train_source)
        if s.data.validation >= train.count:
            yield Finding(
                ("data", "validation"),
                f"{s.data.validation:,} of {train.count:,} images held out leave none to train on",
                f"write at most {train.count - 1}",
            )
    if evaluation is not None:
        if train is None or (evaluation.shape, evaluation.classes) != (train.shape, train.classes):
            yield from _network_fits(s, evaluation, evaluation_source)
        if s.data.evaluation.count > evaluation.count:
            yield Finding(
                ("data", "evaluation", "count"),
                f"{s.data.evaluation.count:,} images are asked for, {evaluation_source} has {evaluation.count:,}",
                f"write count = {evaluation.count}",
            )


def _facts(
    source: str, split: str, path: KeyPath, folder: Path, shape: tuple[int, int, int] | None
) -> Generator[Finding, None, ImageFacts | None]:
    """What a split is like, None where its file is not there; a Finding, and None, where it cannot be read.

    `shape` is the network's, which pictures of a folder are cut to; None where the network itself is a mistake.
    """
    kind, separator, place = source.partition(":")
    if separator:
        source = f"{kind}:{folder / place}"
        if not (folder / place).exists() or (kind == "folder" and shape is None):
            return None
    try:
        return image_facts(source, split, shape)
    except HardbitError as error:
        yield Finding(path, str(error), "")
        return None


def _network_fits(s: SimpleNamespace, facts: ImageFacts, source: str) -> Iterator[Finding]:
    if s.network is None:
        return
    if facts.shape != s.network.input_shape:
        yield Finding(
            ("network", "input_shape"),
            f"{s.network.architecture} takes images of {list(s.network.input_shape)}, {source} has {list(facts.shape)}",
            f"write input_shape = {list(facts.shape)} or choose another network",
        )
    if facts.classes != s.network.classes:
        named = ", or name every class in the file's class_names" if source.startswith("npz:") else ""
        yield Finding(
            ("network", "classes"),
            f"the network tells {s.network.classes} classes apart, {source} has {facts.classes}",
            f"write classes = {facts.classes}{named}",
        )


def _profile(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.quantization is None:
        return
    profile = s.quantization.profile
    if profile not in TARGETS_OF_PROFILE:
        known = ", ".join(sorted(TARGETS_OF_PROFILE))
        yield Finding(("quantization", "profile"), f"there is no profile '{profile}'", f"known: {known}")
    elif s.target is not None and s.target.name not in TARGETS_OF_PROFILE[profile]:
        serving = sorted(name for name, targets in TARGETS_OF_PROFILE.items() if s.target.name in targets)
        yield Finding(
            ("quantization", "profile"),
            f"profile '{profile}' does not describe the arithmetic of target '{s.target.name}'",
            f"for this target write profile = {' or '.join(map(repr, serving))}",
        )


def _float16(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.target is not None and s.target.float16 and s.target.name == "onnxruntime":
        yield Finding(("target", "float16"), "target 'onnxruntime' has no float16", "leave it out")


def _unsigned_bytes(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    """What TensorRT has no codes for; places of `layers` are looked at where the network is built."""
    if s.quantization is None or s.quantization.profile != "tensorrt":
        return
    asked: list[tuple[KeyPath, object]] = [(("quantization", "activations"), s.quantization.activations)]
    if s.training is not None:
        phases = enumerate(s.training.phases)
        asked += [(("training", "phases", number, "activations"), phase.activations) for number, phase in phases]
    for path, bits in asked:
        if bits == 8:
            yield Finding(
                path,
                "behind a ReLU TensorRT has no 8 unsigned bits: it would read them as int8 and cut them off at 127",
                "write 7, which is [0, 127] there and [-128, 127] elsewhere; or profile = 'tensorrt-signed'",
            )


def _threat_model(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.threat_model is None:
        return
    norm, eps, path = s.threat_model.norm, s.threat_model.eps_255, ("threat_model", "eps_255")
    if eps < 1:
        yield Finding(
            path,
            f"a radius of {eps} grey levels moves no byte",
            "radii are in grey levels of 255: 8/255 is written 8.0",
        )
    elif norm == "linf" and eps != int(eps):
        yield Finding(
            path,
            f"an L-inf radius of {eps} grey levels does not lie on the grid of bytes: {int(eps)} is all it allows",
            f"write eps_255 = {float(int(eps))}",
        )
    yield from _radius(path, norm, eps, s)


def _gate_attack(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    rule = s.gate.attack if s.gate is not None else None
    if rule is None:
        return
    for key in ("norm", "eps_255"):
        promised = getattr(rule, key)
        if s.threat_model is not None and promised not in (None, getattr(s.threat_model, key)):
            yield Finding(
                ("gate", "attack", key),
                f"the gate speaks of {promised}, the recipe attacks at {getattr(s.threat_model, key)}",
                "promise what is attacked, or attack what is promised",
            )
    for key in ("steps", "restarts", "square_queries"):
        least = getattr(rule, f"min_{key}")
        if s.suite is not None and least is not None and getattr(s.suite, key) < least:
            yield Finding(
                ("gate", "attack", f"min_{key}"),
                f"the gate asks for {least} {key.replace('_', ' ')}, the suite has {getattr(s.suite, key)}",
                "strengthen the suite, or promise less",
            )
    for surrogate in rule.surrogates or ():
        if s.suite is not None and surrogate not in s.suite.surrogates:
            yield Finding(
                ("gate", "attack", "surrogates"),
                f"the gate asks for the {surrogate} surrogate, the suite does not use it",
                f"write suite.surrogates = {list(SURROGATES)}",
            )


def _phase_radii(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.threat_model is None:
        return
    for path, phase in numbered_phases(s):
        if phase.eps_255 != s.threat_model.eps_255:  # else the threat model is the place to say it
            yield from _radius((*path, "eps_255"), s.threat_model.norm, phase.eps_255, s)


def _radius(path: KeyPath, norm: str, eps: float, s: SimpleNamespace) -> Iterator[Finding]:
    pixels = math.prod(s.network.input_shape) if s.network is not None else math.inf
    largest = 255.0 if norm == "linf" else 255.0 * math.sqrt(pixels)
    if eps > largest:
        yield Finding(
            path,
            f"a radius of {eps} grey levels in {norm} is larger than the whole space of images ({largest:.0f})",
            "radii are in grey levels of 255: 8/255 is written 8.0",
        )


def _suite(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.suite is None:
        return
    if not s.suite.losses:
        yield Finding(("suite", "losses"), "an attack needs a loss", 'write losses = ["cross_entropy", "margin"]')
    if len(set(s.suite.losses)) < len(s.suite.losses):
        yield Finding(("suite", "losses"), "a loss is named twice", "more restarts are asked for by restarts")
    if s.suite.surrogates not in (SURROGATES[:1], SURROGATES):
        yield Finding(
            ("suite", "surrogates"),
            f"surrogates are {list(s.suite.surrogates)}",
            f"write {list(SURROGATES[:1])} or {list(SURROGATES)}",
        )
    norm = s.threat_model.norm if s.threat_model is not None else None
    for number, spec in enumerate(s.suite.attacks):
        try:
            attack = parse_attack(spec)
            if norm is not None:
                attack.refuse_other_norm(norm)
        except HardbitError as error:
            yield Finding(("suite", "attacks", number), error.message, error.remedy)
    if len(set(s.suite.attacks)) < len(s.suite.attacks):
        yield Finding(("suite", "attacks"), "an attack is named twice", "name every attack once")
    for number, source in enumerate(s.suite.transfer):
        if not (folder / source / "recipe.toml").is_file() and not (folder / source).is_file():
            yield Finding(
                ("suite", "transfer", number),
                f"there is no recipe in {folder / source}",
                "name the folder of a recipe with weights",
            )


def _gate(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.gate is None:
        return
    clean, robust, latency = s.gate.clean, s.gate.robust, s.gate.latency
    if clean and robust and robust.reference > clean.reference:
        yield Finding(
            ("gate", "robust", "reference"),
            f"a robust rate of {robust.reference} is above the clean rate of {clean.reference}: an image that survives "
            "every attack is classified correctly without one",
            "lower it, or raise gate.clean.reference",
        )
    baseline = s.gate.baseline
    if baseline and not (folder / baseline.result).exists():
        yield Finding(
            ("gate", "baseline", "result"),
            f"there is no result {folder / baseline.result}",
            "name an earlier result.json, or leave out [gate.baseline]",
        )
    limits = [(key, getattr(latency, key)) for key in ("max_p50_ms", "max_p90_ms", "max_p99_ms")] if latency else []
    try:
        parse_gate(s.gate.document())
    except HardbitError as error:  # the rules of the harness itself, which will read this gate
        yield Finding(tuple(error.where.split(".")), error.message, error.remedy)
    limits = [(key, limit) for key, limit in limits if limit is not None]
    for (lower_key, lower), (key, limit) in pairwise(limits):
        if limit < lower:
            yield Finding(("gate", "latency", key), f"{limit} is below {lower_key} = {lower}", f"raise {key}")


_RULES: tuple[Callable[[SimpleNamespace, Path], Iterator[Finding]], ...] = (
    _network_options,
    _network_sizes,
    _data,
    _profile,
    _float16,
    _unsigned_bytes,
    _gate_attack,
    _phase_radii,
    *TRAINING_RULES,
    _threat_model,
    _suite,
    _gate,
)
