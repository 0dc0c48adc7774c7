"""The front of an imported network: what makes its own input out of hardbit's, as nodes of the graph.

hardbit's input is `image` float32 (batch, channels, height, width), (pixel - 128) / 256. One Mul and one Add for each
channel bring it to what the network reads; a Gather, Transpose or Reshape follows where the network wants its channels
in another order, last, or as a row. What the network itself multiplies and adds at its front moves into the two.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.importing.image_input import ImageInput
from hardbit.importing.preprocessing import Preprocessing
from hardbit.importing.words import IMAGE
from hardbit_deploy.errors import HardbitError

__all__ = ["add_front", "front_nodes"]

PREFIX = "preprocessing."


def front_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that `add_front` wrote."""
    return [node.name for node in model.graph.node if node.name.startswith(PREFIX)]


def add_front(model: onnx.ModelProto, image: ImageInput, preprocessing: Preprocessing) -> onnx.ModelProto:
    """A copy of `model` that reads `image` instead of its own input."""
    graph = OnnxGraph(model)
    factor, shift = preprocessing.on_image(image.shape[0])
    own = image.name
    if image.reads_whole_numbers:
        own = _behind_casts(graph, image)
    own, factor, shift = _with_own_arithmetic(graph, own, image, factor, shift)
    nodes: list[onnx.NodeProto] = []
    tensor = IMAGE

    def write(operator: str, inputs: list[str], place: str, **attributes: object) -> str:
        target = graph.unused_name(f"{PREFIX}{place}.out")
        name = graph.unused_node_name(f"{PREFIX}{place}")
        nodes.append(helper.make_node(operator, inputs, [target], name=name, **attributes))
        return target

    def constant(place: str, values: NDArray[np.generic]) -> str:
        return graph.add_constant(f"{PREFIX}{place}", values)

    if preprocessing.channels == "bgr" and image.shape[0] > 1:
        order = constant("order.channels", np.arange(image.shape[0], dtype=np.int64)[::-1].copy())
        tensor = write("Gather", [tensor, order], "order", axis=1)
    if not np.array_equal(factor, np.ones_like(factor)) or shift.any():
        for operator, place, values in (("Mul", "scale", factor), ("Add", "shift", shift)):
            numbers = constant(f"{place}.values", values.astype(np.float32).reshape(1, -1, 1, 1))
            tensor = write(operator, [tensor, numbers], place)
    if image.channels_last:
        tensor = write("Transpose", [tensor], "channels_last", perm=[0, 2, 3, 1])
    if image.is_flat:
        sizes = constant("row.sizes", np.array([-1, *image.sizes], np.int64))
        tensor = write("Reshape", [tensor, sizes], "row")
    if tensor == IMAGE:
        tensor = write("Identity", [tensor], "nothing")
    nodes[-1].output[0] = own
    graph.nodes[:0] = nodes
    graph.prune()
    return _with_image_input(graph.to_model(), image)


def _with_image_input(model: onnx.ModelProto, image: ImageInput) -> onnx.ModelProto:
    del model.graph.input[:]
    sizes = ["batch", *image.shape]
    model.graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, sizes))
    return model


def _behind_casts(graph: OnnxGraph, image: ImageInput) -> str:
    """The float tensor that a network that reads whole numbers makes of them first, under one name."""
    readers = graph.consumers(image.name)
    for reader in readers:
        if reader.op_type != "Cast" or attribute(reader, "to", 0) != TensorProto.FLOAT:
            raise HardbitError(
                f"{reader.op_type} reads the image as whole numbers",
                where=reader.name,
                remedy="let the network begin with a Cast to float, or give it a float input",
            )
    first = readers[0].output[0]
    for reader in readers:
        graph.replace_uses(reader.output[0], first)
        graph.remove(reader)
    return first


def _with_own_arithmetic(
    graph: OnnxGraph, tensor: str, image: ImageInput, factor: NDArray[np.float64], shift: NDArray[np.float64]
) -> tuple[str, NDArray[np.float64], NDArray[np.float64]]:
    """Take the network's own scaling of its input out of `graph` and into factor and shift (channels,)."""
    while True:
        readers = graph.consumers(tensor)
        node = readers[0] if len(readers) == 1 else None
        if node is None or node.op_type not in ("Add", "Sub", "Mul", "Div") or graph.is_output(node.output[0]):
            return tensor, factor, shift
        place = 1 if node.input[0] == tensor else 0
        values = _for_each_channel(graph.operand(node, place), image)
        if values is None or (place == 0 and node.op_type == "Div") or (node.op_type == "Div" and not values.all()):
            return tensor, factor, shift
        if node.op_type == "Mul":
            factor, shift = factor * values, shift * values
        elif node.op_type == "Div":
            factor, shift = factor / values, shift / values
        elif node.op_type == "Add":
            shift = shift + values
        else:
            factor, shift = (factor, shift - values) if place == 1 else (-factor, values - shift)
        tensor = node.output[0]
        graph.remove(node)


def _for_each_channel(values: NDArray[np.generic] | None, image: ImageInput) -> NDArray[np.float64] | None:
    """A constant as float64 (channels,), if it is one number, or one for each channel of the network's own input."""
    channels = image.shape[0]
    if values is None or not np.issubdtype(values.dtype, np.floating):
        return None
    if values.size == 1:
        return np.full(channels, values.item(), np.float64)
    if image.is_flat or values.ndim > 4:
        return None
    wanted = (1, 1, 1, channels) if image.channels_last else (1, channels, 1, 1)
    padded = (1,) * (4 - values.ndim) + values.shape
    return values.astype(np.float64).reshape(-1) if padded == wanted else None
