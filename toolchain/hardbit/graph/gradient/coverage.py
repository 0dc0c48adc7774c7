"""Which nodes of a graph the gradient rules cover, without building an attack graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import onnx

from hardbit.graph.gradient.later_operators import in_opset_18
from hardbit.graph.gradient.primal import index_graph
from hardbit.graph.gradient.rules import RULES
from hardbit.graph.gradient.tape import Cotangent, StraightThrough, Tape, path_to, shares
from hardbit_deploy.errors import HardbitError

__all__ = ["NodeCoverage", "Status", "coverage"]

Status = Literal["covered", "not on the path", "missing"]
OFF_THE_PATH = "its value does not lie between the image and the logits"
CONSTANT = "it is a constant"


@dataclass(frozen=True)
class NodeCoverage:
    """One node: its name (its first output where it has none), its operator, and why it is not simply covered."""

    name: str
    operator: str
    status: Status
    reason: str = ""


def coverage(model: onnx.ModelProto, *, straight_through: StraightThrough = "clipped") -> tuple[NodeCoverage, ...]:
    """Every node of a classifier's graph in its order, with what the rules say of it.

    The path runs from every input to every output. A rule is tried on each node of it by itself, so all that is missing
    is found at once. Raises HardbitError for a model that no rule can be tried on: one of an opset before 18.
    """
    graph = index_graph(in_opset_18(model))
    tape = Tape(graph, straight_through=straight_through)
    found: dict[str, NodeCoverage] = {}
    for image in graph.inputs:
        for node in path_to(tape, set(graph.outputs), image):
            known = found.get(node.output[0])
            if known is None or known.status == "covered":
                found[node.output[0]] = tried(tape, node)
    # What a later operator is written out in ends in a node with the output of that operator.
    rows = []
    for node in model.graph.node:
        beside = CONSTANT if node.output[0] in graph.constants else OFF_THE_PATH
        known = found.get(node.output[0], NodeCoverage("", "", "not on the path", beside))
        rows.append(replace(known, name=label(node), operator=node.op_type))
    return tuple(rows)


def tried(tape: Tape, node: onnx.NodeProto) -> NodeCoverage:
    """What the rule of one node says to a cotangent of its outputs."""
    arriving: list[Cotangent | None] = [Cotangent("tried")]
    arriving += [Cotangent("tried") if node.op_type == "Split" else None for _ in node.output[1:]]
    try:
        shares(tape, node, arriving, RULES)
    except HardbitError as error:
        return NodeCoverage(label(node), node.op_type, "missing", error.message)
    return NodeCoverage(label(node), node.op_type, "covered")


def label(node: onnx.NodeProto) -> str:
    return node.name or next(name for name in node.output if name)
