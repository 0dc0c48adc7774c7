"""Climbing by differences of queries, for attackers who have logits and no gradient: what SPSA and NES share.

In each step an image is asked about at pairs of points, ahead of it and behind it along random offsets of whole grey
levels; the offsets, weighted by what the margin lost along each, add up to an estimate of the direction in which it
falls. Pixels at an end of the byte range move one way only, and count with the half that they moved. Such probes may
lie outside of the ball, as the papers have it: they show where to go, and are no candidates. Every iterate is one, and
is judged on its bytes.

Probes are half of eps away from an image in L-inf and about eps in L2, and two grey levels in every value at least. An
engine of few bits answers smaller ones with the very same logits: of 60 images that a Fashion-MNIST CNN W2A2 got right,
67 % survived SPSA with probes of 3 grey levels, 57 % with 6 and 43 % with 12 (eps 25/255); of 100 on one of W4A4 it was
88, 84 and 83 %; at 8 bits and in float there is no difference.

Weights are divided by the largest of a step, which makes an estimate free of the logits' scale. Where the margin is
the same at both points of every pair, an estimate is zero.

Boundary: which offsets are drawn, and how an estimate becomes a step, is said by an attack of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.best_points import BestPoints
from hardbit_deploy.attacks.outcome import AttackOutcome, margins
from hardbit_deploy.attacks.randomness import generators
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine

__all__ = ["Ascent", "Draw", "climb_by_queries", "estimated_direction", "probe_size_255", "queries_of_climb"]

Report = Callable[[int], None]
# Offsets int16 (samples, values) of a given root mean square, in grey levels.
Draw = Callable[[np.random.Generator, tuple[int, int], float], NDArray[np.int16]]
_LEAST_PROBE_255 = 2.0


class Ascent(ABC):
    """Images on their way; `bytes` uint8 (n, channels, height, width) is where they are, always inside the ball."""

    bytes: NDArray[np.uint8]

    @abstractmethod
    def step(self, estimate: NDArray[np.float32]) -> None:
        """Move along estimates float32 like `bytes`, which may be overwritten."""

    @abstractmethod
    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Forget all images but the chosen ones."""


def queries_of_climb(steps: int, samples: int) -> int:
    """Queries of an image that does not fall: every step asks about it, and twice for every sample, and one is last."""
    return steps * (2 * samples + 1) + 1


def probe_size_255(threat_model: ThreatModel, values: int) -> float:
    """How far probes move each of an image's values, as a root mean square, in grey levels."""
    in_each = threat_model.eps_255 / (2 if threat_model.norm == "linf" else math.sqrt(values))
    return min(max(in_each, _LEAST_PROBE_255), 255.0)


def climb_by_queries(
    engine: Engine,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    ascent: Callable[[NDArray[np.uint8], ThreatModel, int], Ascent],
    draw: Draw,
    steps: int,
    samples: int,
    seed: int,
    stream: int,
    indices: NDArray[np.int64] | None,
    report: Report,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width), from where they are, with labels int64 (n,).

    `ascent` makes an `Ascent` of images, threat model and steps. An image's offsets are drawn from its place in the
    data set (`indices`, default 0 to n-1), the step, `seed` and `stream`, and from nothing else.
    """
    count = len(images)
    places = np.arange(count, dtype=np.int64) if indices is None else indices
    best = BestPoints(images, labels, engine.classes)
    shape = samples, math.prod(images.shape[1:])
    probe_255 = probe_size_255(threat_model, shape[1])
    flight = engine.images_in_flight or max(count, 1)
    for first in range(0, count, flight):
        rows = np.arange(first, min(first + flight, count))
        told, in_flight = 0, len(rows)
        climbers = ascent(images[rows], threat_model, steps)
        for step in range(steps):
            standing = best.judge(rows, climbers.bytes, engine.infer(climbers.bytes))
            if not standing.all():
                rows = rows[standing]
                climbers.keep(standing)
            if not rows.size:
                break
            estimates = np.empty(climbers.bytes.shape, np.float32)
            for place, generator in enumerate(generators(seed, stream + step, places[rows])):
                offsets = draw(generator, shape, probe_255)
                estimates[place] = estimated_direction(engine, climbers.bytes[place], labels[rows[place]], offsets)
            best.count(rows, 2 * samples)
            climbers.step(estimates)
            report(in_flight * (2 * samples + 1))
            told += 2 * samples + 1
        if rows.size:
            best.judge(rows, climbers.bytes, engine.infer(climbers.bytes))
        report(in_flight * (queries_of_climb(steps, samples) - told))
    return best.outcome


def estimated_direction(
    engine: Engine, image: NDArray[np.uint8], label: np.int64, offsets: NDArray[np.int16]
) -> NDArray[np.float32]:
    """Where the margin falls from one image uint8 (channels, height, width), float32 of its shape, up to a factor.

    `offsets` int16 (samples, values) are in grey levels. Differences that are not finite count as none.
    """
    centre = image.reshape(-1).astype(np.int16)
    ahead, behind = np.clip(centre + offsets, 0, 255), np.clip(centre - offsets, 0, 255)
    probes = np.concatenate([ahead, behind]).astype(np.uint8).reshape(-1, *image.shape)
    margin = margins(engine.infer(probes), np.full(len(probes), label))
    with np.errstate(invalid="ignore", over="ignore"):
        lost = margin[len(offsets) :] - margin[: len(offsets)]
    lost[~np.isfinite(lost)] = 0
    most = np.abs(lost).max(initial=0)
    if most == 0:
        return np.zeros(image.shape, np.float32)
    direction: NDArray[np.float32] = (lost / most) @ (ahead - behind).astype(np.float32)
    return direction.reshape(image.shape)
