"""Picture files -> bytes of one shape, with Pillow.

Boundary: what a file looks like in a viewer is what is taken (its EXIF rotation applied, its first frame, its palette
resolved, transparency dropped); colours are not managed, and more than 8 bits a channel are refused.
"""

from __future__ import annotations

from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hardbit_deploy.errors import HardbitError

__all__ = ["covering", "read_picture", "resized"]

_DEEPER_THAN_BYTES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_picture(file: IO[bytes], where: str, channels: int) -> Image.Image:
    """The picture in an open file, in grey for 1 channel and in RGB for 3.

    Raises HardbitError, naming `where`, for a file that no picture can be made of.
    """
    try:
        with Image.open(file) as picture:
            if picture.mode in _DEEPER_THAN_BYTES:
                raise HardbitError(f"it has more than 8 bits a channel ({picture.mode})", where, "convert it to 8 bits")
            return ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG chunks
        message = " ".join(str(error).split()) or type(error).__name__
        raise HardbitError(f"this picture cannot be read: {message}", where, "replace or remove it") from error


def resized(picture: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The whole picture at this size, uint8 (height, width[, channels]): bilinear at pixel centres, no low-pass filter.

    What OpenCV's resize does by default. Pillow's own resize always averages where it shrinks, and its affine transform
    rounds down, which darkens by half a grey level.
    """
    pixels = np.asarray(picture, np.float64)
    above, below, down = _neighbours(picture.height, height)
    left, right, across = _neighbours(picture.width, width)
    down = down.reshape(-1, *(1,) * (pixels.ndim - 1))
    across = across.reshape(-1, *(1,) * (pixels.ndim - 2))
    rows = pixels[above] * (1 - down) + pixels[below] * down
    return np.rint(rows[:, left] * (1 - across) + rows[:, right] * across).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """For each of `new` pixels along an axis, the two of `old` that it lies between, and how far from the first."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = np.floor(position).astype(np.int64)
    return first, np.minimum(first + 1, old - 1), position - first


def covering(picture: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The largest centred part of these proportions at this size, uint8 (height, width[, channels]): the picture is
    scaled until it just covers the frame, with Pillow's bilinear filter, which averages where it shrinks."""
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR), np.uint8)
