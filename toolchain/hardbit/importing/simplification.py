"""Small rewrites that keep a network's values and leave fewer operators to quantize and to differentiate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.graph.passes import RemoveIdentities
from hardbit.importing.words import IMAGE
from hardbit_deploy.errors import HardbitError

__all__ = ["absorb_padding", "drop_idle_nodes", "explicit_padding", "join_double_signs", "merge_transposes"]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_LEAST_NORMAL = np.finfo(np.float32).tiny


def drop_idle_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without Identity, Dropout of inference, casts from float to float, and Sum or Concat of one thing.

    Raises HardbitError for a Dropout in training mode.
    """
    graph = OnnxGraph(model)
    types = _element_types(model)
    for node in graph.nodes:
        if node.op_type == "Dropout":
            training = graph.operand(node, 2)
            if (training is not None and training.any()) or any(map(graph.consumers, node.output[1:])):
                raise HardbitError(
                    "this Dropout is in training mode",
                    where=node.name,
                    remedy="export the network for inference (model.eval())",
                )
        idle = node.op_type == "Dropout" or (
            node.op_type in ("Concat", "Max", "Mean", "Min", "Sum") and len(node.input) == 1
        )
        if node.op_type == "Cast" and types.get(node.input[0]) in _FLOATS and attribute(node, "to", 0) in _FLOATS:
            idle = True
        if idle:
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    return RemoveIdentities().apply(graph.to_model())


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def explicit_padding(graph: OnnxGraph) -> int:
    """Write out, in place, the padding of convolutions and pools that ask for SAME or VALID; returns how many."""
    asking = [node for node in graph.nodes if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET")]
    if not asking:
        return 0
    sizes = _spatial_sizes(graph.to_model())
    done = 0
    for node in asking:
        size, kernel = sizes.get(node.input[0]), _kernel(graph, node)
        if node.op_type not in ("AveragePool", "Conv", "LpPool", "MaxPool") or size is None or kernel is None:
            continue
        mode = attribute(node, "auto_pad", b"NOTSET")
        pads = [0] * (2 * len(kernel))
        if mode in (b"SAME_UPPER", b"SAME_LOWER"):
            strides = _integers(node, "strides", len(kernel))
            dilations = _integers(node, "dilations", len(kernel))
            for axis, (length, extent) in enumerate(zip(size, kernel, strict=True)):
                reach = (extent - 1) * dilations[axis] + 1
                missing = max(0, (-(-length // strides[axis]) - 1) * strides[axis] + reach - length)
                small, large = missing // 2, missing - missing // 2
                ends = (small, large) if mode == b"SAME_UPPER" else (large, small)
                pads[axis], pads[axis + len(kernel)] = ends
        _set_attribute(node, "pads", pads)
        _drop_attribute(node, "auto_pad")
        done += 1
    return done


def absorb_padding(graph: OnnxGraph) -> int:
    """Let convolutions pad with zeros themselves where a Pad before them does; in place, returns how many."""
    done = 0
    for pad in [node for node in graph.nodes if node.op_type == "Pad"]:
        amounts, value = graph.operand(pad, 1), graph.operand(pad, 2)
        readers = graph.consumers(pad.output[0])
        plain = attribute(pad, "mode", b"constant") == b"constant" and (value is None or not value.any())
        if amounts is None or not plain or len(pad.input) > 3 or graph.is_output(pad.output[0]) or not readers:
            continue
        half = len(amounts) // 2
        spatial = [int(n) for n in (*amounts[2:half], *amounts[half + 2 :])]
        outside = [*amounts[:2], *amounts[half : half + 2]]
        if (
            any(outside)
            or min(spatial, default=-1) < 0
            or any(
                reader.op_type != "Conv" or list(reader.input).index(pad.output[0]) != 0 or not _is_explicit(reader)
                for reader in readers
            )
        ):
            continue
        for reader in readers:
            own = _integers(reader, "pads", len(spatial), 0)
            _set_attribute(reader, "pads", [a + b for a, b in zip(own, spatial, strict=True)])
        graph.replace_uses(pad.output[0], pad.input[0])
        graph.remove(pad)
        done += 1
    return done


def merge_transposes(graph: OnnxGraph) -> int:
    """One Transpose for two in a row, none where they cancel; in place, returns how many went."""
    before = len(graph.nodes)
    for node in [node for node in graph.nodes if node.op_type == "Transpose"]:
        first = graph.producer(node.input[0])
        if first is None or first.op_type != "Transpose":
            continue
        inner, outer = attribute(first, "perm", None), attribute(node, "perm", None)
        if not isinstance(inner, list) or not isinstance(outer, list):
            continue
        joined = [inner[axis] for axis in outer]
        if joined != list(range(len(joined))):
            graph.set_input(node, 0, first.input[0])
            _set_attribute(node, "perm", joined)
        elif not graph.is_output(node.output[0]) or first.input[0] == IMAGE:
            graph.replace_uses(node.output[0], first.input[0])
            if not graph.is_output(node.output[0]):
                graph.remove(node)
    graph.prune()
    return before - len(graph.nodes)


def join_double_signs(graph: OnnxGraph) -> int:
    """Sign(Sign(x) + c) with 0 < c < 1, by which Larq lets 0 count as +1, becomes Sign(x + t); returns how many.

    t is the smallest normal float32, so the two differ for x from -t to 0 alone. The derivative straight through two
    signs would be 0 wherever the first is +1, since 1 + c lies outside of [-1, 1].
    """
    done = 0
    for outer in [node for node in graph.nodes if node.op_type == "Sign"]:
        add = graph.producer(outer.input[0])
        if add is None or add.op_type != "Add" or len(graph.consumers(add.output[0])) != 1:
            continue
        place = 1 if graph.is_constant(add.input[1]) else 0
        offset, inner = graph.operand(add, place), graph.producer(add.input[1 - place])
        if offset is None or offset.size != 1 or not 0 < offset.item() < 1 or inner is None or inner.op_type != "Sign":
            continue
        least = graph.add_constant(f"{add.name}.least", np.full(offset.shape, _LEAST_NORMAL, np.float32))
        graph.set_input(add, 1 - place, inner.input[0])
        graph.set_input(add, place, least)
        done += 1
    graph.prune()
    return done


def _spatial_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return dict(_known_sizes(model))


def _known_sizes(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*graph.input, *graph.value_info):
        sizes = value.type.tensor_type.shape.dim[2:]
        if sizes and all(size.HasField("dim_value") for size in sizes):
            yield value.name, tuple(size.dim_value for size in sizes)


def _kernel(graph: OnnxGraph, node: onnx.NodeProto) -> list[int] | None:
    given = attribute(node, "kernel_shape", None)
    if isinstance(given, list):
        return given
    weights = graph.operand(node, 1) if node.op_type == "Conv" else None
    return None if weights is None else list(weights.shape[2:])


def _is_explicit(node: onnx.NodeProto) -> bool:
    return attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"


def _integers(node: onnx.NodeProto, name: str, count: int, default: int = 1) -> list[int]:
    given = attribute(node, name, None)
    return given if isinstance(given, list) else [default] * count


def _set_attribute(node: onnx.NodeProto, name: str, value: list[int]) -> None:
    _drop_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    for entry in [entry for entry in node.attribute if entry.name == name]:
        node.attribute.remove(entry)
