"""The words of ONNX for what stands in a traced PyTorch network."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from hardbit.quantize.quantizers import is_activation_quantizer, is_weight_layer

__all__ = ["operator_of"]

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
            return "GlobalAveragePool" if child.output_size in (1, (1, 1)) else f"AdaptiveAvgPool2d{child.output_size}"
        return _MODULES.get(type(child), type(child).__name__)
    if node.op == "call_function":
        if node.target is F.adaptive_avg_pool2d:
            size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
            return "GlobalAveragePool" if size in (1, (1, 1)) else f"adaptive_avg_pool2d{size}"
        return _FUNCTIONS.get(node.target, getattr(node.target, "__name__", str(node.target)))
    if node.op == "call_method":
        return _METHODS.get(str(node.target), str(node.target))
    return node.op
