"""How many bits each kind of layer gets, and each layer that is named."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hardbit_deploy.errors import HardbitError

__all__ = ["ALLOWED_BITS", "CALIBRATIONS", "FLOAT", "Bits"]

FLOAT = 32
"""The width of what stays float32: no quantizer."""
ALLOWED_BITS = (FLOAT, 8, 7, 4, 3, 2, 1)
CALIBRATIONS = ("range", "saturating")


@dataclass(frozen=True)
class Bits:
    """Widths in bits: of weights and activations, of the weights of the first layer and of the last.

    A quantizer that exists for the last layer alone (behind an average pool) has the last layer's width. The image is
    8 bits always: it is bytes. 32 bits are float32: `weights` alone at 32 is activation-only quantization,
    `activations` alone weight-only. 1 bit is -1 and +1 for weights, 0 and 1 for activations behind a ReLU, -1 and +1
    for those that may be negative.

    `layers` gives single places a width of their own, and wins over all the others: the path of a module, or the
    beginning of one ("stages.0" is everything in it; the longest that fits counts). For a Conv or Linear it is the
    width of its weights, for a ReLU that of its activations, and for any other module or function, whose result is
    quantized behind it, the width of that quantizer.

    `calibration` is how activation scales are found (`hardbit.quantize.observation`): "range" keeps what the network
    computes, "saturating" cuts ReLUs off on purpose.
    """

    weights: int = 8
    activations: int = 8
    first_layer: int = 8
    last_layer: int = 8
    layers: Mapping[str, int] = field(default_factory=dict, hash=False)
    calibration: str = "range"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(self.layers))
        for kind in ("weights", "activations", "first_layer", "last_layer"):
            _check(kind, getattr(self, kind))
        for place, width in self.layers.items():
            _check(f"layers.{place}", width)
        if self.calibration not in CALIBRATIONS:
            raise HardbitError(
                f"there is no calibration '{self.calibration}'",
                where="quantization.calibration",
                remedy=f"choose one of {', '.join(CALIBRATIONS)}",
            )

    def of(self, place: str, otherwise: int) -> int:
        """The width at the `place` of a network: that of `layers`, where it names the place, or `otherwise`."""
        found = [name for name in self.layers if place == name or place.startswith(f"{name}.")]
        return self.layers[max(found, key=len)] if found else otherwise

    def check_places(self, places: Iterable[str]) -> None:
        """Raise HardbitError for an entry of `layers` that none of `places` belongs to, with names that are near."""
        known = list(places)
        for name in self.layers:
            if not any(place == name or place.startswith(f"{name}.") for place in known):
                beginnings = {place[:end] for place in known for end in _ends(place)}
                near = difflib.get_close_matches(name, sorted(beginnings), n=3, cutoff=0.5)
                raise HardbitError(
                    f"the network has no place '{name}' with a width",
                    where=f"quantization.layers.{name}",
                    remedy=f"near it are {', '.join(near)}" if near else f"places are {', '.join(known)}",
                )


def _check(kind: str, width: int) -> None:
    if width not in ALLOWED_BITS:
        raise HardbitError(
            f"{kind} cannot have {width} bits",
            where=f"quantization.{kind}",
            remedy=f"choose one of {', '.join(map(str, ALLOWED_BITS))}",
        )


def _ends(place: str) -> list[int]:
    """Where the names of a dotted path end."""
    return [index for index, letter in enumerate(f"{place}.") if letter == "."]
