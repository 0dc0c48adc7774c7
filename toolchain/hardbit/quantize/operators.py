"""The words of ONNX for what stands in a traced PyTorch network."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from hardbit.quantize.quantizers import is_activation_quantizer, is_weight_layer

__all__ = [
    "FLOAT_OPERATORS",
    "MOVING_OPERATORS",
    "argument",
    "depths",
    "folds_into_its_layer",
    "named_axes",
    "node_place",
    "operator_of",
    "pooling_of",
]

MOVING_OPERATORS = frozenset({"MaxPool", "Flatten", "Identity", "Reshape", "Transpose"})
"""They pick or rearrange values: codes stay codes."""
FLOAT_OPERATORS = frozenset({"LayerNormalization", "Softmax", "MatMul", "Gelu", "Mul", "ReduceMean"})
"""They are computed in float wherever they stand, from float or from dequantized operands."""

_MODULES: dict[type[nn.Module], str] = {
    nn.Conv2d: "Conv",
    nn.Linear: "Gemm",
    nn.BatchNorm1d: "BatchNormalization",
    nn.BatchNorm2d: "BatchNormalization",
    nn.ReLU: "Relu",
    nn.ReLU6: "Relu6",
    nn.LayerNorm: "LayerNormalization",
    nn.Softmax: "Softmax",
    nn.GELU: "Gelu",
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
    F.relu6: "Relu6",
    F.gelu: "Gelu",
    F.softmax: "Softmax",
    torch.softmax: "Softmax",
    operator.mul: "Mul",
    torch.mul: "Mul",
    operator.matmul: "MatMul",
    torch.matmul: "MatMul",
    torch.transpose: "Transpose",
    torch.permute: "Transpose",
    torch.mean: "ReduceMean",
    F.max_pool2d: "MaxPool",
    torch.max_pool2d: "MaxPool",
    F.avg_pool2d: "AveragePool",
    torch.flatten: "Flatten",
}
_METHODS = {
    "add": "Add",
    "relu": "Relu",
    "softmax": "Softmax",
    "mul": "Mul",
    "matmul": "MatMul",
    "transpose": "Transpose",
    "permute": "Transpose",
    "mean": "ReduceMean",
    "flatten": "Flatten",
    "unflatten": "Reshape",
}


def operator_of(module: nn.Module, node: fx.Node) -> str:
    """The ONNX operator that `node` stands for, "input" or "output"; else the name of what it calls, which nobody
    knows. Words of our own: "Relu6", "Gelu", and "Constant" for a parameter that is read as a tensor.

    A global pool is an adaptive average pool to 1x1; to other sizes it has no counterpart in ONNX. A Flatten makes rows
    of images; one that does less is a Reshape.
    """
    child = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    operator = _called(node) if child is None else _named(child)
    return "Reshape" if operator == "Flatten" and named_axes(node, child, operator) != (1, -1) else operator


def _called(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "Constant"
    if node.op == "call_function":
        if node.target is F.adaptive_avg_pool2d:
            size = argument(node, 1, "output_size", None)
            return "GlobalAveragePool" if _is_one(size) else f"adaptive_avg_pool2d({size})"
        return _FUNCTIONS.get(node.target, getattr(node.target, "__name__", str(node.target)))
    if node.op == "call_method":
        return _METHODS.get(str(node.target), str(node.target))
    return node.op


def _named(child: nn.Module) -> str:
    if is_weight_layer(child):
        return "Conv" if hasattr(child, "kernel_size") else "Gemm"
    if is_activation_quantizer(child):
        return "Quantize"
    if isinstance(child, nn.AdaptiveAvgPool2d):
        return "GlobalAveragePool" if _is_one(child.output_size) else f"AdaptiveAvgPool2d({child.output_size})"
    return _MODULES.get(type(child), type(child).__name__)


def node_place(node: fx.Node) -> str:
    """Where a node stands in the user's network, for messages."""
    return str(node.target) if node.op == "call_module" else node.name


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a traced call of a function or a method, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def named_axes(node: fx.Node, child: Any, operator: str) -> tuple[Any, ...]:
    """The axes that a call names: all of a permutation, the two of a transposition, first and last of a flattening,
    those of a mean or a softmax, the one that `unflatten` splits. None stands for an axis that is not given."""
    if operator == "Softmax":
        return (child.dim if child is not None else argument(node, 1, "dim", None),)
    if operator == "ReduceMean":
        axes = argument(node, 1, "dim", None)
        return tuple(axes) if isinstance(axes, Sequence) else (axes,)
    if operator == "Transpose":
        given = [*node.args[1:], *(value for name, value in node.kwargs.items() if name != "input")]
        return tuple(given[0]) if len(given) == 1 and isinstance(given[0], Sequence) else tuple(given)
    if node.target == "unflatten":
        return (argument(node, 1, "dim", None),)
    if child is not None:
        return child.start_dim, child.end_dim
    return argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)


def folds_into_its_layer(node: fx.Node, operators: Mapping[fx.Node, str]) -> bool:
    """Whether a BatchNorm alone reads the layer before it: then it is part of that layer's weights and bias."""
    source = node.all_input_nodes[0]
    return operators.get(source) in ("Conv", "Gemm") and len(source.users) == 1


def depths(nodes: Sequence[fx.Node], operators: Mapping[fx.Node, str]) -> dict[fx.Node, int]:
    """How many layers with weights lie behind each of `nodes`, in graph order, on the longest way from the input."""
    found: dict[fx.Node, int] = {}
    for node in nodes:
        behind = max((found[source] for source in node.all_input_nodes), default=0)
        found[node] = behind + (operators[node] in ("Conv", "Gemm"))
    return found


def pooling_of(node: fx.Node, child: nn.Module | None, operator: str) -> Any:
    """The pooling module `child`, or one with the options of the function that `node` calls."""
    if child is not None:
        return child
    kind: Any = nn.MaxPool2d if operator == "MaxPool" else nn.AvgPool2d
    return kind(*node.args[1:], **{name: value for name, value in node.kwargs.items() if name != "input"})


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, Sequence) and list(size) == [1, 1])
