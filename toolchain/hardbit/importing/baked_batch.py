"""Where a network exported for one image has that one written into it, and how it reads for any number.

The batch is followed by the shapes of all tensors for one image and for several: the axis that differs holds it. Behind
the first shape that forgets the batch the network is wrong, so places are mended one after the other, in graph order.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.importing.image_input import ImageInput
from hardbit.importing.probing import ProbeError, blamed_node, tensors_of
from hardbit.importing.shape_arithmetic import repeated_for_each_image
from hardbit.importing.stand_ins import with_standard_shapes

__all__ = ["rewrite_baked_batch"]

_MANY = 7  # images: a number that no axis of a network is a multiple of by chance, and if it is, nothing is rewritten
Shapes = dict[str, tuple[int, ...]]


def rewrite_baked_batch(model: onnx.ModelProto, image: ImageInput) -> tuple[onnx.ModelProto, list[str]]:
    """A copy with every place mended that can be, and the names of those nodes. All shapes in `model` are constants."""
    graph, places = OnnxGraph(model), []
    for _ in range(2 * len(graph.nodes)):
        place = _mend_first(graph, image)
        if place is None:
            break
        places.append(place)
    return graph.to_model(), places


def _mend_first(graph: OnnxGraph, image: ImageInput) -> str | None:
    """Mend the first place that forgets the batch; its node's name, or None where there is none."""
    one, many = (_shapes(graph.to_model(), image, count) for count in (1, _MANY))
    outside: dict[str, int] = {}  # of the numbers in an axis that holds the batch, how many stand outside of it
    for node in graph.nodes:
        source = node.input[0] if node.input else ""
        axis = _batch_axis(source, one, many)
        if node.op_type == "Concat" and _mend_concat(graph, node, image, one, many):
            return node.name
        if axis is not None:
            before = math.prod(one[source][:axis]) * outside.get(source, 1)
            if node.op_type == "Reshape" and _mend_reshape(graph, node, before, one, many):
                return node.name
            if node.op_type == "Resize" and _mend_resize(graph, node, axis, one):
                return node.name
            if node.op_type == "Expand" and _mend_expand(graph, node, axis, one):
                return node.name
            if node.op_type == "Reshape" and (place := _batch_axis(node.output[0], one, many)) is not None:
                outside[node.output[0]] = max(1, before // math.prod(one[node.output[0]][:place]))
        if node.op_type != "Reshape":
            _hand_on(node, outside, one, many)
    return None


def _hand_on(node: onnx.NodeProto, outside: dict[str, int], one: Shapes, many: Shapes) -> None:
    """What does not reshape keeps an axis that holds the batch together, wherever it moves it."""
    for name in node.input:
        axis = _batch_axis(name, one, many)
        if outside.get(name, 1) == 1 or axis is None:
            continue
        for output in node.output:
            place = _batch_axis(output, one, many)
            if place is not None and one[output][place] == one[name][axis]:
                outside[output] = outside[name]


def _shapes(model: onnx.ModelProto, image: ImageInput, count: int) -> Shapes:
    sized = with_standard_shapes(model)
    kind = sized.graph.input[0].type.tensor_type.elem_type
    sized.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(image.name, kind, [count, *image.sizes]))
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    found: Shapes = {} if _all_known(inferred) else _seen_shapes(model, image, count)
    found |= {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            found[value.name] = tuple(size.dim_value for size in sizes)
    return found


def _all_known(graph: onnx.GraphProto) -> bool:
    known = {value.name for value in (*graph.value_info, *graph.output) if value.type.tensor_type.HasField("shape")}
    return all(name in known for node in graph.node for name in node.output if name)


def _seen_shapes(model: onnx.ModelProto, image: ImageInput, count: int) -> Shapes:
    """What inference may not know: shapes of a run, up to the node that cannot take so many images."""
    started = onnx.ModelProto()
    started.CopyFrom(model)
    while started.graph.node:
        try:
            values = tensors_of(started, image.any_feed(count))
        except ProbeError as error:
            names = [node.name for node in started.graph.node]
            if blamed_node(error) not in names:
                return {}
            del started.graph.node[names.index(blamed_node(error)) :]
        else:
            return {name: value.shape for name, value in values.items()}
    return {}


def _batch_axis(tensor: str, one: Shapes, many: Shapes) -> int | None:
    """The one axis of `tensor` that is longer for more images."""
    if tensor not in one or tensor not in many or len(one[tensor]) != len(many[tensor]):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(one[tensor], many[tensor], strict=True)) if b == a * _MANY != a]
    return axes[0] if len(axes) == 1 else None


