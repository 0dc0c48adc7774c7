"""Whether an imported network computes what its source does, on images of noise.

The source is run as it came, on input that is computed from the bytes here and not by the front of the imported graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.importing.image_input import ImageInput
from hardbit.importing.preprocessing import Preprocessing
from hardbit.importing.probing import ProbeError, blamed_node, open_model, random_pixels
from hardbit.importing.quantized_sources import is_quantizing
from hardbit.importing.words import IMAGE
from hardbit_deploy.errors import HardbitError

__all__ = ["ImportDefectError", "require_same_network"]

_IMAGES = 5
_SHARE, _SHARE_WITH_STEPS = 2e-3, 0.05
"""Of the logits' range, on half of the images: for sums in another order, and where a sign or a rounding may flip."""
_STEPS = frozenset({"Ceil", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Round", "Sign"})


class ImportDefectError(HardbitError):
    """An imported network that is another than its source: a fault of hardbit, whatever the file."""

    exit_code = 70  # EX_SOFTWARE


def require_same_network(
    source: onnx.ModelProto, image: ImageInput, preprocessing: Preprocessing, imported: onnx.ModelProto
) -> float:
    """The largest difference of a logit, on half of the images.

    Raises ImportDefectError where the networks differ, HardbitError where the source itself does not run.
    `source` ends in the tensor that became the logits; it may take one image at a time.
    """
    pixels = random_pixels(_IMAGES, image.shape)
    try:
        theirs = _logits_of_source(source, image, preprocessing, pixels)
    except ProbeError as error:
        raise HardbitError(
            f"ONNX Runtime cannot run the network: {error}",
            where=blamed_node(error) or image.name,
            remedy="repair the file: it has to run in ONNX Runtime",
        ) from None
    try:
        ours = _logits_of_imported(imported, pixels)
    except ProbeError as error:
        raise ImportDefectError(f"the imported network does not run: {error}", image.name, "please report it") from None
    differences = np.abs(ours.astype(np.float64) - theirs).max(1)
    typical, span = float(np.median(differences)), float(theirs.max() - theirs.min())
    steps = any(node.op_type in _STEPS or is_quantizing(node) for node in imported.graph.node)
    if not typical <= (_SHARE_WITH_STEPS if steps else _SHARE) * max(span, 1e-6):
        raise ImportDefectError(
            f"the imported network is not its source: logits differ by {typical:.3g}, of a range of {span:.3g}",
            image.name,
            "please report it, with the file if you may",
        )
    return typical


def _logits_of_imported(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    logits = _run(open_model(model), {IMAGE: (pixels.astype(np.float32) - 128) / 256})
    return logits.reshape(len(pixels), -1)


def _logits_of_source(
    model: onnx.ModelProto, image: ImageInput, preprocessing: Preprocessing, pixels: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """One image after the other where the source says so; so no two images can influence each other."""
    session, size = open_model(model), image.batch or 1
    rows = []
    for pixel in pixels:
        feed = image.feed(np.repeat(pixel[None], size, axis=0), preprocessing)
        rows.append(_run(session, feed).reshape(size, -1)[0])
    return np.stack(rows)


def _run(session: Any, feed: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    try:
        return np.asarray(session.run(None, feed)[0], np.float64)
    except Exception as error:  # the runtime raises a class of its own for every status code
        raise ProbeError(str(error).splitlines()[0]) from None
