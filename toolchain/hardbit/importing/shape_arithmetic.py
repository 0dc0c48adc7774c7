"""Arithmetic on sizes: `Shape`, and all that follows from it and from constants alone, becomes numbers.

What depends on the number of images keeps a form that later steps know: -1 in a Reshape, and for a constant that is
repeated for every image, such as a class token, one Expand whose batch is read from the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph

__all__ = ["constant_shapes", "repeated_for_each_image", "settle_shapes"]

Values = Mapping[str, NDArray[Any]]
_SOURCES = ("Shape", "Size")


def constant_shapes(model: onnx.ModelProto, values: Values) -> onnx.ModelProto:
    """A copy in which all that follows from sizes alone has the value that it has in `values`."""
    graph = OnnxGraph(model)
    for tensor, readers in _borders(graph).items():
        graph.replace_uses(tensor, graph.add_constant(f"{tensor}.value", values[tensor]), readers)
    graph.prune()
    return graph.to_model()


def settle_shapes(model: onnx.ModelProto, image: str, two: Values, three: Values) -> onnx.ModelProto:
    """A copy in which what follows from sizes is constant, or in one of the forms for the batch; `two` and `three` hold
    every tensor's value for so many images. What fits no form stays as it is."""
    graph = OnnxGraph(model)
    for tensor, readers in _borders(graph).items():
        ours, theirs = two[tensor], three[tensor]
        if ours.shape == theirs.shape and np.array_equal(ours, theirs):
            graph.replace_uses(tensor, graph.add_constant(f"{tensor}.value", ours), readers)
        elif _repeats(ours, theirs):
            token = graph.add_constant(f"{tensor}.value", ours[:1])
            graph.replace_uses(tensor, repeated_for_each_image(graph, token, image, tensor, readers[0]), readers)
        else:
            for reader in readers:
                _settle_reshape(graph, reader, tensor, ours, two, three)
    for node in graph.nodes:
        if node.op_type == "Reshape" and graph.operand(node, 1) is not None:
            _name_free_sizes(graph, node, two, three)
    graph.prune()
    return graph.to_model()


def repeated_for_each_image(graph: OnnxGraph, constant: str, image: str, name: str, place: onnx.NodeProto) -> str:
    """Write, before `place`, the constant (1, ...) once for every image; returns the tensor (batch, ...)."""
    value = graph.constant(constant)
    sizes = np.array(() if value is None else value.shape[1:], np.int64)
    batch, target = graph.unused_name(f"{name}.batch"), graph.unused_name(f"{name}.sizes")
    repeated = graph.unused_name(f"{name}.repeated")
    rest = graph.add_constant(f"{name}.rest", sizes)
    for operator, inputs, output, more in (
        ("Shape", [image], batch, {"start": 0, "end": 1}),
        ("Concat", [batch, rest], target, {"axis": 0}),
        ("Expand", [constant, target], repeated, {}),
    ):
        node_name = graph.unused_node_name(output)
        graph.insert_before(place, helper.make_node(operator, inputs, [output], name=node_name, **more))
    return repeated


def _borders(graph: OnnxGraph) -> dict[str, list[onnx.NodeProto]]:
    """Tensors that follow from sizes alone, with those of their readers that do not, in graph order."""
    known: set[str] = set()
    makers: list[onnx.NodeProto] = []
    for node in graph.nodes:
        inputs = [name for name in node.input if name and not graph.is_constant(name)]
        if node.op_type in _SOURCES or (inputs and all(name in known for name in inputs)):
            known.update(node.output)
            makers.append(node)
    inside = {id(node) for node in makers}
    borders = {}
    for node in makers:
        for name in node.output:
            readers = [reader for reader in graph.consumers(name) if id(reader) not in inside]
            if readers:
                borders[name] = readers
    return borders


def _repeats(two: NDArray[Any], three: NDArray[Any]) -> bool:
    """Whether it is one thing, once for every image."""
    return (
        two.shape[:1] == (2,)
        and three.shape[:1] == (3,)
        and two.shape[1:] == three.shape[1:]
        and all(np.array_equal(two[0], part) for part in (*two[1:], *three))
    )


def _settle_reshape(
    graph: OnnxGraph, node: onnx.NodeProto, tensor: str, sizes: NDArray[Any], two: Values, three: Values
) -> None:
    if node.op_type != "Reshape" or node.input[1] != tensor or sizes.ndim != 1:
        return
    target = _free_sizes(two[node.output[0]].shape, three[node.output[0]].shape)
    if target is not None:
        graph.set_input(node, 1, graph.add_constant(f"{node.name}.sizes", target))


def _name_free_sizes(graph: OnnxGraph, node: onnx.NodeProto, two: Values, three: Values) -> None:
    """Numbers for what a Reshape leaves open although it is the same for any number of images, -1 for the batch.

    So whoever infers shapes without knowing the batch finds every other size.
    """
    if node.output[0] not in two:
        return
    target, given = _free_sizes(two[node.output[0]].shape, three[node.output[0]].shape), graph.operand(node, 1)
    if target is not None and given is not None and not np.array_equal(given, target):
        graph.set_input(node, 1, graph.add_constant(f"{node.name}.sizes", target))
        for entry in [entry for entry in node.attribute if entry.name == "allowzero"]:
            node.attribute.remove(entry)


def _free_sizes(two: tuple[int, ...], three: tuple[int, ...]) -> NDArray[np.int64] | None:
    """The shape with -1 where it follows the batch; None where that is not one place."""
    if len(two) != len(three) or 0 in two:
        return None
    free = [place for place, (ours, theirs) in enumerate(zip(two, three, strict=True)) if ours != theirs]
    if len(free) != 1:
        return None
    target = np.array(two, np.int64)
    target[free[0]] = -1
    return target
