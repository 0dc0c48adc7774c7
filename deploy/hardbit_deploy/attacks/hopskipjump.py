"""HopSkipJump (Chen et al. 2020) for engines that tell a label and nothing else, in L-inf and L2, on bytes.

From a point that another label is given to, the search goes back towards the image as far as that label holds; asks
which way the boundary runs there, by the labels of points around it; jumps along the answer; and goes back again. It
comes nearer to the image all the time, and an image has fallen once any point that was asked about lies in the ball.

What the byte grid changes. The authors probe at a share of the distance that is far below a grey level; here it is
three tenths of what the way moves each value by, one level at least, and twice as far after a round in which all probes
had the same label. With probes of one level the median distance on a Fashion-MNIST CNN W4A4 is 1,194 grey levels in L2
after 5,000 queries, and 593 with these; on one of 8 bits it is 345, and 326.

Positions are kept in fractions of a level, and rounded where they are asked about. In L-inf, going back shortens all
values at once, and one grey level of that is a long way across the boundary; so there values are rounded against
thresholds drawn for each, and a fraction of a level shortens a fraction of them. On that network of 8 bits 5,000
queries come as near in L-inf as PGD-40 with its gradients does, in the median.

Boundary: sees labels only, and asks for one image after the other, about many points at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import L2_SLACK, rounded_inside_l2
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.randomness import generators
from hardbit_deploy.attacks.threat_model import ThreatModel

__all__ = ["hopskipjump", "nearest_points"]

FIRST_PROBES = 100  # for one direction; the t-th takes sqrt(t) times as many
_TOLERANCE_255 = {"linf": 1 / 32, "l2": 1 / 8}  # how near to the boundary a search along a line comes
_PROBE_SHARE = 0.3  # of the distance in each value: root mean square of probes' offsets
_PROBES_255 = 1.0, 64.0  # least and most
_SMALLEST_JUMP_255 = 0.1
_FIRST_TRIES = 10  # rounds of six images, for one that has another label
_STREAM = 4 << 40  # apart from those of other attacks

Decide = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
Report = Callable[[int], None]


def hopskipjump(
    decide: Decide,
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

    `decide` gives labels int64 (m,) of images uint8 (m, channels, height, width). `indices` int64 (n,) are the images'
    places in their data set, which decide all that is drawn for them (default 0 to n-1). `report` is told of queries
    that are done, as if no image fell.

    Where an image fell, `adversarial` is the point in the ball that was found; else the last point of the ball that was
    asked about, or the image. Labels have no margin: `logits` has no columns, and `margin` is NaN.
    """
    found = AttackOutcome(
        images.copy(),
        np.ones(len(images), np.bool_),
        np.zeros((len(images), 0), np.float32),
        np.full(len(images), np.nan, np.float32),
        queries=np.zeros(len(images), np.int64),
    )
    searches = _searches(decide, images, labels, threat_model.norm, threat_model.eps_255, queries, seed, indices)
    for row, search in enumerate(searches):
        found.survived[row] = search.distance > threat_model.eps_255
        found.adversarial[row] = search.inside if found.survived[row] else search.nearest
        if found.queries is not None:
            found.queries[row] = search.queries
        report(queries)
    return found


