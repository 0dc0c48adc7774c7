"""Random starting points on the byte grid, the same for an image whatever it is batched with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import rounded_inside_l2
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

    Each image has its own counter-based generator (Philox; Salmon et al. 2011), keyed by `seed` and `stream` and placed
    by the image's index in the data set: neither the batch, the number of workers, nor the images that have fallen
    change what an image gets.
    """
    start = np.empty_like(images)
    values = math.prod(images.shape[1:])
    for row, index in enumerate(indices):
        generator = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, int(index)]))
        delta = (
            _linf(generator, threat_model, values)
            if threat_model.norm == "linf"
            else _l2(generator, threat_model, values)
        )
        point = np.clip(images[row].reshape(-1) + delta, 0, 255)
        start[row] = point.reshape(images.shape[1:])
    return start


def _linf(generator: np.random.Generator, threat_model: ThreatModel, values: int) -> NDArray[np.int16]:
    radius = min(math.floor(threat_model.eps_255), 255)
    return generator.integers(-radius, radius + 1, values, dtype=np.int16)


def _l2(generator: np.random.Generator, threat_model: ThreatModel, values: int) -> NDArray[np.int32]:
    direction = generator.standard_normal(values)
    radius = threat_model.eps_255 * (1 - 1e-6) * generator.random() ** (1 / values)
    delta = direction * (radius / np.linalg.norm(direction))
    rounded: NDArray[np.float32] = rounded_inside_l2(delta[None].astype(np.float32), threat_model.eps_255)
    whole: NDArray[np.int32] = rounded[0].astype(np.int32)
    return whole
