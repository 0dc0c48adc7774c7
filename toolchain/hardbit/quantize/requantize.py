"""Trained weights under other widths: the same network quantized anew, or begun from another network's frozen weights.

What travels are weights, biases and BatchNorm. Scales belong to widths: those of weights are set from the weights that
came, those of activations are left to `calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from hardbit.quantize.bits import Bits
from hardbit.quantize.freezing import fold_batch_norm
from hardbit.quantize.placement import quantize
from hardbit.quantize.profiles import Profile
from hardbit.quantize.quantizers import is_weight_layer, weight_scale
from hardbit_deploy.errors import HardbitError

__all__ = ["requantize", "start_from"]

_SCALES = ".tensor_quant."
"""Part of the name of every tensor that belongs to a quantizer and not to the network."""


def requantize(
    module: fx.GraphModule, build: Callable[[], nn.Module], profile: str | Profile, bits: Bits
) -> fx.GraphModule:
    """The network of a quantized `module` under other widths; `build` makes the plain network, `module` is not changed.

    BatchNorm is kept, or stays folded if it was. Scales start afresh: calibrate the result before it is used.
    """
    fresh = quantize(build(), profile, bits)
    if not _has_batch_norm(module):
        fold_batch_norm(fresh)
    fresh.to(next(module.parameters()).device)
    _take_over(fresh, module.state_dict())
    return fresh.train(module.training)


def start_from(module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Let a freshly quantized `module` begin with the weights of a frozen network of any widths, in place.

    `tensors` is what `hardbit.train.write_weights` stores. Frozen weights have BatchNorm folded in, so it is folded
    away in `module` too and training goes on without it. Calibrate afterwards. Raises HardbitError for a tensor that
    is in the file or in the network but not in both, or that has another shape.
    """
    fold_batch_norm(module)
    _take_over(module, tensors)


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) for child in module.modules())


@torch.no_grad()
def _take_over(module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    layers: list[Any] = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layers.append(layer)
            if layer.bias is None and f"{path}.bias" in tensors:  # freezing gives every layer one
                layer.bias = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0]))
    given = {name: value for name, value in tensors.items() if _SCALES not in name}
    wanted = {name: value for name, value in module.state_dict().items() if _SCALES not in name}
    if odd := sorted(given.keys() ^ wanted.keys()):
        raise HardbitError(
            f"tensor '{odd[0]}' is in the {'weights' if odd[0] in given else 'network'} only",
            where="initial weights",
            remedy="begin from a network of the same architecture and options",
        )
    for name, value in wanted.items():
        if value.shape != given[name].shape:
            raise HardbitError(
                f"tensor '{name}' has shape {tuple(given[name].shape)}, the network's has {tuple(value.shape)}",
                where="initial weights",
                remedy="begin from a network of the same architecture and options",
            )
        value.copy_(given[name])
    for layer in layers:
        if is_weight_layer(layer):
            weight_scale(layer).restart(layer.weight)
