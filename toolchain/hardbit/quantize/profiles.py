"""Numerics profiles: where a target wants its quantizers. Training runs under the profile of the target."""

from __future__ import annotations

from dataclasses import dataclass

from hardbit_deploy.errors import HardbitError

__all__ = ["PROFILES", "Profile", "get_profile"]


@dataclass(frozen=True)
class Profile:
    """What one engine can keep in integers.

    `unsigned_after_relu`: non-negative activations are unsigned. `operators`: what may stand in the network, in the
    words of ONNX.
    """

    name: str
    unsigned_after_relu: bool
    operators: frozenset[str]


_ONNXRUNTIME = Profile(
    name="onnxruntime",
    unsigned_after_relu=True,
    operators=frozenset(
        {
            "Conv",
            "Gemm",
            "BatchNormalization",
            "Relu",
            "Relu6",
            "Add",
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "Flatten",
            "Reshape",
            "Transpose",
            "Identity",
            "Constant",
            "LayerNormalization",
            "Softmax",
            "MatMul",
            "Gelu",
            "Mul",
            "ReduceMean",
        }
    ),
)

PROFILES = {profile.name: profile for profile in (_ONNXRUNTIME,)}


def get_profile(name: str) -> Profile:
    """The profile called `name`; raises HardbitError that lists the known ones."""
    if name not in PROFILES:
        raise HardbitError(
            f"there is no numerics profile '{name}'",
            where="quantization.profile",
            remedy=f"known: {', '.join(sorted(PROFILES))}",
        )
    return PROFILES[name]
