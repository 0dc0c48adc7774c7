"""Adversarial images made on one network to be tried on another (transfer; Papernot et al. 2016, arXiv:1605.07277).

Boundary: makes images; whether they fool anybody is asked elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import iterates_from
from hardbit_deploy.attacks.pgd import start_stream, step_size_255
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Gradient

__all__ = ["last_iterates"]


def last_iterates(
    gradient: Gradient,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    steps: int,
    *,
    loss: str,
    restart: int,
    seed: int,
    indices: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """The last iterates of PGD on the gradient's own network, uint8 like `images` (n, channels, height, width).

    It does not stop where that network is fooled: images just across its border rarely fool another one. `indices`
    int64 (n,) are the images' places in their data set, which decide their random starts (default 0 to n-1).
    """
    places = np.arange(len(images), dtype=np.int64) if indices is None else indices
    stream = start_stream(restart, loss)
    start = random_start(images, threat_model, seed=seed, stream=stream, indices=places)
    iterates = iterates_from(images, start, threat_model)
    for _ in range(steps):
        _, direction = gradient.ascend(iterates.bytes, labels, loss)
        iterates.step(direction, step_size_255(threat_model, steps))
    return iterates.bytes
