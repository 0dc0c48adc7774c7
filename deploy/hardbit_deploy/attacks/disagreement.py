"""An attack on the agreement of engine and attack graph: images in the ball on which the two say different things.

Two programs of one network differ, if at all, by rounding. That shows in a label only where the two greatest logits are
next to equal, and such images are rare among photographs. So the search goes there (differential testing at the
decision boundary: Pei et al. 2017, arXiv:1705.06640, by gradients; Tian et al. 2021, arXiv:2101.09617, quantized
against float by small changes):

1. A walk that follows the gradient of the engine's second logit less its first, over the boundary and back, in steps
   that shrink.
2. A bisection between the clean image and the last place behind the boundary: of the values in which they differ,
   taken in random order, half are exchanged, until the two sides are one byte apart.
3. A local search: a few bytes are moved by one or two grey levels, and the change stays unless the score falls. The
   score is the largest difference of a logit, less the gap between the engine's two greatest.

All points are bytes in the ball, the clean image among them, and every point that is looked at is compared. What is
drawn for an image depends on the seed and its index only.

Boundary: finds images, judges nothing; success here is no success of an adversary, and no part of the worst case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import iterates_from
from hardbit_deploy.attacks.randomness import generators, random_words
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine, Gradient

__all__ = ["Disagreement", "disagreement"]

_STREAM = 1 << 34  # of the random numbers: no other attack has it
_FIRST_STEP, _LAST_STEP = 0.25, 0.02  # of the walk, in eps
_WIDEST_MOVE = 32  # bytes that one change of the local search touches


@dataclass(frozen=True)
class Disagreement:
    """Per image: `images` uint8 (n, channels, height, width), the first point of two labels, else the one of the
    highest score; `flipped` bool (n,), whether the labels differ there; `difference` float32 (n,), the largest |logit
    difference| of all points. `points` is how many were compared."""

    images: NDArray[np.uint8]
    flipped: NDArray[np.bool_]
    difference: NDArray[np.float32]
    points: int


def disagreement(
    engine: Engine,
    gradient: Gradient,
    images: NDArray[np.uint8],
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    queries: int = 60,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
    report: Callable[[int], None] = lambda points: None,
) -> Disagreement:
    """Search around images uint8 (n, channels, height, width): `steps` of the walk, then `queries` of the local search.

    True labels play no part: it starts from what the engine says. `indices` int64 (n,) are the images' places in their
    data set (default 0 to n-1); `report` is told of points that were compared.
    """
    count = len(images)
    places = np.arange(count, dtype=np.int64) if indices is None else indices
    found = Disagreement(images.copy(), np.zeros(count, np.bool_), np.zeros(count, np.float32), 0)
    points, flight = 0, engine.images_in_flight or max(count, 1)
    for first in range(0, count, flight):
        rows = slice(first, first + flight)
        search = _Search(engine, gradient, images[rows], threat_model, seed, places[rows])
        search.walk(steps)
        search.bisect()
        search.climb(queries)
        found.images[rows], found.flipped[rows] = search.chosen, search.flipped
        found.difference[rows] = search.difference
        points += search.points
        report(search.points)
    return Disagreement(found.images, found.flipped, found.difference, points)


class _Search:
    """The search around some images; `best` are the points of the highest score, from which the next phase starts."""

    def __init__(
        self,
        engine: Engine,
        gradient: Gradient,
        images: NDArray[np.uint8],
        threat_model: ThreatModel,
        seed: int,
        indices: NDArray[np.int64],
    ) -> None:
        self._engine, self._gradient, self._images, self._model = engine, gradient, images, threat_model
        self._seed, self._indices = seed, indices
        self.points = 0
        self.best = images.copy()
        self.chosen = images.copy()
        self.flipped = np.zeros(len(images), np.bool_)
        self.difference = np.zeros(len(images), np.float32)
        self._score = np.full(len(images), -np.inf)
        self._logits = self._look(images)
        self._label = self._logits.argmax(axis=1)
        self._beyond = images.copy()  # the last points with another label
        self._crossed = np.zeros(len(images), np.bool_)

    def walk(self, steps: int) -> None:
        """Down the gap between the engine's two greatest logits, from the clean image."""
        iterates, logits = iterates_from(self._images, self._images, self._model), self._logits
        for size in self._model.eps_255 * np.geomspace(_FIRST_STEP, _LAST_STEP, steps):
            direction = self._gradient.pullback(iterates.bytes, _second_less_first(logits))
            iterates.step(direction, float(size))
            logits = self._look(iterates.bytes)
            beyond = logits.argmax(axis=1) != self._label
            self._beyond[beyond] = iterates.bytes[beyond]
            self._crossed |= beyond

    def bisect(self) -> None:
        """Between the clean image and the place behind the boundary; what never crossed it stays where it is."""
        count, values = len(self._images), math.prod(self._images.shape[1:])
        clean, beyond = self._images.reshape(count, values), self._beyond.reshape(count, values)
        rank = np.zeros((count, values), np.int64)  # in which order values are exchanged; those that are equal first
        for row, generator in enumerate(generators(self._seed, _STREAM, self._indices)):
            rank[row, generator.permutation(values)] = np.arange(values)
        same = clean == beyond
        rank[same] = -1
        rank = rank.argsort(axis=1, kind="stable").argsort(axis=1)
        low, high = np.count_nonzero(same, axis=1), np.full(count, values)
        while (self._crossed & (high - low > 1)).any():
            middle = (low + high) // 2
            mixed = np.where(rank < middle[:, None], beyond, clean).reshape(self._images.shape)
            inside = self._look(mixed).argmax(axis=1) == self._label
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)

    def climb(self, queries: int) -> None:
        """Small changes of the best point, kept unless the score falls."""
        shape, values = self._images.shape, math.prod(self._images.shape[1:])
        rows = np.arange(len(self._images))
        for query in range(queries):
            width = min(1 << query % (_WIDEST_MOVE.bit_length()), _WIDEST_MOVE)
            words = random_words(self._seed, _STREAM, self._indices, block=query + 1, words=width, columns=2)
            moved = self.best.reshape(len(rows), values).astype(np.int16)
            for place, move in words:
                # -2, -1, 1 or 2 grey levels; two moves of one byte add up.
                step = (move & 3).astype(np.int16)
                moved[rows, (place % values).astype(np.int64)] += step - 2 + (step >= 2)
            self._look(self._feasible(np.clip(moved, 0, 255).astype(np.uint8).reshape(shape)))

    def _feasible(self, points: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Points back in the box; in L2, a point that left the ball gives way to the best one."""
        if self._model.norm == "linf":
            radius, centre = min(math.floor(self._model.eps_255), 255), self._images.astype(np.int16)
            return np.clip(points, centre - radius, centre + radius).astype(np.uint8)
        delta = points.astype(np.int64) - self._images
        outside = (delta * delta).sum(axis=(1, 2, 3)) > self._model.eps_255**2
        kept = points.copy()
        kept[outside] = self.best[outside]
        return kept

    def _look(self, points: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compare both at `points` and note what is best; returns the engine's logits."""
        logits, own = self._engine.infer(points), self._gradient.logits(points)
        self.points += len(points)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(logits - own).max(axis=1)
            # Both overflow alike, or one is not a number: an unknown difference must not pass for a small one.
            difference = np.where(np.isfinite(difference), difference, np.finfo(np.float32).max)
            two = np.partition(logits, -2, axis=1)[:, -2:].astype(np.float64)
            score = difference - (two[:, 1] - two[:, 0])
        flips = (logits.argmax(axis=1) != own.argmax(axis=1)) & ~self.flipped
        better = score >= self._score
        self.best[better], self._score[better] = points[better], score[better]
        show = flips | (better & ~self.flipped)
        self.chosen[show] = points[show]
        self.flipped |= flips
        np.maximum(self.difference, difference, out=self.difference)
        return logits


def _second_less_first(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The derivative of the second greatest logit less the greatest, float32 like `logits`."""
    order, rows = logits.argsort(axis=1), np.arange(len(logits))
    seeds = np.zeros_like(logits)
    seeds[rows, order[:, -2]], seeds[rows, order[:, -1]] = 1, -1
    return seeds
