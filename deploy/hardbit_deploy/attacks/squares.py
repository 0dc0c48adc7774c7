"""The moves of the Square attack on the byte grid: one square of every image at a time, made in place and taken back.

All images of a batch are moved by the same few array operations: their squares have one side and places of their own,
so that a square is one gather and one scatter through a sliding window, and costs what is in it. The state is the
bytes that the engine is asked about, and nothing else.

Boundary: geometry only; never asks an engine, and draws no random numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import L2_SLACK, rounded_inside_l2
from hardbit_deploy.attacks.threat_model import ThreatModel

__all__ = ["L2Squares", "LinfSquares", "Squares", "pyramid", "squares_in"]

_BITS = 32
_TILES = 5  # of the first pattern in L2, along each side


class Squares(ABC):
    """`bytes` uint8 (n, channels, height, width) are the images to look at, the last squares in place.

    Random words are uint32 (columns, n): as many columns as `start_columns` or `move_columns` say.
    """

    bytes: NDArray[np.uint8]
    start_columns: int
    move_columns: int

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._channels = np.arange(images.shape[1])
        self.height: int = images.shape[2]
        self.width: int = images.shape[3]

    @abstractmethod
    def start(self, words: NDArray[np.uint32]) -> None:
        """Set `bytes` to the first pattern."""

    @abstractmethod
    def side(self, share: float) -> int:
        """The side of a square that covers about `share` of an image."""

    @abstractmethod
    def move(self, side: int, words: NDArray[np.uint32]) -> None:
        """Change one square of `side` in every image."""

    @abstractmethod
    def take_back(self, rows: NDArray[np.int64]) -> None:
        """Undo the last move of these images."""

    @abstractmethod
    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Forget all images but the chosen ones."""

    def _place(self, side: int, rows: NDArray[np.uint32], columns: NDArray[np.uint32]) -> _Place:
        top = below(rows, self.height - side + 1)
        left = below(columns, self.width - side + 1)
        return np.arange(len(top))[:, None], self._channels, top[:, None], left[:, None]


_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
# Image, channel, top and left: indices that broadcast to (n, channels) into sliding windows.
_Place = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def squares_in(images: NDArray[np.uint8], threat_model: ThreatModel) -> Squares:
    """Squares in the ball around `images`; call `start` before anything else."""
    return (LinfSquares if threat_model.norm == "linf" else L2Squares)(images, threat_model.eps_255)


