"""Beginning from frozen weights, with BatchNorm back in its places.

Frozen weights have BatchNorm folded in. Few bits change the spread of what a layer computes, and only a BatchNorm can
make up for it in every channel, so a network that goes to one or two bits begins better with than without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from hardbit.quantize.calibration import calibrate
from hardbit.quantize.quantizers import is_weight_layer, weight_scale
from hardbit_deploy.errors import HardbitError

__all__ = ["start_with_batch_norm"]


@torch.no_grad()
def start_with_batch_norm(module: fx.GraphModule, tensors: Mapping[str, Tensor], images: Tensor) -> None:
    """Let a freshly quantized `module` begin with the weights of a frozen network of any widths, in place, and keep its
    BatchNorm.

    `tensors` is what `hardbit.train.write_weights` stores, `images` one batch of centred images, float32 (n, channels,
    height, width). Each BatchNorm gets the gamma and beta with which its output on `images` has, in every channel, the
    mean and the variance that the folded layer has in float on the same input. Calibrate afterwards. Raises
    HardbitError for a tensor that is missing or has another shape, and for a BatchNorm that no layer stands before.
    """
    behind = _batch_norms(module)
    for path, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        layer.weight.copy_(_tensor(tensors, f"{path}.weight", layer.weight.shape))
        if is_weight_layer(layer):
            weight_scale(layer).restart(layer.weight)
        if path not in behind and layer.bias is not None:
            layer.bias.copy_(_tensor(tensors, f"{path}.bias", layer.bias.shape))
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    handles: list[RemovableHandle] = []
    for path, norm in behind.items():
        layer = module.get_submodule(path)
        shift = _tensor(tensors, f"{path}.bias", norm.running_mean.shape)
        handles.append(layer.register_forward_hook(_matcher(norm, shift)))
        handles.append(norm.register_forward_pre_hook(_recorder(path, statistics)))
    try:
        calibrate(module, [images])
    finally:
        for handle in handles:
            handle.remove()
    for path, (mean, variance) in statistics.items():
        behind[path].running_mean.copy_(mean)
        behind[path].running_var.copy_(variance)


def _batch_norms(module: fx.GraphModule) -> dict[str, Any]:
    """The BatchNorm behind each layer that has one, by the layer's path."""
    found = {}
    for node in module.graph.nodes:
        norm = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        source = node.all_input_nodes[0]
        layer = module.get_submodule(str(source.target)) if source.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise HardbitError(
                "this BatchNorm is not behind a layer, so frozen weights do not say what it was",
                where=str(node.target),
                remedy='begin with initial_batch_norm = "folded"',
            )
        found[str(source.target)] = norm
    return found


def _matcher(norm: Any, shift: Tensor) -> Any:
    """Sets gamma and beta by what the layer computes with its weights unquantized."""

    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            floats = F.conv2d(inputs[0], layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            floats = F.linear(inputs[0], layer.weight)
        mean, variance = _moments(floats, correction=0)
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
        norm.bias.copy_(mean + shift)

    return hook


def _recorder(path: str, statistics: dict[str, tuple[Tensor, Tensor]]) -> Any:
    def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        statistics[path] = _moments(inputs[0], correction=1)

    return hook


def _moments(values: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel: BatchNorm normalises without correction, and tracks with one."""
    axes = [axis for axis in range(values.dim()) if axis != 1]
    variance, mean = torch.var_mean(values, axes, correction=correction)
    return mean, variance


def _tensor(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in tensors or tensors[name].shape != shape:
        found = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is not there"
        raise HardbitError(
            f"tensor '{name}' {found}, the network's has {tuple(shape)}",
            where="initial weights",
            remedy="begin from a network of the same architecture and options",
        )
    return tensors[name]
