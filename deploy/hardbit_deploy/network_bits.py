"""Bit widths of a network, as a manifest declares them, and what few of them ask of an evaluation.

Straight-through gradients mislead where quantizers are coarse, and the activations decide: with those of 3 bits and
fewer, PGD has been seen 50 points above what a search by queries finds. A number of such a network without both
surrogates and Square is void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FLOAT", "NetworkBits"]

FLOAT = 32  # not quantized at all
FEWEST_FOR_ONE_SURROGATE = 4
FEWEST_ACTIVATION_BITS_WITHOUT_QUERIES = 4


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
