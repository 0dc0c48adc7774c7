"""What may stand in a network that is to be quantized: everything else is refused by its place, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from hardbit.quantize.operators import (
    MOVING_OPERATORS,
    argument,
    folds_into_its_layer,
    named_axes,
    node_place,
    operator_of,
    pooling_of,
)
from hardbit.quantize.profiles import Profile
from hardbit_deploy.errors import HardbitError

__all__ = ["check_traced"]

_SHAPE_WORDS = frozenset({"view", "reshape", "size", "getattr", "squeeze", "unsqueeze"})


def check_traced(traced: fx.GraphModule, profile: Profile) -> dict[fx.Node, str]:
    """The operator (`operator_of`) of every node of `traced`; raises HardbitError for the first node that would not
    come through quantization, export and differentiation as what it is.
    """
    operators = {node: operator_of(traced, node) for node in traced.graph.nodes}
    for node, operator in operators.items():
        if operator not in profile.operators | {"input", "output"}:
            remedy = f"it knows {', '.join(sorted(profile.operators))}"
            if operator in _SHAPE_WORDS:
                remedy = "reshape by torch.flatten(x, first) or x.unflatten(axis, sizes), which leave the batch alone"
            raise HardbitError(
                f"profile '{profile.name}' does not know the operation '{operator}'",
                where=node_place(node),
                remedy=remedy,
            )
        if not node.users and operator != "output":
            raise HardbitError(
                "its result is not used", where=node_place(node), remedy="use it, or take it out of forward()"
            )
    if not {"Conv", "Gemm"} & set(operators.values()):
        raise HardbitError("there is no Conv or Linear layer to quantize", where=type(traced).__name__)
    _check_calls(traced, operators)
    for node, operator in operators.items():
        child: Any = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if operator == "Conv":
            _check_conv(node, child)
        elif operator in ("MaxPool", "AveragePool"):
            _check_pool(node, pooling_of(node, child, operator))
        elif operator in ("Flatten", "Reshape", "Transpose", "Softmax", "ReduceMean"):
            _check_axes(node, child, operator)
        elif operator in ("Add", "MatMul"):
            _check_two_operands(node, operator, operators)
        elif operator == "Mul":
            _check_product(node)
        elif operator == "LayerNormalization":
            _check_layer_norm(node, child)
        elif operator == "Gelu":
            _check_gelu(node, child)
        elif operator == "BatchNormalization":
            _check_batch_norm(node, child, operators)
        elif operator == "output":
            _check_output(traced, node, operators)
    _check_in_place(traced, operators)
    return operators


def _check_calls(traced: fx.GraphModule, operators: Mapping[fx.Node, str]) -> None:
    called: set[object] = set()
    for node, operator in operators.items():
        if operator in ("Conv", "Gemm", "BatchNormalization"):
            if node.target in called:
                raise HardbitError(
                    f"a {'BatchNorm' if operator == 'BatchNormalization' else 'layer with weights'} is called twice",
                    where=node_place(node),
                    remedy="give each call a layer of its own: scales and bias codes belong to one input",
                )
            called.add(node.target)


def _check_conv(node: fx.Node, child: Any) -> None:
    if child.padding_mode != "zeros" or isinstance(child.padding, str):
        mode = child.padding if isinstance(child.padding, str) else child.padding_mode
        raise HardbitError(
            f"padding '{mode}' is not supported", where=node_place(node), remedy="pad by numbers of pixels, with zeros"
        )


def _check_pool(node: fx.Node, pool: Any) -> None:
    for option in ("ceil_mode", "return_indices", "divisor_override"):
        if getattr(pool, option, None):
            raise HardbitError(
                f"pooling with {option} is not supported", where=node_place(node), remedy=f"leave out {option}"
            )


def _check_axes(node: fx.Node, child: Any, operator: str) -> None:
    axes = named_axes(node, child, operator)
    reordered = operator == "Transpose" and len(axes) > 2
    if operator in ("Flatten", "Reshape") and len(axes) == 2 and axes[0] == 0:
        raise HardbitError(
            f"flattening axes {axes[0]} to {axes[1]} is not supported",
            where=node_place(node),
            remedy="write torch.flatten(x, 1): all axes but the batch",
        )
    if not all(isinstance(axis, int) for axis in axes) or (axes[0] != 0 if reordered else 0 in axes):
        raise HardbitError(
            f"{operator} along axes {', '.join(map(str, axes))} is not supported",
            where=node_place(node),
            remedy="name the axes by numbers, and leave axis 0, the batch, where it is",
        )


def _check_two_operands(node: fx.Node, operator: str, operators: Mapping[fx.Node, str]) -> None:
    if operator == "MatMul" and any(operators[source] == "Constant" for source in node.all_input_nodes):
        raise HardbitError(
            "a matrix of weights is multiplied outside of a layer", where=node_place(node), remedy="write nn.Linear"
        )
    if len(node.all_input_nodes) != 2 or len(node.args) != 2 or node.kwargs:
        written = "a + b" if operator == "Add" else "a @ b"
        raise HardbitError(
            f"{'an' if operator == 'Add' else 'a'} {operator} must have two different tensor operands",
            where=node_place(node),
            remedy=f"write it as {written}",
        )


def _check_product(node: fx.Node) -> None:
    if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node | int | float) for a in node.args):
        raise HardbitError(
            "a Mul must have two operands, tensors or numbers", where=node_place(node), remedy="write it as a * b"
        )


def _check_batch_norm(node: fx.Node, child: Any, operators: Mapping[fx.Node, str]) -> None:
    if isinstance(child, nn.BatchNorm1d) and not folds_into_its_layer(node, operators):
        raise HardbitError(
            "a BatchNorm1d must follow one Linear layer alone, to be folded into it", where=node_place(node)
        )
    if child.running_mean is None or child.running_var is None:
        raise HardbitError(
            "a BatchNorm without running statistics cannot be folded",
            where=node_place(node),
            remedy="leave track_running_stats on",
        )


def _check_layer_norm(node: fx.Node, child: Any) -> None:
    if len(child.normalized_shape) != 1:
        raise HardbitError(
            f"LayerNorm over {len(child.normalized_shape)} axes is not supported",
            where=node_place(node),
            remedy="normalise the last axis alone",
        )


def _check_gelu(node: fx.Node, child: Any) -> None:
    kind = child.approximate if child is not None else argument(node, 1, "approximate", "none")
    if kind != "none":
        raise HardbitError(
            f"GELU approximated by {kind} is not supported", where=node_place(node), remedy="leave out approximate"
        )


def _check_output(traced: nn.Module, node: fx.Node, operators: Mapping[fx.Node, str]) -> None:
    logits = node.args[0]
    if not isinstance(logits, fx.Node):
        raise HardbitError("forward() must return the logits alone", where=type(traced).__name__)
    if operators[logits] != "Gemm":
        raise HardbitError(
            "the logits must come straight from the last Linear layer",
            where=node_place(logits),
            remedy="leave Softmax and the like to the evaluation; end convolutions in pool, flatten, Linear",
        )


def _check_in_place(traced: fx.GraphModule, operators: Mapping[fx.Node, str]) -> None:
    """FX sees a value where PyTorch has memory: who reads a value that was overwritten would read the old one here."""
    memory: dict[fx.Node, fx.Node] = {}
    overwritten: dict[fx.Node, fx.Node] = {}
    for node, operator in operators.items():
        for source in node.all_input_nodes:
            if source in overwritten:
                raise HardbitError(
                    f"it reads a value that '{node_place(overwritten[source])}' has overwritten in place",
                    where=node_place(node),
                    remedy="write inplace=False, or a + b instead of a += b",
                )
        in_place = _is_in_place(traced, node)
        shares = in_place or (operator in MOVING_OPERATORS and operator != "MaxPool")
        memory[node] = memory[node.all_input_nodes[0]] if shares else node
        if in_place:
            stale = [other for other in memory if memory[other] is memory[node] and other is not node]
            overwritten.update(dict.fromkeys(stale, node))


def _is_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    return name == "iadd" or (name == "relu" and bool(argument(node, 1, "inplace", False)))
