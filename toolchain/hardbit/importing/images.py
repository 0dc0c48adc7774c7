"""The images of a conversion: those that quantizers are calibrated with, and those that the engine is judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardbit.data import ImageSet, image_facts, load_images
from hardbit.importing.request import ConversionRequest
from hardbit.importing.words import Shape
from hardbit_deploy.errors import HardbitError

__all__ = ["ConversionImages", "known_shape", "load_conversion_images"]

_USUAL_COUNT = 1000


@dataclass(frozen=True)
class ConversionImages:
    """`evaluation` with labels; `calibration` uint8 (n, channels, height, width), and where it is from in words.

    `notes` say what a reader of the result should know about them.
    """

    evaluation: ImageSet
    calibration: NDArray[np.uint8]
    calibrated_with: str
    notes: tuple[str, ...]


def known_shape(request: ConversionRequest) -> Shape | None:
    """The shape of the images at hand: given, or what the set has; None for pictures, which are cut to any shape."""
    if request.image_shape is not None or request.data.startswith("folder:"):
        return request.image_shape
    return image_facts(request.data, request.split).shape


def load_conversion_images(request: ConversionRequest, shape: Shape, classes: int) -> ConversionImages:
    """The images, all of `shape`. Raises HardbitError where images or labels do not fit the network.

    Without a split named, calibration takes the training images, or, of a set that has none, the last of its test
    images, so that they are not among those that the engine is judged on, if there are enough.
    """
    count = request.count
    if count is None:
        count = min(_USUAL_COUNT, image_facts(request.data, request.split, shape).count)
    evaluation = load_images(request.data, request.split, count, shape)
    if evaluation.shape != shape:
        raise HardbitError(
            f"the images are {list(evaluation.shape)}, the network takes {list(shape)}",
            where=request.data,
            remedy="give images of the size that the network was made for",
        )
    if int(evaluation.labels.max()) >= classes:
        raise HardbitError(
            f"labels go up to {int(evaluation.labels.max())}, the network has {classes} classes",
            where=request.data,
            remedy="give the images that the network was trained for",
        )
    calibration, split, notes = _calibration(request, shape, count)
    return ConversionImages(evaluation, calibration, f"{request.calibrate}, split {split}", notes)


def _calibration(
    request: ConversionRequest, shape: Shape, judged: int
) -> tuple[NDArray[np.uint8], str, tuple[str, ...]]:
    splits = [request.calibrate_split] if request.calibrate_split else ["train", "test"]
    for split in splits:
        try:
            there = image_facts(request.calibrate, split, shape).count
            break
        except HardbitError:
            if split == splits[-1]:
                raise
    wanted = min(request.calibration_count, there)
    same = (request.calibrate, split) == (request.data, request.split)
    if not same:
        images = load_images(request.calibrate, split, wanted, shape).images
        return _fitting(images, shape, request.calibrate), split, ()
    images = load_images(request.calibrate, split, None, shape).images[-wanted:]
    overlap = max(0, judged - (there - wanted))
    note = f"calibrated with images of the split that is judged: {overlap} of {wanted} are judged too"
    return _fitting(np.ascontiguousarray(images), shape, request.calibrate), split, (note,)


def _fitting(images: NDArray[np.uint8], shape: Shape, name: str) -> NDArray[np.uint8]:
    if images.shape[1:] != shape:
        raise HardbitError(
            f"the images are {list(images.shape[1:])}, the network takes {list(shape)}",
            where=name,
            remedy="calibrate with images of the size that the network was made for",
        )
    return images
