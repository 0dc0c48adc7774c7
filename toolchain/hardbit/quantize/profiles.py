"""Numerics profiles: where a target wants its quantizers. Training runs under the profile of the target."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hardbit_deploy.errors import HardbitError

__all__ = ["PROFILES", "Profile", "get_profile"]


_OPERATORS = frozenset(
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
)


@dataclass(frozen=True)
class Profile:
    """What one engine can keep in integers.

    `operators`: what may stand in the network, in the words of ONNX.

    `widest_unsigned`: bits that codes of what is never negative may have. Wider ones are signed where `signs_wider`,
    and refused elsewhere.

    `layers_end_in_floats`: a convolution of codes may give floats. Then one operand of a residual sum is taken as the
    layer gives it, the skip branch alone is quantized, and what is averaged or computed in float needs no codes.
    """

    name: str
    widest_unsigned: int = 8
    signs_wider: bool = False
    layers_end_in_floats: bool = False
    operators: frozenset[str] = _OPERATORS

    def form_of(self, bits: int, *, never_negative: bool, where: str, asked: bool = True) -> tuple[int, bool]:
        """(width, whether signed) of a quantizer that is to have `bits` bits.

        Codes as wide as `widest_unsigned` lie in one byte with a sign; so do those of what may be negative, which get
        the whole byte. Raises HardbitError `where` unsigned codes were `asked` to be wider than they can be; where
        nobody asked for that width, they get what there is.
        """
        if not never_negative:
            return (8 if bits == self.widest_unsigned else bits), True
        if bits <= self.widest_unsigned:
            return bits, False
        if self.signs_wider:
            return bits, True
        if not asked:
            return self.widest_unsigned, False
        raise HardbitError(
            f"unsigned activations of {bits} bits: the engine has int8 alone, and would cut them off at 127",
            where=where,
            remedy=f"write activations = {self.widest_unsigned}, which is [0, 127] behind a ReLU; or profile = "
            f"'{self.name}-signed', whose 8 bits are [-128, 127]",
        )


_ONNXRUNTIME = Profile(name="onnxruntime")
_TENSORRT = Profile(name="tensorrt", widest_unsigned=7, layers_end_in_floats=True)
_TENSORRT_SIGNED = replace(_TENSORRT, name="tensorrt-signed", signs_wider=True)

PROFILES = {profile.name: profile for profile in (_ONNXRUNTIME, _TENSORRT, _TENSORRT_SIGNED)}


def get_profile(name: str) -> Profile:
    """The profile called `name`; raises HardbitError that lists the known ones."""
    if name not in PROFILES:
        raise HardbitError(
            f"there is no numerics profile '{name}'",
            where="quantization.profile",
            remedy=f"known: {', '.join(sorted(PROFILES))}",
        )
    return PROFILES[name]
