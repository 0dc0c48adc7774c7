"""Anybody's ONNX image classifier -> a float graph in hardbit's own convention: the steps, in their order.

Boundary: quantizes nothing and differentiates nothing; imports no training framework.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import StripInitializerInputs
from hardbit.importing.batch import free_batch
from hardbit.importing.constants import fold_constants
from hardbit.importing.front import add_front
from hardbit.importing.image_input import ImageInput, find_image
from hardbit.importing.normalization import fold_batch_normalization
from hardbit.importing.preprocessing import Preprocessing
from hardbit.importing.probing import random_pixels, tensors_of
from hardbit.importing.quantized_sources import QONNX_DOMAINS, is_quantized
from hardbit.importing.reading import read_source
from hardbit.importing.same_network import require_same_network
from hardbit.importing.simplification import (
    absorb_padding,
    drop_idle_nodes,
    explicit_padding,
    join_double_signs,
    merge_transposes,
)
from hardbit.importing.single_precision import to_float32
from hardbit.importing.tail import end_in_logits
from hardbit.importing.versions import to_opset
from hardbit.importing.words import IMAGE, LOGITS, Shape
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file

__all__ = ["ImportedNetwork", "import_network"]


@dataclass(frozen=True)
class ImportedNetwork:
    """A network in hardbit's convention.

    `model`: opset 18, input `image` float32 (batch, channels, height, width), (pixel - 128) / 256, output `logits`
    float32 (batch, classes), every node with a name, those of the source kept. `input_shape` is (channels, height,
    width). `quantized` tells that the source holds quantized operators, which are still in it. `notes` say what was
    changed, one line each; `source_sha256` is of the file.
    """

    model: onnx.ModelProto
    input_shape: Shape
    classes: int
    notes: tuple[str, ...]
    quantized: bool
    preprocessing: Preprocessing
    source_sha256: str


def import_network(
    path: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    image_shape: Shape | None = None,
    output: str | None = None,
) -> ImportedNetwork:
    """Read an ONNX image classifier of any origin, opset 7 or newer.

    `preprocessing` is what happens to the bytes before the network; `image_shape` (channels, height, width) is that of
    the images at hand, needed where the network's input does not tell it; `output` names one of several outputs.
    Raises HardbitError in one line with the node's name for what cannot be taken. That the result computes what the
    source does is tried on images of noise.
    """
    given = preprocessing or Preprocessing()
    source = read_source(Path(path), output)
    quantized = is_quantized(source)
    single, notes = to_float32(source)
    bare, about_tail = end_in_logits(single)
    model, about_version = to_opset(bare)
    notes += about_tail + about_version
    graph = OnnxGraph(StripInitializerInputs().apply(model))
    _rename_all_nodes(graph)
    fold_constants(graph)
    model = drop_idle_nodes(graph.to_model())
    image = find_image(model, given, image_shape)
    given, about_scale = _scale_of(image, given)
    model, about_batch = free_batch(model, image)
    model = _with_free_names(model, image)
    own = ImageInput(_SOURCE_IMAGE, image.batch, image.sizes, image.shape, image.channels_last, image.dtype)
    graph = OnnxGraph(add_front(model, own, given))
    fold_constants(graph)
    merge_transposes(graph)
    explicit_padding(graph)
    about_layers = [] if quantized else _simplify(graph)
    model, classes = _with_logits(graph.to_model(), image.shape)
    imported = ImportedNetwork(
        model,
        image.shape,
        classes,
        (*notes, *about_scale, *about_batch, *about_layers),
        quantized,
        given,
        sha256_file(Path(path)),
    )
    if not any(node.domain in QONNX_DOMAINS for node in model.graph.node):
        require_same_network(bare, image, given, model)
    return imported


_SOURCE_IMAGE = "source.image"
_IMAGES = 3


def _simplify(graph: OnnxGraph) -> list[str]:
    notes = fold_batch_normalization(graph)
    if count := absorb_padding(graph):
        notes.append(f"{count} Pad taken into the convolutions behind them")
    if count := join_double_signs(graph):
        notes.append(f"{count} pairs of signs joined: sign(sign(x) + c) is sign(x), with 0 counted as +1")
    return notes


def _rename_all_nodes(graph: OnnxGraph) -> None:
    """Nodes that the version converter wrote have no names."""
    seen: set[str] = set()
    for node in graph.nodes:
        if not node.name or node.name in seen:
            node.name = graph.unused_node_name(f"{node.output[0]}.{node.op_type}")
        seen.add(node.name)


def _scale_of(image: ImageInput, given: Preprocessing) -> tuple[Preprocessing, list[str]]:
    if not image.reads_whole_numbers:
        return given.with_given(scale=1 / 255 if given.scale is None else given.scale), []
    if given.scale not in (None, 1.0) or any(given.mean) or any(value != 1 for value in given.std):
        raise HardbitError(
            f"the network reads whole numbers ({np.dtype(image.dtype).name}), so nothing can be done to them before it",
            where=image.name,
            remedy="leave out --scale, --mean and --std",
        )
    return given.with_given(scale=1.0), [f"the network reads bytes itself, as {np.dtype(image.dtype).name}"]


def _with_free_names(model: onnx.ModelProto, image: ImageInput) -> onnx.ModelProto:
    """A copy in which `image` and `logits` are free, and the source's input has a name that nobody else gives."""
    names = {image.name: _SOURCE_IMAGE}
    for name in (IMAGE, LOGITS):
        names.setdefault(name, f"source.{name}.tensor")
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for node in renamed.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*renamed.graph.input, *renamed.graph.output, *renamed.graph.initializer):
        value.name = names.get(value.name, value.name)
    return renamed


def _with_logits(model: onnx.ModelProto, shape: Shape) -> tuple[onnx.ModelProto, int]:
    """The output under the name `logits`, as (batch, classes); and how many classes there are."""
    pixels = (random_pixels(_IMAGES, shape).astype(np.float32) - 128) / 256
    old = model.graph.output[0].name
    found = tensors_of(model, {IMAGE: pixels})[old].shape
    classes = math.prod(found[1:])
    if len(found) < 2 or found[0] != _IMAGES or classes < 2 or max(found[1:]) != classes:
        raise HardbitError(
            f"the output for {_IMAGES} images has the shape {list(found)}",
            where=old,
            remedy="hardbit takes classifiers, whose output is (batch, classes) with two classes or more",
        )
    graph = OnnxGraph(model)
    last = graph.producer(old)
    if last is None:
        raise HardbitError("the output is the input", where=old, remedy="name a network that computes something")
    if len(found) == 2:
        for index, name in enumerate(last.output):
            if name == old:
                last.output[index] = LOGITS
        graph.replace_uses(old, LOGITS)
    else:
        name = graph.unused_node_name("logits.flatten")
        graph.insert_after(last, helper.make_node("Flatten", [old], [LOGITS], name=name, axis=1))
    finished = graph.to_model()
    del finished.graph.output[:]
    finished.graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", classes]))
    return finished, classes
