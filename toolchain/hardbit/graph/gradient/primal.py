"""A read-only index over the graph that is differentiated: who makes a tensor, who reads it, its shape, its value."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hardbit.graph.gradient.errors import node_label
from hardbit_deploy.errors import HardbitError

__all__ = ["PrimalGraph", "Shape", "attributes", "index_graph", "input_name"]

Shape = tuple[int | None, ...]  # None is the batch, on whichever axis it is
REFERENCE_OPSET = 19  # onnx.reference has no older DequantizeLinear; 19 adds types to it and changes nothing


@dataclass(frozen=True)
class PrimalGraph:
    """Nodes in topological order, and what is known about every tensor by its name.

    `constants` holds initializers and every tensor that follows from them alone (dequantized weights, say); the nodes
    that make the latter are in `folded` by output, not in `nodes`.
    """

    nodes: tuple[onnx.NodeProto, ...]
    folded: dict[str, onnx.NodeProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, Shape]
    dtypes: dict[str, int]
    producers: dict[str, onnx.NodeProto]
    consumers: dict[str, list[onnx.NodeProto]]

    def shape(self, tensor: str) -> Shape:
        """Shape with None for the batch; raises HardbitError where more than the batch is unknown."""
        shape = self.shapes.get(tensor)
        if shape is None or shape.count(None) > 1:
            raise HardbitError(
                "the shape of this tensor cannot be inferred beyond its batch",
                where=f"tensor {tensor!r}",
                remedy="export the network with fixed image size; only the batch may be dynamic",
            )
        return shape

    def constant(self, node: onnx.NodeProto, position: int) -> NDArray[Any] | None:
        """The constant at an input of a node, or None where that input is absent or is computed from the image."""
        name = input_name(node, position)
        return self.constants.get(name) if name else None

    def sole_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """The one reader of a tensor that is no graph output, else None."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None


def input_name(node: onnx.NodeProto, position: int) -> str:
    """Name of an input, empty where it is left out."""
    return node.input[position] if position < len(node.input) else ""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values; strings are decoded."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def index_graph(model: onnx.ModelProto) -> PrimalGraph:
    """Infer shapes and index a model; `model` is not modified."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # a stale entry would win over inference
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    folded: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if fold_constant(node, constants):
            folded.update((name, node) for name in node.output)
        else:
            nodes.append(node)
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in dict.fromkeys(node.input):
            consumers[name].append(node)
    described = [*graph.value_info, *graph.input, *graph.output]
    shapes = {value.name: shape_of(value) for value in described}
    dtypes = {value.name: value.type.tensor_type.elem_type for value in described}
    for name, array in constants.items():
        shapes[name] = array.shape
        dtypes[name] = helper.np_dtype_to_tensor_dtype(array.dtype)
    return PrimalGraph(
        nodes=tuple(nodes),
        folded=folded,
        inputs=tuple(value.name for value in graph.input if value.name not in constants),
        outputs=tuple(value.name for value in graph.output),
        constants=constants,
        shapes={name: shape for name, shape in shapes.items() if shape is not None},
        dtypes=dtypes,
        producers={name: node for node in nodes for name in node.output},
        consumers=dict(consumers),
    )


def shape_of(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def fold_constant(node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> bool:
    """Evaluate a node that reads constants only and add its outputs to `constants`; False for every other node."""
    if any(name and name not in constants for name in node.input):
        return False
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return False
    feeds = {name: constants[name] for name in node.input if name}
    graph = helper.make_graph(
        [node],
        "constant",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", REFERENCE_OPSET)])
    try:
        values = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        raise HardbitError(
            f"this {node.op_type} of constants cannot be evaluated: {error}", where=node_label(node)
        ) from error
    constants.update(
        (name, np.asarray(value)) for name, value in zip((n for n in node.output if n), values, strict=True)
    )
    return True
