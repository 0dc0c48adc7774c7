"""Random starting points on the byte grid, the same for an image whatever it is batched with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import L2_SLACK, rounded_inside_l2, squared_norms
from hardbit_deploy.attacks.randomness import generators
from hardbit_deploy.attacks.threat_model import ThreatModel

__all__ = ["random_start"]


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
    delta = (_linf if threat_model.norm == "linf" else _l2)(images, threat_model, seed, stream, indices)
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
    images: NDArray[np.uint8], threat_model: ThreatModel, seed: int, stream: int, indices: NDArray[np.int64]
) -> NDArray[np.float32]:
    """A normal direction, and a radius whose power is uniform, make a uniform point of the ball (Muller 1959)."""
    delta = np.empty((len(images), math.prod(images.shape[1:])), np.float32)
    radius = np.empty(len(images))
    for row, generator in enumerate(generators(seed, stream, indices)):
        generator.standard_normal(dtype=np.float32, out=delta[row])
        radius[row] = generator.random() ** (1 / delta.shape[1])
    radius *= threat_model.eps_255 * L2_SLACK
    delta *= (radius / np.sqrt(squared_norms(delta)))[:, None].astype(np.float32)
    return rounded_inside_l2(delta, threat_model.eps_255)
