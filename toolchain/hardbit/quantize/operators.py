"""The words of ONNX for what stands in a traced PyTorch network."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from hardbit.quantize.quantizers import is_activation_quantizer, is_weight_layer

__all__ = ["argument", "node_place", "operator_of", "pooling_of"]

_MODULES: dict[type[nn.Module], str] = {
    nn.Conv2d: "Conv",
    nn.Linear: "Gemm",
    nn.BatchNorm1d: "BatchNormalization",
    nn.BatchNorm2d: "BatchNormalization",
    nn.ReLU: "Relu",
    nn.MaxPool2d: "MaxPool",
    nn.AvgPool2d: "AveragePool",
    nn.Flatten: "Flatten",
    nn.Identity: "Identity",
    nn.Dropout: "Identity",
    nn.Dropout2d: "Identity",
}
_FUNCTIONS: dict[object, str] = {
    operator.add: "Add",
    operator.iadd: "Add",
    torch.add: "Add",
    torch.relu: "Relu",
    F.relu: "Relu",
    F.max_pool2d: "MaxPool",
    torch.max_pool2d: "MaxPool",
    F.avg_pool2d: "AveragePool",
    torch.flatten: "Flatten",
}
_METHODS = {"add": "Add", "relu": "Relu", "flatten": "Flatten"}


def operator_of(module: nn.Module, node: fx.Node) -> str:
    """The ONNX operator that `node` stands for, "input" or "output"; else the name of what it calls, which nobody
    knows.

    A global pool is an adaptive average pool to 1x1; to other sizes it has no counterpart in ONNX.
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        if is_weight_layer(child):
            return "Conv" if hasattr(child, "kernel_size") else "Gemm"
        if is_activation_quantizer(child):
            return "Quantize"
        if isinstance(child, nn.AdaptiveAvgPool2d):
            return "GlobalAveragePool" if _is_one(child.output_size) else f"AdaptiveAvgPool2d({child.output_size})"
        return _MODULES.get(type(child), type(child).__name__)
    if node.op == "call_function":
        if node.target is F.adaptive_avg_pool2d:
            size = argument(node, 1, "output_size", None)
            return "GlobalAveragePool" if _is_one(size) else f"adaptive_avg_pool2d({size})"
        return _FUNCTIONS.get(node.target, getattr(node.target, "__name__", str(node.target)))
    if node.op == "call_method":
        return _METHODS.get(str(node.target), str(node.target))
    return node.op


def node_place(node: fx.Node) -> str:
    """Where a node stands in the user's network, for messages."""
    return str(node.target) if node.op == "call_module" else node.name


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a traced call of a function or a method, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pooling_of(node: fx.Node, child: nn.Module | None, operator: str) -> Any:
    """The pooling module `child`, or one with the options of the function that `node` calls."""
    if child is not None:
        return child
    kind: Any = nn.MaxPool2d if operator == "MaxPool" else nn.AvgPool2d
    return kind(*node.args[1:], **{name: value for name, value in node.kwargs.items() if name != "input"})


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, Sequence) and list(size) == [1, 1])
