"""The best of random points of the ball: what no search at all finds, and the least that every attack must beat.

Half of the points are uniform in the ball, half lie at its end: a corner of the box in L-inf, a uniform direction at
full length in L2. Where one of them fools an engine and PGD does not, PGD is not working.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.best_points import BestPoints
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.random_start import random_end, random_start
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine

__all__ = ["random_search"]

_STREAM = 3 << 40  # apart from those of other attacks
_TOLD_EVERY = 32  # points

Report = Callable[[int], None]


def random_search(
    engine: Engine,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    points: int,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
    report: Report = lambda _: None,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,), by `points` random points of each.

    `indices` int64 (n,) are the images' places in their data set, which decide their points (default 0 to n-1): what
    happens to an image depends on nothing else. An image that the engine gives another label has fallen, and is not
    asked about again. `report` is told, now and then, of queries that are done, as if no image fell.
    """
    count = len(images)
    places = np.arange(count, dtype=np.int64) if indices is None else indices
    best = BestPoints(images, labels, engine.classes)
    flight = engine.images_in_flight or max(count, 1)
    for first in range(0, count, flight):
        rows = np.arange(first, min(first + flight, count))
        told = 0
        for point in range(points):
            draw = random_start if point % 2 == 0 else random_end
            drawn = draw(images[rows], threat_model, seed=seed, stream=_STREAM + point, indices=places[rows])
            rows = rows[best.judge(rows, drawn, engine.infer(drawn))]
            if not rows.size:
                break
            if point + 1 - told == _TOLD_EVERY:
                report(min(flight, count - first) * _TOLD_EVERY)
                told += _TOLD_EVERY
        report(min(flight, count - first) * (points - told))
    return best.outcome
