"""SPSA (Spall 1992; as an attack Uesato et al. 2018): signs along which all pixels move at once, and Adam.

Offsets are one number of grey levels in every value, up or down; `query_climb` says how many (Uesato et al. take 0.01
of the range). Steps are those of Adam (Kingma & Ba 2015) without its constant in the denominator, which would give the
logits' scale a meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.balls import ball_around
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.query_climb import Ascent, climb_by_queries
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine

__all__ = ["SAMPLES", "spsa"]

SAMPLES = 64  # pairs of queries in each step
STEP_SHARE = 0.3  # of eps: Uesato et al. move by 0.01 in a ball of 8/255
_DECAYS = 0.9, 0.999  # of Adam's two averages
_STREAM = 1 << 40  # apart from those of other attacks

Report = Callable[[int], None]


def spsa(
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
        ascent=AdamAscent,
        draw=signs,
        steps=steps,
        samples=samples,
        seed=seed,
        stream=_STREAM,
        indices=indices,
        report=report,
    )


def signs(generator: np.random.Generator, shape: tuple[int, int], probe_255: float) -> NDArray[np.int16]:
    """Offsets of plus or minus `probe_255`, rounded, int16 of `shape` (samples, values)."""
    samples, values = shape
    words = np.frombuffer(generator.bytes(samples * -(-values // 8)), np.uint8).reshape(samples, -1)
    offsets = np.unpackbits(words, axis=1, count=values).astype(np.int16)
    size = round(probe_255)
    offsets *= 2 * size
    offsets -= size
    return offsets


class AdamAscent(Ascent):
    """Positions in fractions of a grey level, moved by Adam and projected into the ball."""

    def __init__(self, images: NDArray[np.uint8], threat_model: ThreatModel, steps: int) -> None:
        del steps
        self.bytes = images.copy()
        self._ball = ball_around(images, threat_model)
        self._size_255 = STEP_SHARE * threat_model.eps_255
        self._position = np.zeros((len(images), math.prod(images.shape[1:])), np.float32)
        self._mean, self._square = np.zeros_like(self._position), np.zeros_like(self._position)
        self._made = 0

    def step(self, estimate: NDArray[np.float32]) -> None:
        slope = estimate.reshape(self._position.shape)
        self._made += 1
        first, second = _DECAYS
        self._mean += np.float32(1 - first) * (slope - self._mean)
        self._square += np.float32(1 - second) * (slope * slope - self._square)
        spread = np.sqrt(self._square)
        move = np.divide(self._mean, spread, out=np.zeros_like(spread), where=spread > 0)
        if self._ball.norm == "l2":
            move = self._ball.direction(move)
        else:
            move *= np.float32(math.sqrt(1 - second**self._made) / (1 - first**self._made))
        self._position += move * np.float32(self._size_255)
        self._position = self._ball.project(self._position)
        self.bytes = self._ball.shown_inside(self._position)

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.bytes, self._ball, self._position = self.bytes[chosen], self._ball.of(chosen), self._position[chosen]
        self._mean, self._square = self._mean[chosen], self._square[chosen]
