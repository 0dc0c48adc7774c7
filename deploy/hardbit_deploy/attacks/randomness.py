"""Randomness that belongs to an image: the same for it whatever it is batched with, and whichever images have fallen.

Every image has its own counter-based generator (Philox; Salmon et al. 2011), keyed by a seed and a stream and placed by
the image's index in its data set.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["generators", "random_words"]


def generators(seed: int, stream: int, indices: NDArray[np.int64]) -> Iterator[np.random.Generator]:
    """One generator for each image of `indices`, each to be used before the next one is taken.

    It is the same object over and over, placed at each index: that takes a tenth of the time of making one.
    """
    source = np.random.Philox(key=[seed, stream])
    generator = np.random.Generator(source)
    for _ in _placed(source, indices, block=0):
        yield generator


def random_words(
    seed: int, stream: int, indices: NDArray[np.int64], *, block: int, words: int, columns: int
) -> NDArray[np.uint32]:
    """Uniform 32-bit words, uint32 (words, columns, n): those of one image are the same in every call.

    Blocks are numbered, so that a long sequence can be drawn in parts without keeping a generator for every image.
    """
    source = np.random.Philox(key=[seed, stream])
    count = words * columns
    drawn = np.empty((len(indices), -(-count // 2)), np.uint64)
    for row, _ in enumerate(_placed(source, indices, block)):
        drawn[row] = source.random_raw(drawn.shape[1])
    return np.ascontiguousarray(drawn.view(np.uint32)[:, :count].T).reshape(words, columns, len(indices))


def _placed(source: np.random.Philox, indices: NDArray[np.int64], block: int) -> Iterator[None]:
    fresh = source.state
    for index in indices:
        fresh["state"]["counter"][:] = 0, 0, block, index
        source.state = fresh
        yield
