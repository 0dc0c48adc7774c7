"""How the weights and the bias of a layer stand in a canonical graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardbit.graph.node_writer import NodeWriter
from hardbit.quantize.quantizers import is_weight_layer, parameter_codes
from hardbit_deploy.errors import HardbitError

__all__ = ["write_parameters"]

_INT32 = 2**31 - 1


def write_parameters(writer: NodeWriter, layer: Any, name: str, *, reads_codes: bool) -> list[str]:
    """Write weight and bias of the `layer` called `name`; returns the names of the two float tensors.

    Quantized weights are int8 codes with a DequantizeLinear per output channel; so is the bias, in int32, of a layer
    that `reads_codes`. What is float is a float32 initializer. Raises HardbitError where a bias does not fit.
    """
    if not is_weight_layer(layer):
        return [_write_floats(writer, name, "weight", layer.weight), _write_floats(writer, name, "bias", layer.bias)]
    if not reads_codes:
        with torch.no_grad():
            weight = layer.quant_weight()
            scale = weight.scale.flatten().to(torch.float32)
            codes = torch.round(weight.value / weight.scale).to(torch.int8)
        dequantized = _write_codes(writer, name, "weight", codes.numpy(), scale.numpy(), int(weight.bit_width))
        return [dequantized, _write_floats(writer, name, "bias", layer.bias)]
    parameters = parameter_codes(layer)
    bias = parameters.bias.numpy()
    if np.abs(bias).max(initial=0) > _INT32:
        raise HardbitError(
            "a bias does not fit into 32 bits at the scale of its accumulator",
            where=name,
            remedy="a channel's weights are close to zero: train longer or prune the channel",
        )
    weight_scale, bias_scale = parameters.weight_scale.numpy(), parameters.bias_scale.numpy()
    return [
        _write_codes(writer, name, "weight", parameters.weight.numpy(), weight_scale, parameters.weight_bits),
        _write_codes(writer, name, "bias", bias.astype(np.int32), bias_scale, 32),
    ]


def _write_codes(
    writer: NodeWriter, name: str, kind: str, codes: NDArray[Any], scale: NDArray[np.float32], bits: int
) -> str:
    inputs = [
        writer.constant(f"{name}.{kind}.codes", codes),
        writer.constant(f"{name}.{kind}.scale", scale),
        writer.constant(f"{name}.{kind}.zero_point", np.zeros(len(codes), codes.dtype)),
    ]
    return writer.node("DequantizeLinear", inputs, f"{name}.{kind}.dequantize", bits=bits, axis=0)


def _write_floats(writer: NodeWriter, name: str, kind: str, values: torch.Tensor | None) -> str:
    """An absent bias is left out: the empty name."""
    if values is None:
        return ""
    return writer.constant(f"{name}.{kind}", values.detach().to(torch.float32).numpy())
