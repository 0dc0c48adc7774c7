"""NES (Ilyas et al. 2018): Gaussian offsets in opposite pairs, and PGD along the estimate with momentum.

Offsets are rounded to whole grey levels, since an engine answers about bytes; what was really asked is what weighs. How
large they are `query_climb` says: the authors' 0.001 of the range, a quarter of a grey level, would round to nothing.
Steps are PGD's: 2.5 eps / k, signs in L-inf, the estimate's direction in L2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import iterates_from
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.pgd import step_size_255
from hardbit_deploy.attacks.query_climb import Ascent, climb_by_queries
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine

__all__ = ["SAMPLES", "nes"]

SAMPLES = 64  # pairs of queries in each step
MOMENTUM = 0.9
_STREAM = 2 << 40  # apart from those of other attacks

Report = Callable[[int], None]


def nes(
    engine: Engine,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    steps: int,
    samples: int = SAMPLES,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
    report: Report = lambda _: None,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,), by 2 `samples` + 1 queries a step.

    `indices` int64 (n,) are the images' places in their data set, which decide their offsets (default 0 to n-1): what
    happens to an image depends on nothing else. An image that the engine gives another label on an iterate has fallen,
    and is not asked about again. `report` is told, now and then, of queries that are done, as if no image fell.
    """
    return climb_by_queries(
        engine,
        images,
        labels,
        threat_model,
        ascent=MomentumAscent,
        draw=gaussian,
        steps=steps,
        samples=samples,
        seed=seed,
        stream=_STREAM,
        indices=indices,
        report=report,
    )


def gaussian(generator: np.random.Generator, shape: tuple[int, int], probe_255: float) -> NDArray[np.int16]:
    """Normal offsets of standard deviation `probe_255`, rounded, int16 of `shape` (samples, values)."""
    drawn = generator.standard_normal(shape, dtype=np.float32)
    drawn *= np.float32(probe_255)
    rounded: NDArray[np.int16] = np.rint(drawn, out=drawn).astype(np.int16)
    return rounded


class MomentumAscent(Ascent):
    """PGD's iterates from the image on, stepped along a running average of estimates."""

    def __init__(self, images: NDArray[np.uint8], threat_model: ThreatModel, steps: int) -> None:
        self._iterates = iterates_from(images, images, threat_model)
        self._size_255 = step_size_255(threat_model, max(steps, 1))
        self._mean = np.zeros(images.shape, np.float32)
        self.bytes = self._iterates.bytes

    def step(self, estimate: NDArray[np.float32]) -> None:
        self._mean *= np.float32(MOMENTUM)
        estimate *= np.float32(1 - MOMENTUM)
        self._mean += estimate
        self._iterates.step(self._mean.copy(), self._size_255)
        self.bytes = self._iterates.bytes

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self._iterates.keep(chosen)
        self.bytes, self._mean = self._iterates.bytes, self._mean[chosen]
