"""Which tensor of a network is the image, how large it is, and where its channels stand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from hardbit.importing.preprocessing import Preprocessing
from hardbit.importing.probing import random_pixels
from hardbit.importing.words import Layout, Shape
from hardbit_deploy.errors import HardbitError

__all__ = ["ImageInput", "find_image"]

_USUAL_CHANNELS = (1, 3)
_WHOLE_NUMBERS: dict[int, type[np.generic]] = {
    TensorProto.UINT8: np.uint8, TensorProto.INT32: np.int32, TensorProto.INT64: np.int64, TensorProto.INT16: np.int16,
}  # fmt: skip


@dataclass(frozen=True)
class ImageInput:
    """The network's own input: its `name`, its `sizes` behind the batch, the baked `batch` or None, and what images are
    to be for it: `shape` (channels, height, width), with channels last or first. `dtype` is that of the source."""

    name: str
    batch: int | None
    sizes: tuple[int, ...]
    shape: Shape
    channels_last: bool
    dtype: type[np.generic]

    @property
    def is_flat(self) -> bool:
        """Whether the pixels come as a row, not as a map of channels."""
        return len(self.sizes) != 3

    @property
    def reads_whole_numbers(self) -> bool:
        return np.issubdtype(self.dtype, np.integer)

    def feed(self, images: NDArray[np.uint8], preprocessing: Preprocessing) -> dict[str, NDArray[np.generic]]:
        """What the source itself is to be given for images uint8 (n, channels, height, width), computed in float64."""
        factor, shift = (values.reshape(-1, 1, 1) for values in preprocessing.on_pixels(self.shape[0]))
        pixels = images[:, ::-1] if preprocessing.channels == "bgr" else images
        values = pixels.astype(np.float64) * factor + shift
        if self.channels_last:
            values = values.transpose(0, 2, 3, 1)
        return {self.name: np.ascontiguousarray(values.reshape(len(images), *self.sizes).astype(self.dtype))}

    def any_feed(self, count: int) -> dict[str, NDArray[np.generic]]:
        """`count` images of noise, pixels as they are: for whoever asks for shapes."""
        pixels = random_pixels(count, self.shape)
        moved = pixels.transpose(0, 2, 3, 1) if self.channels_last else pixels
        return {self.name: moved.reshape(count, *self.sizes).astype(self.dtype)}


def find_image(model: onnx.ModelProto, preprocessing: Preprocessing, image_shape: Shape | None) -> ImageInput:
    """The image of a model with one input. `image_shape` is that of the images at hand, None where it is not known.

    Raises HardbitError where shape and images do not fit together, and where more than one reading of the shape is
    possible: it says what to add to the command.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    (value,) = [value for value in model.graph.input if value.name not in constants]
    kind = value.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT and kind not in _WHOLE_NUMBERS:
        raise HardbitError(
            f"the input is {TensorProto.DataType.Name(kind)}",
            value.name,
            "images are floats, or whole numbers 0 .. 255",
        )
    dimensions = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in _dimensions(value)]
    if len(dimensions) < 2:
        raise HardbitError(
            f"the input has {len(dimensions)} axes: no batch of images",
            value.name,
            "export the network for a batch of images (batch, channels, height, width)",
        )
    batch, sizes = dimensions[0], dimensions[1:]
    readings = [
        (shape, last)
        for last in (False, True)
        if preprocessing.layout in ("auto", "nhwc" if last else "nchw")
        and (shape := _shape(sizes, last, image_shape)) is not None
    ]
    shape, last = _only_one(readings, value.name, dimensions, preprocessing.layout, image_shape)
    if len(sizes) == 3:
        sizes = [*shape[1:], shape[0]] if last else list(shape)
    elif None in sizes:
        sizes = [math.prod(shape)] if len(sizes) == 1 else list(shape[1:])
    dtype = _WHOLE_NUMBERS.get(kind, np.float32)
    return ImageInput(value.name, batch, tuple(int(size or 0) for size in sizes), shape, last, dtype)


def _dimensions(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    if not value.type.tensor_type.HasField("shape"):
        raise HardbitError("the input has no shape", value.name, "export the network for images of a fixed size")
    return list(value.type.tensor_type.shape.dim)


def _shape(sizes: list[int | None], last: bool, given: Shape | None) -> Shape | None:
    """The image's shape if channels stand last, or first; None where that cannot be."""
    if len(sizes) != 3:
        known = [size for size in sizes if size is not None]
        fits = given is not None and (len(known) < len(sizes) or math.prod(known) == math.prod(given))
        return given if fits and not (last and given is not None and given[0] == 1) else None
    ordered = [sizes[2], sizes[0], sizes[1]] if last else sizes
    if given is not None:
        return given if all(size in (None, own) for size, own in zip(ordered, given, strict=True)) else None
    channels, height, width = ordered
    if channels not in _USUAL_CHANNELS or height is None or width is None:
        return None
    return channels, height, width


def _only_one(
    readings: list[tuple[Shape, bool]],
    name: str,
    dimensions: list[int | None],
    layout: Layout,
    image_shape: Shape | None,
) -> tuple[Shape, bool]:
    if len(readings) == 1:
        return readings[0]
    text = f"[{', '.join('?' if size is None else str(size) for size in dimensions)}]"
    if readings and len(dimensions) == 4 and readings[0][0][0] == 1 and dimensions[1] == 1:
        return readings[0]  # one channel, one pixel wide or high: both readings place it alike
    if readings:
        raise HardbitError(
            f"an input of shape {text} may have its channels first or last",
            where=name,
            remedy="say which: --layout nchw or --layout nhwc",
        )
    if image_shape is None:
        raise HardbitError(
            f"an input of shape {text} does not tell the size of its images",
            where=name,
            remedy="say it: --image-shape CHANNELS,HEIGHT,WIDTH" + ("" if layout == "auto" else ", and check --layout"),
        )
    raise HardbitError(
        f"the network's input has the shape {text}, the images {list(image_shape)}"
        + ("" if layout == "auto" else f" with the channels {'last' if layout == 'nhwc' else 'first'}"),
        where=name,
        remedy="give images of the size that the network was made for",
    )
