"""Corruptions that no adversary chose: noise, blur, lost contrast and JPEG, at five severities, on bytes.

They are the control of an evaluation (Hendrycks & Dietterich 2019): a network that breaks under them is weak, not
attacked. Severities are those that the authors use for CIFAR-10-C, whose images are as small as those met here:

| severity | 1 | 2 | 3 | 4 | 5 |
|---|---|---|---|---|---|
| noise: standard deviation of Gaussian noise, in 255ths of a pixel's range | 10.2 | 15.3 | 20.4 | 22.95 | 25.5 |
| blur: standard deviation of a Gaussian, in pixels | 0.4 | 0.6 | 0.7 | 0.8 | 1 |
| contrast: what is left of each channel's distance from its mean | 0.75 | 0.5 | 0.4 | 0.3 | 0.15 |
| jpeg: quality, as the Independent JPEG Group scales its tables | 80 | 65 | 58 | 50 | 40 |

Results are rounded to the nearest byte. JPEG is its lossy half alone: YCbCr where there are three channels, 8 x 8 DCT,
the tables of ITU-T T.81 annex K; without subsampled colour, which a file of one quality may or may not have.

Boundary: changes images; never asks an engine.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.randomness import generators
from hardbit_deploy.errors import HardbitError

__all__ = ["KINDS", "SEVERITIES", "corrupt", "quantization_table"]

KINDS = ("noise", "blur", "contrast", "jpeg")
SEVERITIES = (1, 2, 3, 4, 5)

NOISE_255 = (10.2, 15.3, 20.4, 22.95, 25.5)
BLUR_PIXELS = (0.4, 0.6, 0.7, 0.8, 1.0)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
JPEG_QUALITY = (80, 65, 58, 50, 40)

_STREAM = 5 << 40  # apart from those of attacks
_TRUNCATE = 4.0  # standard deviations at which a blur's kernel ends
_BLOCK = 8

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Red, green, blue to luminance and two differences of colour, as JFIF defines them.
_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float32
)
_RGB = np.linalg.inv(_YCBCR).astype(np.float32)


def corrupt(
    images: NDArray[np.uint8], kind: str, severity: int, seed: int, indices: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Corrupted copies of images uint8 (n, channels, height, width), of the same shape.

    `indices` int64 (n,) are the images' places in their data set: with the seed they decide an image's noise, which is
    the same at every severity but for its size. Raises HardbitError for a kind or severity that is not known.
    """
    if kind not in KINDS:
        raise HardbitError(f"corruption {kind!r} is not known", "corruptions", f"choose one of {', '.join(KINDS)}")
    if severity not in SEVERITIES:
        raise HardbitError(f"severity {severity!r} is not known", "corruptions", "choose one of 1, 2, 3, 4, 5")
    rank = SEVERITIES.index(severity)
    if not images.size:
        return images.copy()
    if kind == "noise":
        return _bytes(_noise(images, NOISE_255[rank], seed, indices))
    pixels = images.astype(np.float32)
    if kind == "blur":
        return _bytes(_blur(pixels, BLUR_PIXELS[rank]))
    if kind == "contrast":
        means = pixels.mean(axis=(2, 3), keepdims=True)
        return _bytes((pixels - means) * np.float32(CONTRAST[rank]) + means)
    return _bytes(_jpeg(pixels, JPEG_QUALITY[rank]))


def quantization_table(quality: int, *, chrominance: bool = False) -> NDArray[np.float32]:
    """Steps of the 64 coefficients, float32 (8, 8), at a quality from 1 to 100 (Independent JPEG Group's rule)."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = np.array(_CHROMINANCE if chrominance else _LUMINANCE)
    return np.asarray(np.clip((base * percent + 50) // 100, 1, 255), np.float32)


def _bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return rounded


def _noise(
    images: NDArray[np.uint8], deviation_255: float, seed: int, indices: NDArray[np.int64]
) -> NDArray[np.float32]:
    drawn = np.empty(images.shape, np.float32)
    for row, generator in enumerate(generators(seed, _STREAM, indices)):
        generator.standard_normal(dtype=np.float32, out=drawn[row])
    return np.asarray(images + np.float32(deviation_255) * drawn, np.float32)


def _blur(pixels: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """A separable Gaussian; beyond its border an image goes on with the values that it has there."""
    reach = math.ceil(_TRUNCATE * deviation - 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (2, 3):
        padding = [(reach, reach) if axis == padded else (0, 0) for padded in range(4)]
        wide = np.pad(pixels, padding, mode="edge")
        length = pixels.shape[axis]
        moved = (np.take(wide, np.arange(k, k + length), axis) for k in range(2 * reach + 1))
        pixels = np.sum([np.float32(weight) * part for weight, part in zip(weights, moved, strict=True)], axis=0)
    return pixels


def _jpeg(pixels: NDArray[np.float32], quality: int) -> NDArray[np.float32]:
    """Each 8 x 8 block to its cosines, each coefficient to a multiple of its step, and back."""
    count, channels, height, width = pixels.shape
    padding = [(0, 0), (0, 0), (0, -height % _BLOCK), (0, -width % _BLOCK)]
    planes = np.pad(pixels, padding, mode="edge")
    coloured = channels == 3
    planes = np.einsum("dc,nchw->ndhw", _YCBCR, planes) if coloured else planes
    planes[:, : 1 if coloured else channels] -= 128
    tables = np.stack([quantization_table(quality, chrominance=coloured and plane > 0) for plane in range(channels)])
    rows, columns = planes.shape[2] // _BLOCK, planes.shape[3] // _BLOCK
    blocks = planes.reshape(count, channels, rows, _BLOCK, columns, _BLOCK).transpose(0, 2, 4, 1, 3, 5)
    cosines = _cosines()
    coefficients = cosines @ blocks @ cosines.T
    kept = np.rint(coefficients / tables) * tables
    back = (cosines.T @ kept @ cosines).transpose(0, 3, 1, 4, 2, 5).reshape(planes.shape)
    back[:, : 1 if coloured else channels] += 128
    image = np.einsum("dc,nchw->ndhw", _RGB, back) if coloured else back
    return np.asarray(image[:, :, :height, :width], np.float32)


@lru_cache
def _cosines() -> NDArray[np.float32]:
    """The orthonormal DCT-II of eight values, as a matrix: row k is the k-th cosine."""
    places = np.arange(_BLOCK)
    matrix = np.cos(math.pi * places[:, None] * (2 * places + 1) / (2 * _BLOCK)) * math.sqrt(2 / _BLOCK)
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix, np.float32)