def nearest_points(
    decide: Decide,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    norm: str,
    *,
    queries: int,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The nearest points of another label that were found, and how far they are in grey levels; otherwise as above.

    Searches go on until their queries are spent. An infinite distance says that no other label was met: the point is
    the image then.
    """
    points, distances = images.copy(), np.empty(len(images))
    for row, search in enumerate(_searches(decide, images, labels, norm, -1.0, queries, seed, indices)):
        points[row], distances[row] = search.nearest, search.distance
    return points, distances


def _searches(
    decide: Decide,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    norm: str,
    enough_255: float,
    queries: int,
    seed: int,
    indices: NDArray[np.int64] | None,
) -> Iterator[_Search]:
    places = np.arange(len(images), dtype=np.int64) if indices is None else indices
    for image, label, generator in zip(images, labels, generators(seed, _STREAM, places), strict=True):
        search = _Search(decide, image, int(label), norm, enough_255, queries, generator)
        search.run()
        yield search


class _Done(Exception):  # noqa: N818 (not an error: the search is over)
    """Near enough, or out of queries."""


class _Search:
    """One image: `nearest` is the nearest point of another label, `inside` the last one asked about in the ball.

    The search is over at a distance of `enough_255`, or when `budget` queries are spent.
    """

    def __init__(
        self,
        decide: Decide,
        image: NDArray[np.uint8],
        label: int,
        norm: str,
        enough_255: float,
        budget: int,
        generator: np.random.Generator,
    ) -> None:
        self._decide, self._label, self._shape = decide, label, image.shape
        self._image = image.reshape(-1).astype(np.float32)
        self._norm, self._enough_255, self._budget, self._generator = norm, enough_255, budget, generator
        self._thresholds = np.float32(0.01) + np.float32(0.98) * generator.random(len(self._image), dtype=np.float32)
        self._stretch = 1.0
        self.nearest, self.inside, self.distance, self.queries = image, image, math.inf, 0

    def run(self) -> None:
        try:
            self._fools(self._image[None])
            point = self._first_point()
            jumps = 0
            while point is not None:
                jumps += 1
                boundary = self._back_towards_the_image(point)
                point = self._jump(boundary, self._direction(boundary, jumps), jumps)
        except _Done:
            pass

    def _fools(self, points: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether points (m, values) have another label, on the grid; the nearest that has is remembered."""
        if self.queries + len(points) > self._budget:
            raise _Done
        self.queries += len(points)
        points = self._on_grid(points)
        images = points.astype(np.uint8).reshape(-1, *self._shape)
        fooled: NDArray[np.bool_] = self._decide(images) != self._label
        distances = self._lengths(points - self._image)
        inside = np.flatnonzero(distances <= self._enough_255)
        if inside.size:
            self.inside = images[inside[-1]]
        distances[~fooled] = np.inf
        best = int(distances.argmin())
        if distances[best] < self.distance:
            self.distance, self.nearest = float(distances[best]), images[best]
            if self.distance <= self._enough_255:
                raise _Done
        return fooled

    def _on_grid(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """The bytes that points stand for; whole grey levels stand for themselves."""
        if self._norm == "linf":
            delta = points - self._image
            points = self._image + np.sign(delta) * np.floor(np.abs(delta) + self._thresholds)
        return np.asarray(np.clip(np.rint(points), 0, 255), np.float32)

    def _lengths(self, deltas: NDArray[np.float32]) -> NDArray[np.float64]:
        if self._norm == "linf":
            return np.asarray(np.abs(deltas).max(axis=1), np.float64)
        return np.asarray(np.sqrt(np.einsum("nd,nd->n", deltas, deltas, dtype=np.float64)))

    def _first_point(self) -> NDArray[np.float32] | None:
        """Noise over the whole range, noise of its ends, the negative, and plain images: whichever fools first."""
        values = len(self._image)
        for _ in range(_FIRST_TRIES):
            noise = self._generator.integers(0, 256, (2, values)).astype(np.float32)
            ends = np.where(noise[1] < 128, np.float32(0), np.float32(255))
            shade = np.full(values, self._generator.integers(0, 256), np.float32)
            for point in (noise[0], ends, shade, 255 - self._image, np.zeros_like(shade), np.full_like(shade, 255)):
                if self._fools(point[None])[0]:
                    return np.asarray(point)
        return None

    def _back_towards_the_image(self, point: NDArray[np.float32]) -> NDArray[np.float32]:
        """The point on the way back after which the label is the image's again; the edge of the ball is tried first."""
        delta = point - self._image
        line = self._line(delta)
        far, near = float(self._lengths(delta[None])[0]), 0.0
        edge = math.floor(self._enough_255) if self._norm == "linf" else self._enough_255
        if 0 < edge < far:
            inside = rounded_inside_l2(line(edge * L2_SLACK)[None], edge)[0] if self._norm == "l2" else line(edge)
            self._fools((self._image + inside)[None])
            near = edge
        while far - near > _TOLERANCE_255[self._norm]:
            middle = (far + near) / 2
            if self._fools((self._image + line(middle))[None])[0]:
                far = middle
            else:
                near = middle
        return self._image + line(far)

    def _line(self, delta: NDArray[np.float32]) -> Callable[[float], NDArray[np.float32]]:
        """What is left of `delta` at each length: cut off in L-inf, scaled down in L2."""
        if self._norm == "linf":
            return lambda length: np.clip(delta, np.float32(-length), np.float32(length))
        whole = float(self._lengths(delta[None])[0])
        return lambda length: delta * np.float32(length / whole)

    def _direction(self, boundary: NDArray[np.float32], jumps: int) -> NDArray[np.float32]:
        """Into the other label's region, by the labels of points around: the paper's estimate less its mean."""
        shape = int(FIRST_PROBES * math.sqrt(jumps)), len(boundary)
        probe_255 = self._probe_255(boundary)
        if self._norm == "linf":
            drawn = self._generator.random(shape, dtype=np.float32)
            drawn -= np.float32(0.5)
            drawn *= np.float32(math.sqrt(12) * probe_255)
        else:
            drawn = self._generator.standard_normal(shape, dtype=np.float32)
            drawn *= np.float32(probe_255)
        probes = self._on_grid(boundary + drawn)
        signs = np.where(self._fools(probes), np.float32(1), np.float32(-1))
        alike = abs(signs.mean()) == 1
        self._stretch = 2 * self._stretch if alike else max(self._stretch / 2, 1)
        weights = signs if alike else signs - signs.mean()
        return np.asarray(weights @ (probes - boundary))

    def _probe_255(self, boundary: NDArray[np.float32]) -> float:
        length = float(self._lengths((boundary - self._image)[None])[0])
        in_each = length if self._norm == "linf" else length / math.sqrt(len(boundary))
        least, most = _PROBES_255
        return min(max(_PROBE_SHARE * in_each, least) * self._stretch, most)

    def _jump(self, boundary: NDArray[np.float32], direction: NDArray[np.float32], jumps: int) -> NDArray[np.float32]:
        """As far as the distance over the root of jumps made, or half of it, or a quarter, until the point fools."""
        norm = float(np.linalg.norm(direction))
        if norm == 0:
            return boundary
        along = np.sign(direction) if self._norm == "linf" else direction / np.float32(norm)
        size = float(self._lengths((boundary - self._image)[None])[0]) / math.sqrt(jumps)
        while size >= _SMALLEST_JUMP_255:
            point = np.clip(boundary + np.float32(size) * along, 0, 255)
            if self._fools(point[None])[0]:
                return np.asarray(point)
            size /= 2
        return boundary
