"""Images and perturbations as PNG data URIs, so that a report needs no file beside it."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["amplification", "image_uri", "perturbation_uri"]

# Where a grey perturbation is drawn in colour: darker is blue, lighter is orange, nothing is nearly white.
# Both hues stay apart for every common kind of colour blindness.
DARKER, UNCHANGED, LIGHTER = np.array([22, 82, 158]), np.array([246, 244, 239]), np.array([192, 84, 8])


def image_uri(image: NDArray[np.uint8]) -> str:
    """An image of shape (channels, height, width) as a PNG; anything but 3 channels is shown as their mean in grey."""
    pixels = image.transpose(1, 2, 0) if image.shape[0] == 3 else image.mean(axis=0)
    return _png(pixels)


def perturbation_uri(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], times: int) -> str:
    """The difference of two images of shape (channels, height, width), multiplied by `times`.

    Colour images: about mid-grey, channel by channel. Others: blue where darker, orange where lighter.
    """
    change = (adversarial.astype(np.float64) - clean) * times
    if clean.shape[0] == 3:
        return _png(128 + change.transpose(1, 2, 0))
    share = np.clip(change.mean(axis=0) / 127, -1, 1)[..., None]
    towards = np.where(share < 0, DARKER, LIGHTER)
    return _png(UNCHANGED + np.abs(share) * (towards - UNCHANGED))


def amplification(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8]) -> int:
    """The largest whole factor that keeps every change of these images, (n, channels, height, width), in range."""
    change = np.abs(adversarial.astype(np.int16) - clean)
    return max(1, 127 // max(1, int(change.max(initial=0))))


def _png(pixels: NDArray[np.floating] | NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