class LinfSquares(Squares):
    """Every value is at one of the two ends of what it may be; a square takes one end in each of its channels.

    A square that would change nothing takes the other ends instead: the authors draw again (Andriushchenko et al. 2020,
    their code), which for one channel is the same, and no query is spent on an image that was asked about before.
    """

    def __init__(self, images: NDArray[np.uint8], eps_255: float) -> None:
        super().__init__(images)
        radius = np.int16(min(math.floor(eps_255), 255))
        centre = images.astype(np.int16)
        self._ends = np.stack([np.maximum(centre - radius, 0), np.minimum(centre + radius, 255)]).astype(np.uint8)
        self._signs = images.shape[1]
        self.start_columns = -(-self._signs * self.width // _BITS)
        self.move_columns = 2 - (-self._signs // _BITS)

    def side(self, share: float) -> int:
        return min(max(1, round(math.sqrt(share * self.height * self.width))), self.height, self.width)

    def start(self, words: NDArray[np.uint32]) -> None:
        """Vertical stripes one pixel wide, the ends drawn for each channel: sensitive directions of convolutions."""
        upper = bits(words, self._signs * self.width).reshape(-1, self._signs, 1, self.width)
        self.bytes = np.where(upper, self._ends[1], self._ends[0])
        self._view(0)

    def move(self, side: int, words: NDArray[np.uint32]) -> None:
        if side != self._side:
            self._view(side)
        place = self._place(side, words[0], words[1])
        upper = bits(words[2:], self._signs).astype(np.int64)
        before = self._windows[place]
        after = self._end_windows[(upper, *place)]
        idle = np.flatnonzero((before == after).all(axis=(1, 2, 3)))
        if idle.size:
            after[idle] = self._end_windows[(1 - upper[idle], *_of(place, idle))]
        self._windows[place] = after
        self._last = place, before

    def take_back(self, rows: NDArray[np.int64]) -> None:
        place, before = self._last
        self._windows[_of(place, rows)] = before[rows]

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.bytes, self._ends = self.bytes[chosen], self._ends[:, chosen]
        self._view(0)

    def _view(self, side: int) -> None:
        """Look at squares of `side`; 0 lets go of the arrays."""
        self._side = side
        if side:
            self._windows = sliding_window_view(self.bytes, (side, side), (2, 3), writeable=True)
            self._end_windows = sliding_window_view(self._ends, (side, side), (3, 4))


class L2Squares(Squares):
    """The budget of a second square, and what of the ball is not used yet, goes into a first one, as a pyramid.

    Per image and channel: the norm that both squares held, and the channel's share of what is left of the ball, become
    the norm of the first, whose shape is its old one plus two pyramids of opposite signs; the second is emptied. All is
    kept as bytes; what rounding and the range of pixels leave over is in the ball again at the next move.
    """

    def __init__(self, images: NDArray[np.uint8], eps_255: float) -> None:
        super().__init__(images)
        self._images = images
        self._eps_255 = eps_255
        self._signs = images.shape[1]
        self._tile = max(1, min(self.height, self.width) // _TILES)
        self._tiles = (self.height // self._tile) * (self.width // self._tile)
        self.start_columns = -(-(self._signs + 1) * self._tiles // _BITS)
        self.move_columns = 4 - (-(self._signs + 1) // _BITS)

    def side(self, share: float) -> int:
        """Odd and at least three, so that a pyramid has a top."""
        side = max(3, round(math.sqrt(share * self.height * self.width)))
        return min(side + 1 - side % 2, self.height, self.width)

    def start(self, words: NDArray[np.uint32]) -> None:
        """A board of pyramids that fills the ball, each with a sign for every channel."""
        count, size = len(self._images), self._tile
        drawn = bits(words, (self._signs + 1) * self._tiles).reshape(count, self._tiles, self._signs + 1)
        delta = np.zeros(self._images.shape, np.float32)
        across = self.width // size
        top, left = ((length - length // size * size) // 2 for length in (self.height, self.width))
        for tile in range(self._tiles):
            row, column = top + tile // across * size, left + tile % across * size
            window = delta[:, :, row : row + size, column : column + size]
            window[:] = signed_pyramids(size, drawn[:, tile, 1:], drawn[:, tile, 0])
        flat = delta.reshape(count, -1)
        flat *= self._eps_255 * L2_SLACK / math.sqrt(self._tiles * self._signs)
        pixels = self._images.reshape(count, -1).astype(np.float32)
        np.clip(flat, -pixels, 255 - pixels, out=flat)
        rounded = rounded_inside_l2(flat, self._eps_255)
        self.bytes = (pixels + rounded).astype(np.uint8).reshape(self._images.shape)
        self._squares = (rounded.reshape(count, self._signs, -1) ** 2).sum(axis=2, dtype=np.float64)
        self._view(0)

    def move(self, side: int, words: NDArray[np.uint32]) -> None:
        if side != self._side:
            self._view(side)
        drawn = bits(words[4:], self._signs + 1)
        first, second = self._place(side, words[0], words[1]), self._place(side, words[2], words[3])
        before: tuple[_Bytes, _Bytes] = self._windows[first], self._windows[second]
        pixels, emptied = self._pixels[first].astype(np.float32), self._pixels[second]
        shape: _Floats = before[0] - pixels
        other = before[1].astype(np.float32) - emptied
        held = _squares(other)
        self._windows[second] = emptied
        alone: _Floats = self._windows[first] - pixels  # what both squares share is empty already
        held += _squares(alone)
        left = np.maximum(self._eps_255**2 - self._squares.sum(axis=1, keepdims=True), 0) / self._signs
        shape /= np.sqrt(np.maximum(_squares(shape), 1))[:, :, None, None].astype(np.float32)
        shape += signed_pyramids(side, drawn[:, 1:], drawn[:, 0])
        length = L2_SLACK * np.sqrt((held + left) / np.maximum(_squares(shape), 1e-12))
        shape *= length[:, :, None, None].astype(np.float32)
        np.clip(shape, -pixels, 255 - pixels, out=shape)
        rest = self._squares - held
        radius = np.sqrt(np.maximum(self._eps_255**2 - rest.sum(axis=1), 0))
        rounded = rounded_inside_l2(shape.reshape(len(shape), -1), radius).reshape(shape.shape)
        self._windows[first] = pixels + rounded
        self._last = first, second, before, self._squares
        self._squares = rest + _squares(rounded)

    def take_back(self, rows: NDArray[np.int64]) -> None:
        first, second, before, squares = self._last
        self._windows[_of(first, rows)] = before[0][rows]
        self._windows[_of(second, rows)] = before[1][rows]
        self._squares[rows] = squares[rows]

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.bytes, self._images, self._squares = self.bytes[chosen], self._images[chosen], self._squares[chosen]
        self._view(0)

    def _view(self, side: int) -> None:
        self._side = side
        if side:
            self._windows = sliding_window_view(self.bytes, (side, side), (2, 3), writeable=True)
            self._pixels = sliding_window_view(self._images, (side, side), (2, 3))


def pyramid(height: int, width: int) -> NDArray[np.float64]:
    """Nested rectangles around the middle, the k-th from within 1/k^2 high (eta of the paper), not yet normalised."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    ring = np.maximum(abs(rows - height // 2), abs(columns - width // 2))
    heights = 1.0 / np.arange(1, max(height // 2, width // 2) + 2) ** 2
    return np.asarray(heights[::-1].cumsum()[::-1][ring])


def signed_pyramids(side: int, upper: NDArray[np.bool_], transposed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Squares of norm 1, float32 (n, channels, side, side): a pyramid above its negative, or beside it.

    `upper` bool (n, channels) gives each channel's sign, `transposed` bool (n,) the direction for all channels.
    """
    standing = _standing_pyramids(side)
    chosen = np.where(transposed[:, None, None], standing.T, standing)
    signs = np.where(upper, np.float32(1), np.float32(-1))
    return np.asarray(chosen[:, None] * signs[:, :, None, None])


@lru_cache
def _standing_pyramids(side: int) -> NDArray[np.float32]:
    halves = [half / np.linalg.norm(half) for half in (pyramid(side // 2, side), -pyramid(side - side // 2, side))]
    both = np.concatenate(halves if side > 1 else halves[1:])
    return np.asarray(both / np.linalg.norm(both), np.float32)


def below(words: NDArray[np.uint32], limit: int) -> NDArray[np.int64]:
    """Uniform whole numbers in [0, limit) of uniform 32-bit words."""
    return (words.astype(np.uint64) * np.uint64(limit) >> np.uint64(_BITS)).astype(np.int64)


def bits(words: NDArray[np.uint32], count: int) -> NDArray[np.bool_]:
    """The first `count` bits of each image's words, bool (n, count)."""
    spread = words[:, None, :] >> np.arange(_BITS, dtype=np.uint32)[:, None] & np.uint32(1)
    return spread.reshape(-1, words.shape[1])[:count].T.astype(np.bool_)


def _of(place: _Place, rows: NDArray[np.int64]) -> _Place:
    image, channel, top, left = place
    return image[rows], channel, top[rows], left[rows]


def _squares(windows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared norms (n, channels) of (n, channels, side, side)."""
    return np.asarray(np.einsum("ncij,ncij->nc", windows, windows, dtype=np.float64))
