"""Defaults that depend on another part of the recipe, filled into the document before it is validated.

A document may be wrong in any way; what cannot be resolved is left for the validation to name.
"""

from __future__ import annotations

import copy
from typing import Any

from hardbit_deploy.network_bits import NetworkBits
from hardbit_deploy.suite import SUITES, named_suite

__all__ = ["INPUT_SHAPES", "NETWORK_OPTIONS", "PROFILES_OF_TARGET", "RADII_255", "resolve_defaults"]

NETWORK_OPTIONS: dict[str, dict[str, Any]] = {
    "lenet": {"channels": [16, 32], "hidden": 100},
    "vgg-small": {"width": 128},
    "resnet8": {"width": 16},
    "resnet20": {"width": 16},
    "resnet18": {"width": 64},
    "wrn-16-4": {"width": 16},
    "mobilenetv2": {"width": 32},
    "vit": {"width": 96, "depth": 3, "heads": 6, "patch": 4},
}
INPUT_SHAPES = {name: [1, 28, 28] if name == "lenet" else [3, 32, 32] for name in NETWORK_OPTIONS}

PROFILES_OF_TARGET = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt"}
"""What a recipe quantizes by that names its target and no profile; others are the schema's default."""

RADII_255: dict[str, dict[str, float]] = {
    # Those that the field accepts, such as 0.1 and 1.5 for Fashion-MNIST, in grey levels; L-inf on the grid of bytes.
    "mnist": {"linf": 76.0, "l2": 510.0},
    "fashion-mnist": {"linf": 25.0, "l2": 382.5},
    "cifar10": {"linf": 8.0, "l2": 127.5},
    "gtsrb": {"linf": 8.0, "l2": 127.5},
}

_STEPS = {"pgd": 7, "trades": 10, "square": 50}  # Madry et al. (2018); Zhang et al. (2019); queries
_TRADES_BETA = 6.0  # Zhang et al. (2019), the stronger of their two
_PGD_REACH = 2.5  # total length of the steps in units of eps, same source; one step never leaps across the ball
_FGSM_RANDOM_START_STEP = 1.25  # step in units of eps, Wong, Rice, Kolter (2020)


def resolve_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """A copy of `document` in which every default that depends on other values is written out."""
    resolved = copy.deepcopy(document)
    _network(_section(resolved, "network"))
    _quantization(_section(resolved, "quantization"), _section(resolved, "target").get("name"))
    _threat_model(_section(resolved, "threat_model"), _section(resolved, "data").get("set"))
    _suite(_section(resolved, "suite"), _section(resolved, "quantization"))
    phases = _section(resolved, "training").get("phases")
    for phase in phases if isinstance(phases, list) else []:
        if isinstance(phase, dict):
            _phase(phase, _section(resolved, "threat_model").get("eps_255"))
    return resolved


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The table `name`, made if it is absent; a stray empty one if a user wrote something else in its place."""
    section = document.setdefault(name, {})
    return section if isinstance(section, dict) else {}


def _network(network: dict[str, Any]) -> None:
    architecture = network.get("architecture")
    if not isinstance(architecture, str) or architecture not in NETWORK_OPTIONS:
        network.setdefault("input_shape", [1, 1, 1])  # the architecture is the mistake to name, not this
        return
    network.setdefault("input_shape", list(INPUT_SHAPES[architecture]))
    for option, value in NETWORK_OPTIONS[architecture].items():
        network.setdefault(option, copy.copy(value))


def _quantization(quantization: dict[str, Any], target: object) -> None:
    """The numerics of the target, and the widest activations that they have."""
    if isinstance(target, str) and target in PROFILES_OF_TARGET:
        quantization.setdefault("profile", PROFILES_OF_TARGET[target])
    if quantization.get("profile") == "tensorrt":
        quantization.setdefault("activations", 7)


def _threat_model(threat_model: dict[str, Any], data_set: object) -> None:
    norm = threat_model.setdefault("norm", "linf")
    radii = RADII_255.get(data_set, {}) if isinstance(data_set, str) else {}
    if isinstance(norm, str) and norm in radii:
        threat_model.setdefault("eps_255", radii[norm])
    elif not (isinstance(data_set, str) and data_set.startswith(("npz:", "folder:"))):
        threat_model.setdefault("eps_255", 1.0)  # the set or the norm is the mistake to report


def _suite(suite: dict[str, Any], quantization: dict[str, Any]) -> None:
    """What the harness's suite of that name says for these bits, where the user does not; whatever differs from it is
    `custom`."""
    name = suite.get("name", "standard")
    known = isinstance(name, str) and name in SUITES
    base = named_suite(str(name) if known else "standard", _bits(quantization)).to_document()
    keys = ("steps", "restarts", "losses", "surrogates", "square_queries", "attacks", "corruption_images")
    for key in keys:
        suite.setdefault(key, base[key])
    overridden = any(suite[key] != base[key] for key in keys)
    suite["name"] = "custom" if overridden and name == base["name"] else name


def _bits(quantization: dict[str, Any]) -> NetworkBits:
    """Widths as far as they are written as numbers."""

    def numbers(table: object, *kinds: str) -> dict[str, int]:
        entries = table.items() if isinstance(table, dict) else ()
        return {key: bits for key, bits in entries if isinstance(bits, int) and (not kinds or key in kinds)}

    kinds = numbers(quantization, "weights", "activations", "first_layer", "last_layer")
    return NetworkBits(**kinds, layers=numbers(quantization.get("layers")))


def _phase(phase: dict[str, Any], threat_eps: object) -> None:
    adversary = phase.setdefault("adversary", "pgd")
    if phase.setdefault("loss", "trades" if adversary == "trades" else "cross_entropy") == "trades":
        phase.setdefault("beta", _TRADES_BETA)
    if adversary == "none":
        for key, value in {"steps": 0, "step_size_255": 0.0, "eps_255": 0.0, "random_start": False}.items():
            phase.setdefault(key, value)
        return
    phase.setdefault("eps_255", threat_eps if _is_number(threat_eps) else 1.0)
    phase.setdefault("steps", _STEPS.get(adversary, 1) if isinstance(adversary, str) else 1)
    phase.setdefault("random_start", True)
    eps, steps = phase["eps_255"], phase["steps"]
    if not _is_number(eps) or not _is_number(steps) or steps < 1:
        phase.setdefault("step_size_255", 1.0)  # eps or steps is the mistake to report
    elif adversary == "square":
        phase.setdefault("step_size_255", 0.0)
    elif adversary in ("pgd", "trades"):
        phase.setdefault("step_size_255", min(_PGD_REACH * eps / steps, float(eps)))
    elif adversary == "fgsm" and phase["random_start"] is True:
        phase.setdefault("step_size_255", _FGSM_RANDOM_START_STEP * eps)
    else:
        phase.setdefault("step_size_255", float(eps))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
