"""The growing reverse graph, and the sweep over the nodes that fills it.

Reverse-mode automatic differentiation on the level of ONNX (Griewank and Walther, Evaluating Derivatives, 2008,
chapter 3): the nodes are visited from the output back; each one's rule turns the cotangent of its output into
cotangents of its inputs by writing nodes of standard ONNX.

Two things are put off for speed, since a reverse graph is bound by memory traffic as much as by its convolutions:
masks (Relu, clipping) are collected as booleans and multiplied in once, where a dense tensor is needed; and a
gradient that is the same all over an image (that of a global average) stays small until something makes it dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.intervals import Interval, value_intervals
from hardbit.graph.gradient.primal import PrimalGraph, Shape, input_name

__all__ = ["OPSET", "PREFIX", "Cotangent", "Forms", "JointRule", "Rule", "StraightThrough", "Tape", "path_to", "sweep"]

OPSET = 18
PREFIX = "gradient/"  # of every name that is written here
StraightThrough = Literal["clipped", "identity"]
Forms = Literal["onnxruntime", "tensorrt"]
STEPS = ("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "NonZero")
REASONS = {
    "DynamicQuantizeLinear": "its scale is taken from all images of a batch at once; quantize with constant scales",
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), "its scale is taken at run time; quantize with constant scales"),
    **dict.fromkeys(("If", "Loop", "Scan"), "what runs depends on the data"),
    **dict.fromkeys(STEPS, "its derivative is 0 wherever it exists, and what hides behind it is no robustness"),
}
DECISIONS = frozenset({TensorProto.BOOL, TensorProto.INT64})  # types of conditions, shapes and indices


@dataclass(frozen=True)
class Cotangent:
    """The gradient of the loss with respect to one tensor of the primal graph.

    `masks` are boolean tensors still to be multiplied in; `spread` says that `tensor` has size 1 along some axis on
    which the primal tensor is longer, and stands for its broadcast.
    """

    tensor: str
    masks: tuple[str, ...] = ()
    spread: bool = False

    def masked(self, *masks: str) -> Cotangent:
        return replace(self, masks=tuple(dict.fromkeys(self.masks + masks)))


@dataclass
class Tape:
    """Nodes and constants of the reverse graph.

    `exact` demands the straight-through mask of the float values at every width; otherwise quantizers of 256 levels
    and more take theirs from the integer codes (see `quantization`). `straight_through` is the derivative that stands
    for that of Sign (see `rounding`). `forms` names the runtime that the graph is written for: TensorRT computes
    nothing on codes and gives no positions of maxima, so masks come from float values (see `tensorrt_forms`).
    """

    graph: PrimalGraph
    exact: bool = True
    straight_through: StraightThrough = "clipped"
    forms: Forms = "onnxruntime"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    active: frozenset[str] = frozenset()
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    reused: dict[tuple[Any, ...], str] = field(default_factory=dict)
    further_outputs: dict[str, int] = field(default_factory=dict)

    def further_output(self, node: onnx.NodeProto, position: int) -> str:
        """Name of an optional output, the second (1) or a later one, that the forward node is to have in the finished
        graph."""
        if position < len(node.output) and node.output[position]:
            return node.output[position]
        first = node.output[0]
        self.further_outputs[first] = max(position, self.further_outputs.get(first, 0))
        return f"{PREFIX}{first}.{position}"

    def forward_nodes(self) -> list[onnx.NodeProto]:
        """The nodes of the primal graph, with the further outputs that rules asked for."""
        nodes = []
        for node in self.graph.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for position in range(len(node.output), self.further_outputs.get(node.output[0], 0) + 1):
                copy.output.append(f"{PREFIX}{node.output[0]}.{position}")
            nodes.append(copy)
        return nodes

    def emit(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node with one output and return the name of that output. The same node is never written twice."""
        key = (op_type, *inputs, repr(sorted(attributes.items())))
        if key not in self.reused:
            name = f"{PREFIX}{op_type}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
            self.reused[key] = name
        return self.reused[key]

    def emit_second(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node with two outputs and return the name of the second."""
        name = self.emit(op_type, inputs, **attributes)
        node = next(node for node in reversed(self.nodes) if node.output[0] == name)
        if len(node.output) == 1:
            node.output.append(f"{name}.second")
        return node.output[1]

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Name of an initializer with this value; equal constants share one."""
        array: NDArray[Any] = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        key = ("constant", array.tobytes(), array.shape, array.dtype.str)
        if key not in self.reused:
            name = f"{PREFIX}constant_{len(self.initializers)}"
            self.initializers[name] = numpy_helper.from_array(array, name)
            self.reused[key] = name
        return self.reused[key]

    def integers(self, values: list[int] | tuple[int, ...]) -> str:
        return self.constant(list(values), np.int64)

    def scaled(self, tensor: str, factor: float) -> str:
        return self.emit("Mul", [tensor, self.constant(factor)])

    def times(self, cotangent: Cotangent, node: onnx.NodeProto, slope: str) -> Cotangent:
        """The cotangent of a node's output by the derivative of an elementwise operator, of the output's shape."""
        return Cotangent(self.emit("Mul", [self.dense(cotangent, self.graph.shape(node.output[0])), slope]))

    def require_constant(self, node: onnx.NodeProto, position: int, what: str) -> None:
        """Refuse a node one of whose parameters depends on the image."""
        if input_name(node, position) in self.active:
            raise UnsupportedOperator(f"{node.op_type} whose {what} depends on the image", where=node_label(node))

    def dense(self, cotangent: Cotangent, shape: Shape) -> str:
        """Name of a float tensor of full shape, all masks multiplied in."""
        tensor = cotangent.tensor
        if cotangent.masks:
            return self.emit("Mul", [tensor, self.indicator(cotangent.masks)])
        if cotangent.spread:
            return self.emit("Expand", [tensor, self.integers([1 if size is None else size for size in shape])])
        return tensor

    def indicator(self, masks: tuple[str, ...]) -> str:
        """Conjunction of boolean tensors as float32 0 and 1.

        Mul by a Cast: ONNX Runtime does not vectorise Where, which takes many times as long.
        """
        joint = masks[0]
        for mask in masks[1:]:
            joint = self.emit("And", [joint, mask])
        return self.emit("Cast", [joint], to=TensorProto.FLOAT)

    def total(self, cotangents: list[Cotangent], shape: Shape) -> Cotangent:
        """Sum over the consumers of a tensor."""
        if len(cotangents) == 1:
            return cotangents[0]
        result = self.dense(cotangents[0], shape)
        for cotangent in cotangents[1:]:
            narrow = cotangent.spread and not cotangent.masks  # Add broadcasts it for nothing
            result = self.emit("Add", [result, cotangent.tensor if narrow else self.dense(cotangent, shape)])
        return Cotangent(result)

    def reshape(self, tensor: str, shape: Shape) -> str:
        return self.emit("Reshape", [tensor, self.integers([-1 if size is None else size for size in shape])])


Rule = Callable[[Tape, onnx.NodeProto, Cotangent], list[Cotangent | None]]


@dataclass(frozen=True)
class JointRule:
    """The rule of an operator with several differentiable outputs: it takes a cotangent for each, or None."""

    shares: Callable[[Tape, onnx.NodeProto, list[Cotangent | None]], list[Cotangent | None]]


def sweep(tape: Tape, rules: Mapping[str, Rule | JointRule], seeds: dict[str, Cotangent], wrt: str) -> str:
    """Run the rules from the seeded tensors back to the tensor `wrt`; returns the name of its dense gradient.

    A gradient that does not depend on the seeds is a tensor of zeros. Raises UnsupportedOperator for a node on a path
    between the two that has no rule.
    """
    graph = tape.graph
    path = path_to(tape, set(seeds), wrt)
    for node in path:
        if rule_of(node, rules) is None:
            raise unsupported(node, rules)
    pending: dict[str, list[Cotangent]] = {name: [seed] for name, seed in seeds.items()}
    for node in reversed(path):
        arriving = [
            tape.total(pending.pop(name), graph.shape(name)) if name in pending else None for name in node.output
        ]
        if not any(arriving):
            continue
        for name, share in zip(node.input, shares(tape, node, arriving, rules), strict=False):
            if share is not None and name in tape.active:
                pending.setdefault(name, []).append(share)
    if wrt not in pending:
        return tape.emit("Mul", [wrt, tape.constant(0.0)])
    return tape.dense(tape.total(pending[wrt], graph.shape(wrt)), graph.shape(wrt))


def path_to(tape: Tape, seeded: set[str], wrt: str) -> list[onnx.NodeProto]:
    """Nodes between `wrt` and the seeded tensors, in topological order; tells the tape what depends on `wrt`."""
    tape.active = frozenset(reachable(tape.graph, wrt))
    tape.intervals = value_intervals(tape.graph)
    return nodes_between(tape.graph, tape.active, seeded)


def shares(
    tape: Tape, node: onnx.NodeProto, arriving: list[Cotangent | None], rules: Mapping[str, Rule | JointRule]
) -> list[Cotangent | None]:
    """Cotangents of a node's inputs, given those of its outputs."""
    rule = rule_of(node, rules)
    if rule is None:
        raise unsupported(node, rules)
    if isinstance(rule, JointRule):
        return rule.shares(tape, node, arriving)
    first, *further = arriving
    if first is None or any(further):
        raise UnsupportedOperator(f"{node.op_type} with its further outputs in use", where=node_label(node))
    return rule(tape, node, first)


def reachable(graph: PrimalGraph, source: str) -> set[str]:
    """Tensors that depend on `source`; shapes carry no gradient."""
    found = {source}
    for node in graph.nodes:
        if node.op_type not in ("Shape", "Size") and any(name in found for name in node.input):
            found.update(node.output)
    return found


def nodes_between(graph: PrimalGraph, active: frozenset[str], wanted: set[str]) -> list[onnx.NodeProto]:
    """Nodes on a path from an active tensor to a wanted one, in topological order.

    The path ends at conditions and indices, whose derivative is 0 wherever it exists, unless a Cast makes numbers of
    them: a network whose decisions are hidden so has a gradient of zeros, which nobody should take for robustness.
    """
    needed, path = set(wanted), []
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.output) and any(name in active for name in node.input):
            into_numbers = node.op_type == "Cast"
            needed.update(name for name in node.input if name and (into_numbers or carries_gradient(graph, name)))
            path.append(node)
    return path[::-1]


def carries_gradient(graph: PrimalGraph, tensor: str) -> bool:
    return graph.dtypes.get(tensor) not in DECISIONS


def rule_of(node: onnx.NodeProto, rules: Mapping[str, Rule | JointRule]) -> Rule | JointRule | None:
    return rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def unsupported(node: onnx.NodeProto, rules: Mapping[str, Rule | JointRule]) -> UnsupportedOperator:
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    missing = f"the operator {operator} has no gradient rule"
    if not node.domain and node.op_type in REASONS:
        return UnsupportedOperator(f"{missing}: {REASONS[node.op_type]}", where=node_label(node))
    return UnsupportedOperator(missing, where=node_label(node), remedy=f"supported are {', '.join(sorted(rules))}")
