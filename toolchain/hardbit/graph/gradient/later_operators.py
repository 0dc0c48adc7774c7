"""Models of later opsets, and operators that opset 18 has not or has otherwise, written in those of opset 18.

Gelu came with opset 20; GroupNormalization was corrected in 21, where its scale is one for each channel and not for
each group. Of all other operators a model of opset 19 to 21 may hold those whose definition is that of 18, or differs
in the types it admits only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes, index_graph
from hardbit.graph.gradient.tape import OPSET
from hardbit_deploy.errors import HardbitError

__all__ = ["in_opset_18"]

LATEST = 21
# Changed after opset 18, but not in what they compute of the types and attributes that 18 has.
WIDENED = frozenset(
    {
        *("Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "QuantizeLinear"),
        *("Flatten", "Identity", "Pad", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze", "Transpose", "AveragePool"),
        *("Equal", "ReduceMax", "ReduceMin", "Resize", "Reciprocal", "IsInf", "IsNaN"),
    }
)


Rewrite = Callable[["Writer", onnx.NodeProto, int, Shape], None]


class Writer:
    """Nodes that stand for one node, named after it, and their constants."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.label = node.name or node.output[0]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def emit(self, op_type: str, inputs: list[str], *, output: str = "", **options: Any) -> str:
        name = f"{self.label}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output or name], name=name, **options))
        return output or name

    def integers(self, values: list[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def constant(self, value: float | NDArray[np.generic]) -> str:
        array = np.asarray(value, np.float32) if isinstance(value, float) else value
        name = f"{self.label}.constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def in_opset_18(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as it is if opset 18 says all of it, else an equal one of opset 18.

    Raises HardbitError for an opset before 18 or after 21, UnsupportedOperator for a node that cannot be said in 18.
    """
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OPSET <= version <= LATEST:
        raise HardbitError(
            f"the graph is written in opset {version}, the gradient in opset {OPSET}",
            where="opset_import",
            remedy=f"export with opset {OPSET}, or convert with onnx.version_converter",
        )
    rewrites: dict[str, Rewrite] = {"Gelu": gelu, "GroupNormalization": group_normalization}
    if version == OPSET and not any(node.op_type in rewrites for node in model.graph.node):
        return model
    shapes = index_graph(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in model.graph.node:
        write = rewrites.get(node.op_type)
        if node.domain not in ("", "ai.onnx") or write is None:
            require_definition_of_18(node, version)
            copy.graph.node.append(node)
            continue
        writer = Writer(node)
        write(writer, node, version, shapes.shape(node.input[0]))
        copy.graph.node.extend(writer.nodes)
        copy.graph.initializer.extend(writer.constants)
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    return copy


def require_definition_of_18(node: onnx.NodeProto, version: int) -> None:
    if node.domain not in ("", "ai.onnx") or version == OPSET or node.op_type in WIDENED:
        return
    if onnx.defs.get_schema(node.op_type, version).since_version > OPSET:
        raise UnsupportedOperator(f"{node.op_type} of opset {version} differs from opset {OPSET}", node_label(node))


def gelu(writer: Writer, node: onnx.NodeProto, version: int, shape: Shape) -> None:
    """x times the normal distribution's share below x, or its approximation by a tanh (Hendrycks and Gimpel 2016,
    arXiv:1606.08415)."""
    x, half, one = node.input[0], writer.constant(0.5), writer.constant(1.0)
    if attributes(node).get("approximate", "none") == "tanh":
        cube = writer.emit("Mul", [writer.emit("Mul", [x, x]), x])
        bent = writer.emit("Add", [x, writer.emit("Mul", [cube, writer.constant(0.044715)])])
        curve = writer.emit("Tanh", [writer.emit("Mul", [bent, writer.constant(math.sqrt(2 / math.pi))])])
    else:
        curve = writer.emit("Erf", [writer.emit("Mul", [x, writer.constant(math.sqrt(0.5))])])
    share = writer.emit("Mul", [writer.emit("Add", [curve, one]), half])
    writer.emit("Mul", [x, share], output=node.output[0])


def group_normalization(writer: Writer, node: onnx.NodeProto, version: int, shape: Shape) -> None:
    """InstanceNormalization of the groups, then scale and bias (Wu and He 2018, arXiv:1803.08494)."""
    options = attributes(node)
    groups = options["num_groups"]
    ones, zeros = writer.constant(np.ones(groups, np.float32)), writer.constant(np.zeros(groups, np.float32))
    as_groups = writer.emit("Reshape", [node.input[0], writer.integers([0, groups, -1])])
    epsilon = {"epsilon": options["epsilon"]} if "epsilon" in options else {}
    normal = writer.emit("InstanceNormalization", [as_groups, ones, zeros], **epsilon)
    whole = writer.integers([0, *(int(size or 0) for size in shape[1:])])
    if version < LATEST:  # one scale for each group: applied while the groups are apart
        normal = scaled(writer, normal, node, [1, groups, 1])
        writer.emit("Reshape", [normal, whole], output=node.output[0])
    else:
        normal = writer.emit("Reshape", [normal, whole])
        scaled(writer, normal, node, [1, -1, *[1] * (len(shape) - 2)], node.output[0])


def scaled(writer: Writer, tensor: str, node: onnx.NodeProto, shape: list[int], output: str = "") -> str:
    """`tensor` times the second input of a node plus the third, both in a shape that broadcasts."""
    scale, bias = (writer.emit("Reshape", [name, writer.integers(shape)]) for name in node.input[1:3])
    return writer.emit("Add", [writer.emit("Mul", [tensor, scale]), bias], output=output)
