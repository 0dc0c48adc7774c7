"""Bit widths of a network, as a manifest declares them, and what few of them ask of an evaluation.

Straight-through gradients mislead where quantizers are coarse, and the activations decide: with those of 3 bits and
fewer, PGD has been seen 50 points above what a search by queries finds. A number of such a network without both
surrogates and Square is void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FLOAT", "NetworkBits", "gain_of_few_bits"]

FLOAT = 32  # not quantized at all
FEWEST_FOR_ONE_SURROGATE = 4
FEWEST_ACTIVATION_BITS_WITHOUT_QUERIES = 4
_INT8_ALONE = frozenset({"tensorrt", "tensorrt_rtx"})
_INT8_BITS = (7, 8, FLOAT)  # 7 unsigned bits are what int8 has of numbers that are not negative


@dataclass(frozen=True)
class NetworkBits:
    """1 to 8 bits, or 32 for float; `layers` holds the widths of single layers by their names.

    What a layer's own width is of, weights or activations, is not told: it counts as either.
    """

    weights: int = 8
    activations: int = 8
    first_layer: int = 8
    last_layer: int = 8
    layers: Mapping[str, int] = field(default_factory=dict)

    @property
    def fewest(self) -> int:
        """Of all widths."""
        return min([self.weights, self.first_layer, self.last_layer, self.fewest_of_activations])

    @property
    def fewest_of_activations(self) -> int:
        """Of all widths that activations may have."""
        return min([self.activations, *self.layers.values()])

    @property
    def need_both_surrogates(self) -> bool:
        """Whether straight-through gradients alone are not to be trusted."""
        return self.fewest < FEWEST_FOR_ONE_SURROGATE

    @property
    def need_queries(self) -> bool:
        """Whether gradients of whatever kind are not to be trusted without a search by queries."""
        return self.fewest_of_activations < FEWEST_ACTIVATION_BITS_WITHOUT_QUERIES


def gain_of_few_bits(target: str, bits: Mapping[str, Any] | None) -> str:
    """What codes of few bits gain on an engine whose only codes are int8, as one sentence; empty where there are none.

    `bits` is a manifest's table of widths: weights, activations, first_layer, last_layer, layers.
    """
    if target not in _INT8_ALONE or not bits:
        return ""
    widths = {*(width for kind, width in bits.items() if kind != "layers"), *dict(bits.get("layers", {})).values()}
    few = sorted(width for width in widths if width not in _INT8_BITS)
    if not few:
        return ""
    named = " and ".join(filter(None, (", ".join(map(str, few[:-1])), str(few[-1]))))
    return (
        f"Codes of {named} bit{'' if few == [1] else 's'} run as INT8 here: the same values, but neither faster nor "
        "smaller than at 8 bits."
    )
