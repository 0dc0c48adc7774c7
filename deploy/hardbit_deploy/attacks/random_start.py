"""Random starting points on the byte grid, the same for an image whatever it is batched with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import L2_SLACK, rounded_inside_l2, squared_norms
from hardbit_deploy.attacks.randomness import generators
from hardbit_deploy.attacks.threat_model import ThreatModel

__all__ = ["random_end", "random_start"]


def random_start(
    images: NDArray[np.uint8],
    threat_model: ThreatModel,
    *,
    seed: int,
    stream: int,
    indices: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Uniform points of the ball around `images` uint8 (n, channels, height, width), as valid bytes.

    `seed`, `stream` and the image's index in the data set decide what an image gets, and nothing else does: neither the
    batch, nor the number of workers, nor the images that have fallen.
    """
    if threat_model.norm == "linf":
        return _moved(images, _linf(images, threat_model, seed, stream, indices))
    return _moved(images, _l2(images, threat_model, seed, stream, indices))


def random_end(
    images: NDArray[np.uint8],
    threat_model: ThreatModel,
    *,
    seed: int,
    stream: int,
    indices: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Points at the end of the ball, otherwise as `random_start`: a corner of the box, a uniform direction at eps."""
    if threat_model.norm == "l2":
        return _moved(images, _l2(images, threat_model, seed, stream, indices, at_the_end=True))
    radius = np.int16(min(math.floor(threat_model.eps_255), 255))
    upper = np.empty((len(images), math.prod(images.shape[1:])), np.int16)
    for row, generator in enumerate(generators(seed, stream, indices)):
        drawn = np.frombuffer(generator.bytes(-(-upper.shape[1] // 8)), np.uint8)
        upper[row] = np.unpackbits(drawn, count=upper.shape[1])
    upper *= 2 * radius
    upper -= radius
    return _moved(images, upper)


def _moved(images: NDArray[np.uint8], delta: NDArray[np.int16] | NDArray[np.float32]) -> NDArray[np.uint8]:
    delta += images.reshape(delta.shape)
    np.maximum(delta, 0, out=delta)
    np.minimum(delta, 255, out=delta)
    return delta.astype(np.uint8).reshape(images.shape)


def _linf(
    images: NDArray[np.uint8], threat_model: ThreatModel, seed: int, stream: int, indices: NDArray[np.int64]
) -> NDArray[np.int16]:
    radius = min(math.floor(threat_model.eps_255), 255)
    delta = np.empty((len(images), math.prod(images.shape[1:])), np.int16)
    for row, generator in enumerate(generators(seed, stream, indices)):
        delta[row] = generator.integers(-radius, radius + 1, delta.shape[1], dtype=np.int16)
    return delta


def _l2(
    images: NDArray[np.uint8],
    threat_model: ThreatModel,
    seed: int,
    stream: int,
    indices: NDArray[np.int64],
    *,
    at_the_end: bool = False,
) -> NDArray[np.float32]:
    """A normal direction, and a radius whose power is uniform, make a uniform point of the ball (Muller 1959)."""
    delta = np.empty((len(images), math.prod(images.shape[1:])), np.float32)
    radius = np.empty(len(images))
    for row, generator in enumerate(generators(seed, stream, indices)):
        generator.standard_normal(dtype=np.float32, out=delta[row])
        radius[row] = 1 if at_the_end else generator.random() ** (1 / delta.shape[1])
    radius *= threat_model.eps_255 * L2_SLACK
    delta *= (radius / np.sqrt(squared_norms(delta)))[:, None].astype(np.float32)
    return rounded_inside_l2(delta, threat_model.eps_255)
