"""Freezing: BatchNorm is folded, every scale becomes a constant, every bias goes to the grid of its int32
accumulator."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from hardbit.quantize.operators import MOVING_OPERATORS, folds_into_its_layer, operator_of
from hardbit.quantize.quantizers import (
    activation_numerics,
    is_activation_quantizer,
    is_weight_layer,
    quant_conv,
    set_bias_grid,
    weight_scale,
)

__all__ = ["fold_batch_norm", "freeze"]


def freeze(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a quantized and calibrated `module` whose arithmetic is that of the engine.

    It can still be trained: weights and biases move, scales do not. Its state_dict loads into any other freeze() of the
    same quantized network. Every layer has a bias then, so weights and biases have the same names at every width.
    """
    frozen = copy.deepcopy(module)
    fold_batch_norm(frozen)
    for child in frozen.modules():
        if isinstance(child, nn.Conv2d | nn.Linear) and child.bias is None:
            child.bias = nn.Parameter(child.weight.new_zeros(child.weight.shape[0]))
    input_scales = _input_scales(frozen)
    for node, input_scale in input_scales.items():
        layer: Any = frozen.get_submodule(str(node.target))
        if input_scale is None:
            weight_scale(layer).freeze(layer.weight)
            continue
        weight_scale(layer).freeze(layer.weight, at_least=_least_scale(layer, input_scale))
        grid = weight_scale(layer).fixed.flatten() * input_scale
        set_bias_grid(layer, grid)
    return frozen


def _least_scale(layer: Any, input_scale: float) -> Tensor:
    """The weight scale (out,) below which the bias of a channel would not be an int32 accumulator's.

    A BatchNorm that has all but switched a channel off leaves weights near zero and a bias that is not. Beside
    2^30 counts of bias the rounding of such weights is nothing. Where all weights are zero their scale is free, and
    2^18 counts keep the sums exact (see `hardbit.quantize.scales`); but one bit has no code for zero, and there the
    scale has to stay next to nothing.
    """
    dead = layer.weight.detach().flatten(1).abs().amax(1) == 0
    counts = torch.where(dead & ~torch.tensor(weight_scale(layer).is_binary), 2.0**18, 2.0**30)
    return layer.bias.detach().abs() / (counts * input_scale)


def fold_batch_norm(module: fx.GraphModule) -> None:
    """Fold every BatchNorm (running statistics) into the layer before it, in place.

    w' = w g, b' = beta + (b - mean) g with g = gamma / sqrt(var + eps) per output channel. A learned weight scale is
    multiplied by |g|: rebuilding the quantizer would lose it. A BatchNorm that no layer can take up, such as one that
    reads a residual sum, becomes a layer of its own (`channelwise_layer`).
    """
    operators = {node: operator_of(module, node) for node in module.graph.nodes}
    for node in list(module.graph.nodes):
        norm = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        if not folds_into_its_layer(node, operators):
            source = node.all_input_nodes[0]
            while operators[source] in MOVING_OPERATORS:
                source = source.all_input_nodes[0]
            reads_codes = operators[source] == "Quantize"
            module.set_submodule(str(node.target), channelwise_layer(*_affine(norm), quantized=reads_codes))
            continue
        layer: Any = module.get_submodule(str(node.all_input_nodes[0].target))
        with torch.no_grad():
            factor, shift = _affine(norm)
            weight: Tensor = layer.weight
            weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))
            if is_weight_layer(layer):
                weight_scale(layer).rescale(factor)
            bias = layer.bias if layer.bias is not None else torch.zeros_like(shift)
            layer.bias = nn.Parameter(bias.detach() * factor + shift)
        node.replace_all_uses_with(node.all_input_nodes[0])
        module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    gamma = norm.weight if norm.weight is not None else torch.ones_like(mean)
    beta = norm.bias if norm.bias is not None else torch.zeros_like(mean)
    factor = gamma / torch.sqrt(variance + norm.eps)
    return factor.detach(), (beta - mean * factor).detach()


def channelwise_layer(factor: Tensor, shift: Tensor, *, quantized: bool) -> nn.Module:
    """factor * x + shift per channel, both (channels,), as a depthwise convolution of 1x1.

    Engines have integer kernels for that, and none for BatchNorm. The weights have 8 bits at every width of the
    network: there are few of them, and codes around 64 leave training room to double them.
    """
    channels = len(factor)
    layer: Any = nn.Conv2d(channels, channels, 1, groups=channels, device=factor.device)
    with torch.no_grad():
        layer.weight.copy_(factor.view(-1, 1, 1, 1))
        layer.bias.copy_(shift)
    if quantized:
        layer = quant_conv(layer, 8).to(factor.device)
        weight_scale(layer).largest_code = 64
    return layer


def _input_scales(module: fx.GraphModule) -> dict[fx.Node, float | None]:
    """For every layer with quantized weights, the scale of the codes that it reads; None where it reads floats."""
    scale_of: dict[fx.Node, float] = {}
    layers: dict[fx.Node, float | None] = {}
    for node in module.graph.nodes:
        child = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if is_activation_quantizer(child):
            scale_of[node] = activation_numerics(child).scale
        elif is_weight_layer(child):
            layers[node] = scale_of.get(node.all_input_nodes[0])
        elif operator_of(module, node) in MOVING_OPERATORS and node.all_input_nodes[0] in scale_of:
            scale_of[node] = scale_of[node.all_input_nodes[0]]
    return layers
