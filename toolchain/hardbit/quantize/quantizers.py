"""The Brevitas layers that hardbit uses: their quantizers, and how to read codes and scales out of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.function.ops import tensor_clamp
from brevitas.inject.enum import RestrictValueType, ScalingImplType, ScalingPerOutputType, StatsOp
from brevitas.quant.base import IntQuant, NarrowIntQuant, UintQuant
from brevitas.quant.solver.act import ActQuantSolver
from brevitas.quant.solver.bias import BiasQuantSolver
from brevitas.quant.solver.weight import WeightQuantSolver
from torch import Tensor, nn

from hardbit.quantize.binary import BinaryActivationQuant, BinaryWeightQuant
from hardbit.quantize.observation import Codes
from hardbit.quantize.scales import INPUT_SCALE, ActivationScale, BiasScale, WeightScale
from hardbit_deploy.errors import HardbitError

__all__ = [
    "ActivationNumerics",
    "ParameterCodes",
    "activation_numerics",
    "activation_scale",
    "is_activation_quantizer",
    "is_weight_layer",
    "parameter_codes",
    "quant_conv",
    "quant_identity",
    "quant_image",
    "quant_linear",
    "quant_relu",
    "set_bias_grid",
    "weight_scale",
]


class WeightQuant(NarrowIntQuant, WeightQuantSolver):
    """Symmetric per-channel signed weights, the most negative code unused; at 1 bit -1 and +1."""

    scaling_per_output_type = ScalingPerOutputType.CHANNEL
    restrict_scaling_type = RestrictValueType.FP
    scaling_impl_type = ScalingImplType.STATS  # for Brevitas' solver only: the scaling is handed in
    scaling_stats_op = StatsOp.MAX
    bit_width = 8


class BiasQuant(IntQuant, BiasQuantSolver):
    """int32 bias on a grid of its own."""

    scaling_per_output_type = ScalingPerOutputType.CHANNEL
    restrict_scaling_type = RestrictValueType.FP
    scaling_impl_type = ScalingImplType.STATS  # for Brevitas' solver only: the scaling is handed in
    scaling_stats_op = StatsOp.MAX
    bit_width = 32
    requires_input_scale = False


class SignedActivationQuant(IntQuant, ActQuantSolver):
    """Signed activations, zero point 0."""

    scaling_per_output_type = ScalingPerOutputType.TENSOR
    restrict_scaling_type = RestrictValueType.FP
    scaling_impl_type = ScalingImplType.CONST
    scaling_init = 1.0
    bit_width = 8


class UnsignedActivationQuant(UintQuant, ActQuantSolver):
    """Unsigned activations, zero point 0."""

    scaling_per_output_type = ScalingPerOutputType.TENSOR
    restrict_scaling_type = RestrictValueType.FP
    scaling_impl_type = ScalingImplType.CONST
    scaling_init = 1.0
    bit_width = 8


class ClampUnderCeiling(nn.Module):
    """Clips codes to what `bits` hold and to the code of a `ceiling`: ReLU6 and quantization in one clip.

    The same number as clipping at the ceiling first, because rounding is monotone; and the derivative shows in the
    codes, where engines and attack graph can see it.
    """

    def __init__(self, scale: ActivationScale, ceiling: float) -> None:
        super().__init__()
        self._scale = [scale]  # it belongs to the quantizer: not to be registered twice
        self.ceiling = ceiling

    def forward(self, codes: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        (scale,) = self._scale
        if not scale.observing:  # while it is being found, it ends at the ceiling
            max_val = torch.minimum(torch.round(self.ceiling / scale.value), max_val)
        return tensor_clamp(codes, min_val, max_val)


@dataclass(frozen=True)
class ActivationNumerics:
    """What an activation quantizer does: code = clip(round(x / scale), low, high); or, where it `is_binary`, 1 for
    x > 0 and -1 else.
    """

    scale: float
    bits: int
    signed: bool
    ceiling: float | None = None
    """Where a ReLU6 ends."""

    @property
    def is_binary(self) -> bool:
        """Whether the codes are -1 and +1, without 0."""
        return self.signed and self.bits == 1

    @property
    def low(self) -> int:
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        if self.is_binary:
            return 1
        most = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
        return most if self.ceiling is None else min(most, round(self.ceiling / self.scale))


@dataclass(frozen=True)
class ParameterCodes:
    """Integers of one layer: weight int8 (out, ...), its scale float32 (out,), bias int64 (out,) in units of
    bias_scale."""

    weight: Tensor
    weight_scale: Tensor
    weight_bits: int
    bias: Tensor
    bias_scale: Tensor


def quant_conv(source: nn.Conv2d, bits: int) -> qnn.QuantConv2d:
    """`source` with quantized weights; the parameters are shared in value, not in memory."""
    layer = qnn.QuantConv2d(
        source.in_channels,
        source.out_channels,
        source.kernel_size,
        stride=source.stride,
        padding=source.padding,
        dilation=source.dilation,
        groups=source.groups,
        bias=source.bias is not None,
        **_weight_quantization(source.weight, bits),
    )
    return _with_parameters(layer, source)


def quant_linear(source: nn.Linear, bits: int) -> qnn.QuantLinear:
    """`source` with quantized weights."""
    layer = qnn.QuantLinear(
        source.in_features,
        source.out_features,
        bias=source.bias is not None,
        **_weight_quantization(source.weight, bits),
    )
    return _with_parameters(layer, source)


def quant_relu(
    bits: int, ceiling: float | None = None, *, signed: bool = False, calibration: str = "range"
) -> qnn.QuantReLU:
    """ReLU and a quantizer, unsigned or, with half of its codes unused, signed; with a `ceiling` of 6, ReLU6.
    `calibration` finds the scale."""
    codes = Codes(0, 2 ** (bits - signed) - 1, ceiling=math.inf if ceiling is None else ceiling)
    scale = ActivationScale(codes, calibration)
    quant = SignedActivationQuant if signed else UnsignedActivationQuant
    options: dict[str, Any] = {"act_quant": quant, "bit_width": bits, "scaling_impl": scale}
    if ceiling is not None:
        options["tensor_clamp_impl"] = ClampUnderCeiling(scale, ceiling)
    return qnn.QuantReLU(**options)


def quant_identity(bits: int, *, signed: bool) -> qnn.QuantIdentity:
    """A quantizer alone."""
    numerics = ActivationNumerics(1.0, bits, signed)
    codes = Codes(numerics.low, numerics.high, numerics.is_binary)
    quant = SignedActivationQuant if signed else UnsignedActivationQuant
    if numerics.is_binary:
        quant = quant.let(tensor_quant=BinaryActivationQuant)
    return qnn.QuantIdentity(act_quant=quant, bit_width=bits, scaling_impl=ActivationScale(codes))


def quant_image() -> qnn.QuantIdentity:
    """The image as it is: centred pixels are int8 codes at scale 1/256, nothing is lost."""
    layer = quant_identity(8, signed=True)
    scale = activation_scale(layer)
    scale.value.fill_(INPUT_SCALE)
    scale.is_fixed = True
    return layer


def is_activation_quantizer(module: object) -> bool:
    return isinstance(module, qnn.QuantReLU | qnn.QuantIdentity)


def is_weight_layer(module: object) -> bool:
    return isinstance(module, qnn.QuantConv2d | qnn.QuantLinear)


def activation_scale(layer: Any) -> ActivationScale:
    return layer.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl


def weight_scale(layer: Any) -> WeightScale:
    return layer.weight_quant.tensor_quant.scaling_impl


def activation_numerics(layer: Any) -> ActivationNumerics:
    """Scale, width and sign of an activation quantizer."""
    tensor_quant = layer.act_quant.fused_activation_quant_proxy.tensor_quant
    if isinstance(tensor_quant, BinaryActivationQuant):
        return ActivationNumerics(float(activation_scale(layer).value), 1, signed=True)
    bits = int(tensor_quant.msb_clamp_bit_width_impl())
    signed = bool(tensor_quant.int_quant.signed)
    ceiling = getattr(tensor_quant.int_quant.tensor_clamp_impl, "ceiling", None)
    return ActivationNumerics(float(activation_scale(layer).value), bits, signed, ceiling)


def parameter_codes(layer: Any) -> ParameterCodes:
    """The integers that the frozen `layer` computes with, read from Brevitas' own quantized tensors."""
    with torch.no_grad():
        weight = layer.quant_weight()
        bias = layer.quant_bias()
        if bias is None or not hasattr(bias, "scale"):
            raise HardbitError("the layer is not frozen: its bias has no integers", remedy="freeze the module first")
        scale = weight.scale.flatten().to(torch.float32)
        codes = torch.round(weight.value / weight.scale)
        bias_codes = torch.round(bias.value.double() / bias.scale.double())
    return ParameterCodes(
        weight=codes.to(torch.int8),
        weight_scale=scale,
        weight_bits=int(weight.bit_width),
        bias=bias_codes.to(torch.int64),
        bias_scale=bias.scale.to(torch.float32),
    )


def set_bias_grid(layer: Any, grid: Tensor) -> None:
    """Quantize the bias of `layer` to multiples of `grid` (out,), as an int32 accumulator does."""
    layer.bias_quant = layer.bias_quant.__class__(layer, BiasQuant.let(scaling_impl=BiasScale(grid)))


def _weight_quantization(weight: Tensor, bits: int) -> dict[str, Any]:
    """The options of a Brevitas layer that quantize its weights."""
    quant = WeightQuant.let(tensor_quant=BinaryWeightQuant) if bits == 1 else WeightQuant
    return {"weight_quant": quant, "weight_bit_width": bits, "weight_scaling_impl": WeightScale(weight, bits)}


def _with_parameters(layer: Any, source: Any) -> Any:
    with torch.no_grad():
        layer.weight.copy_(source.weight)
        if source.bias is not None:
            layer.bias.copy_(source.bias)
    return layer
