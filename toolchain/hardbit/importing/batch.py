"""A batch of any size: what was exported for one image is rewritten, and what computes with sizes becomes constant.

The network is run on two and on three images. If it runs, every number that its shape arithmetic yields is either the
same for both, hence a constant, or the batch. If it does not, it is run on the one image that it was exported for, all
shape arithmetic becomes constant, and the places where that one image is written into a shape are found by following
the batch through the graph.
"""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.importing.baked_batch import rewrite_baked_batch
from hardbit.importing.image_input import ImageInput
from hardbit.importing.probing import ProbeError, blamed_node, tensors_of
from hardbit.importing.shape_arithmetic import constant_shapes, settle_shapes
from hardbit_deploy.errors import HardbitError

__all__ = ["free_batch"]

Values = dict[str, NDArray[Any]]


def free_batch(model: onnx.ModelProto, image: ImageInput) -> tuple[onnx.ModelProto, list[str]]:
    """A copy that takes any number of images, and a note where it had to be rewritten for that.

    Raises HardbitError naming the node where the number of images is baked in and cannot be rewritten.
    """
    opened = _with_free_batch(model, image)
    runs, error = _runs(opened, image)
    if error is None:
        notes = [] if image.batch is None else [f"made for a batch of {image.batch}: any number of images is taken"]
        return settle_shapes(opened, image.name, *runs), notes
    try:
        alone = tensors_of(model, image.any_feed(image.batch or 1))
    except ProbeError as refusal:
        raise HardbitError(
            f"ONNX Runtime cannot run the network: {refusal}",
            where=blamed_node(refusal) or "graph",
            remedy="repair the file: it has to run in ONNX Runtime",
        ) from None
    if image.batch not in (None, 1):
        raise _refusal(f"the network is made for {image.batch} images at a time: {error}", error)
    frozen = _with_free_batch(constant_shapes(opened, alone), image)
    rewritten, places = rewrite_baked_batch(frozen, image)
    runs, error = _runs(rewritten, image)
    if error is not None:
        raise _refusal(f"the network is made for one image at a time, and this cannot be rewritten: {error}", error)
    note = f"made for one image at a time: {len(places)} shapes rewritten for any number ({', '.join(places[:3])}"
    return settle_shapes(rewritten, image.name, *runs), [f"{note}{', ...' if len(places) > 3 else ''})"]


def _runs(model: onnx.ModelProto, image: ImageInput) -> tuple[tuple[Values, Values], ProbeError | None]:
    """All tensors for two and for three images, and what keeps the network from taking them."""
    output = model.graph.output[0].name
    found: list[Values] = []
    for count in (2, 3):
        try:
            values = tensors_of(model, image.any_feed(count))
        except ProbeError as error:
            return ({}, {}), error
        shape = values[output].shape
        if shape[:1] != (count,):
            maker = OnnxGraph(model).producer(output)
            return ({}, {}), ProbeError(
                f"{count} images give a result of shape {shape}, Name:'{maker.name if maker is not None else output}'"
            )
        found.append(values)
    return (found[0], found[1]), None


def _with_free_batch(model: onnx.ModelProto, image: ImageInput) -> onnx.ModelProto:
    graph = OnnxGraph(model)
    graph.keep_inputs([image.name])
    opened = graph.to_model()
    kind = opened.graph.input[0].type.tensor_type.elem_type
    opened.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(image.name, kind, ["batch", *image.sizes]))
    opened.graph.output[0].type.tensor_type.ClearField("shape")
    return opened


def _refusal(message: str, error: ProbeError) -> HardbitError:
    return HardbitError(
        message, where=blamed_node(error) or "graph", remedy="export the network with a dynamic batch (dynamic axes)"
    )
