"""The Square attack (Andriushchenko et al. 2020) on a deployed engine: random squares that do not make the margin rise.

It asks for logits and for nothing else, so that masked gradients hide nothing from it: images that it fools and no
white-box attack does are an alarm. On an integer engine most squares leave the margin exactly as it was: such ties are
accepted, which lets the search walk across plateaus.

Boundary: how squares look is in `squares`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.outcome import AttackOutcome, keeps_label, margins
from hardbit_deploy.attacks.randomness import random_words
from hardbit_deploy.attacks.squares import Squares, squares_in
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine

__all__ = ["share_of_image", "square"]

FIRST_SHARE = 0.8  # of an image, covered by the first squares
_SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: after each, half the share
_STREAM = 1 << 32  # apart from those of PGD's random starts
_BLOCK = 128  # queries whose random words are drawn at once
_FLIGHTS = 4  # of an engine's images in flight: fewer calls of numpy, and a byte of state a pixel fills no cache

Report = Callable[[int], None]


def square(
    engine: Engine,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    queries: int,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
    report: Report = lambda _: None,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,), `queries` times each at most.

    `indices` int64 (n,) are the images' places in their data set, which decide their random squares (default 0 to
    n-1): what happens to an image depends on nothing else. An image that the engine gives another label has fallen, and
    is not asked about again. `report` is told, now and then, of queries that are done, as if no image fell.
    """
    count = len(images)
    places = np.arange(count, dtype=np.int64) if indices is None else indices
    found = AttackOutcome(
        images.copy(),
        np.ones(count, np.bool_),
        np.zeros((count, engine.classes), np.float32),
        np.full(count, np.inf, np.float32),
        queries=np.zeros(count, np.int64),
    )
    flight = _FLIGHTS * engine.images_in_flight if engine.images_in_flight else max(count, 1)
    for first in range(0, count, flight):
        rows = np.arange(first, min(first + flight, count))
        moves = squares_in(images[rows], threat_model)
        _Search(engine, moves, labels[rows], _Words(seed, places[rows]), rows, found).run(queries, report)
    return found


def share_of_image(query: int, queries: int) -> float:
    """How much of an image the squares of a query cover, the first query being 0: the authors' schedule."""
    return math.ldexp(FIRST_SHARE, -sum(10_000 * query > limit * queries for limit in _SCHEDULE))


class _Search:
    """Images that are asked about together; `rows` says where each of those that stand belongs in `found`."""

    def __init__(
        self,
        engine: Engine,
        squares: Squares,
        labels: NDArray[np.int64],
        words: _Words,
        rows: NDArray[np.int64],
        found: AttackOutcome,
    ) -> None:
        self.engine, self.squares, self.labels, self.words = engine, squares, labels, words
        self.rows, self.found = rows, found
        self.margin = np.full(len(rows), np.inf, np.float32)
        self.logits = np.zeros((len(rows), engine.classes), np.float32)
        self.queries = 0

    def run(self, queries: int, report: Report) -> None:
        count, told = len(self.rows), 0
        self.squares.start(self.words.first(self.squares.start_columns))
        self._judge()
        while self.rows.size and self.queries < queries:
            side = self.squares.side(share_of_image(self.queries, queries))
            self.squares.move(side, self.words.next(self.squares.move_columns))
            self._judge()
            if self.queries - told == _BLOCK:
                report(count * _BLOCK)
                told = self.queries
        report(count * (queries - told))
        self._hand_over(np.ones(len(self.rows), np.bool_))

    def _judge(self) -> None:
        """Ask the engine, take back the squares that made a margin rise, and let go of images that have fallen."""
        logits = self.engine.infer(self.squares.bytes)
        self.queries += 1
        margin = margins(logits, self.labels)
        standing = keeps_label(logits, self.labels, margin)
        worse = standing & (margin > self.margin)
        self.margin = np.where(worse, self.margin, margin)
        self.logits = np.where(worse[:, None], self.logits, logits)
        if worse.any():
            self.squares.take_back(np.flatnonzero(worse))
        if standing.all():
            return
        self._hand_over(~standing)
        self.found.survived[self.rows[~standing]] = False
        self.squares.keep(standing)
        self.words.keep(standing)
        self.rows, self.labels = self.rows[standing], self.labels[standing]
        self.margin, self.logits = self.margin[standing], self.logits[standing]

    def _hand_over(self, chosen: NDArray[np.bool_]) -> None:
        """Write down what is known of these images."""
        rows = self.rows[chosen]
        self.found.adversarial[rows] = self.squares.bytes[chosen]
        self.found.margin[rows], self.found.logits[rows] = self.margin[chosen], self.logits[chosen]
        if self.found.queries is not None:
            self.found.queries[rows] = self.queries


class _Words:
    """The random words of images, drawn for many queries at once; those of an image depend on no other image."""

    def __init__(self, seed: int, places: NDArray[np.int64]) -> None:
        self._seed, self._places = seed, places
        self._block = 0
        self._drawn = np.empty((0, 0, 0), np.uint32)
        self._used = 0
        self._chosen: NDArray[np.int64] | None = None

    def first(self, columns: int) -> NDArray[np.uint32]:
        """Words of the first pattern, uint32 (columns, n)."""
        words: NDArray[np.uint32] = random_words(self._seed, _STREAM, self._places, block=0, words=1, columns=columns)[
            0
        ]
        return words

    def next(self, columns: int) -> NDArray[np.uint32]:
        """Words of the next query, uint32 (columns, n)."""
        if self._used == len(self._drawn):
            self._block += 1
            self._drawn = random_words(
                self._seed, _STREAM, self._places, block=self._block, words=_BLOCK, columns=columns
            )
            self._used, self._chosen = 0, None
        words: NDArray[np.uint32] = self._drawn[self._used]
        self._used += 1
        return words if self._chosen is None else words[:, self._chosen]

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Forget all images but the chosen ones."""
        self._places = self._places[chosen]
        self._chosen = np.flatnonzero(chosen) if self._chosen is None else self._chosen[chosen]
