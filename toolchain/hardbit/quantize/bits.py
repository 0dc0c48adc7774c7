"""How many bits each kind of layer gets."""

from __future__ import annotations

from dataclasses import dataclass

from hardbit_deploy.errors import HardbitError

__all__ = ["ALLOWED_BITS", "FLOAT", "Bits"]

FLOAT = 32
"""The width of what stays float32: no quantizer."""
ALLOWED_BITS = (FLOAT, 8, 7, 4, 3, 2)


@dataclass(frozen=True)
class Bits:
    """Widths in bits: of weights and activations, of the weights of the first layer and of the last.

    A quantizer that exists for the last layer alone (behind an average pool) has the last layer's width. The image is
    8 bits always: it is bytes. 32 bits are float32: `weights` alone at 32 is activation-only quantization,
    `activations` alone weight-only.
    """

    weights: int = 8
    activations: int = 8
    first_layer: int = 8
    last_layer: int = 8

    def __post_init__(self) -> None:
        for kind in ("weights", "activations", "first_layer", "last_layer"):
            if getattr(self, kind) not in ALLOWED_BITS:
                raise HardbitError(
                    f"{kind} cannot have {getattr(self, kind)} bits",
                    where=f"quantization.{kind}",
                    remedy=f"choose one of {', '.join(map(str, ALLOWED_BITS))}",
                )