def _mend_reshape(graph: OnnxGraph, node: onnx.NodeProto, before: int, one: Shapes, many: Shapes) -> bool:
    """-1 where the batch goes: before it stand as many numbers as in the input, `before`."""
    output = node.output[0]
    given = graph.operand(node, 1)
    place = _place_of_batch(one.get(output, ()), before)
    if given is None or place is None or _batch_axis(output, one, many) == place:
        return False
    target = np.array(one[output], np.int64)
    target[place] = -1
    if np.array_equal(target, given):
        return False
    graph.set_input(node, 1, graph.add_constant(f"{node.name}.sizes", target))
    for entry in [entry for entry in node.attribute if entry.name == "allowzero"]:
        node.attribute.remove(entry)
    return True


def _place_of_batch(sizes: tuple[int, ...], before: int) -> int | None:
    """The axis of a shape for one image that takes the batch, with so many numbers before it.

    Best is an axis of one. Else it begins an axis, such as that of the heads, or it ends one, such as the rows of a
    matrix: in a matrix the latter is meant.
    """
    starts = [math.prod(sizes[:place]) for place in range(len(sizes))]
    begins = [place for place, start in enumerate(starts) if start == before]
    inside = [
        place for place, start in enumerate(starts) if start < before <= start * sizes[place] and before % start == 0
    ]
    ones = [place for place in begins if sizes[place] == 1]
    ordered = ones + (inside + begins if len(sizes) == 2 else begins + inside)
    return ordered[0] if ordered else None


def _mend_resize(graph: OnnxGraph, node: onnx.NodeProto, axis: int, one: Shapes) -> bool:
    """Sizes of all axes become sizes of the others."""
    sizes, shape = graph.operand(node, 3), one.get(node.input[0], ())
    if sizes is None or attribute(node, "axes", None) is not None or len(sizes) != len(shape) or axis != 0:
        return False
    factors = np.array([1.0, *(float(size) / own for size, own in zip(sizes[1:], shape[1:], strict=True))], np.float32)
    if not np.array_equal(np.floor(np.array(shape[1:]) * factors[1:]).astype(np.int64), sizes[1:]):
        return False
    graph.set_input(node, 2, graph.add_constant(f"{node.name}.factors", factors))
    del node.input[3]
    graph.prune()
    return True


def _mend_expand(graph: OnnxGraph, node: onnx.NodeProto, axis: int, one: Shapes) -> bool:
    """Expand takes 1 for "as it is", so a batch of 1 disturbs nothing; an Expand to the shape that is there does."""
    target = graph.operand(node, 1)
    shape = one.get(node.input[0], ())
    if target is None or len(target) != len(shape) or target[axis] == 1 or axis != 0:
        return False
    free = target.copy()
    free[axis] = 1
    graph.set_input(node, 1, graph.add_constant(f"{node.name}.sizes", free))
    return True


def _mend_concat(graph: OnnxGraph, node: onnx.NodeProto, image: ImageInput, one: Shapes, many: Shapes) -> bool:
    """A constant beside what the images make, such as a class token, is repeated for every image."""
    axes = {name: _batch_axis(name, one, many) for name in node.input}
    if 0 not in axes.values() or attribute(node, "axis", 0) == 0:
        return False
    baked = [name for name in node.input if graph.is_constant(name) and one.get(name, ())[:1] == (1,)]
    if not baked:
        return False
    for name in baked:
        repeated = repeated_for_each_image(graph, name, image.name, f"{node.name}.{name}", node)
        graph.replace_uses(name, repeated, [node])
    return True
