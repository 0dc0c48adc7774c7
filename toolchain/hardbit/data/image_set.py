"""The value that every data source yields, and the rule that splits it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.errors import HardbitError

__all__ = ["ImageFacts", "ImageSet", "carve_validation"]


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a split without loading its images: (channels, height, width), how many, of how many classes."""

    shape: tuple[int, int, int]
    count: int
    classes: int


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    `images` is uint8 (n, channels, height, width), `labels` int64 (n,) with values below `len(class_names)`;
    `source` says in words where they come from. `groups` int64 (n,), where a set has them, tells images of one object
    or one recording: near duplicates, which no split may part. Raises HardbitError where these do not fit together.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    source: str
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        problem = ""
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            problem = f"images are {self.images.dtype} {self.images.shape}, not uint8 (n, channels, height, width)"
        elif self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            problem = f"{len(self.images)} images have labels {self.labels.dtype} {self.labels.shape}"
        elif 0 in self.images.shape:
            problem = f"there are no pixels in images of shape {self.images.shape}"
        elif self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            problem = (
                f"labels run from {self.labels.min()} to {self.labels.max()}, but there are "
                f"{len(self.class_names)} class names"
            )
        elif self.groups is not None and (self.groups.dtype != np.int64 or self.groups.shape != self.labels.shape):
            problem = f"{len(self.images)} images have groups {self.groups.dtype} {self.groups.shape}"
        if problem:
            raise HardbitError(problem, where=self.source)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def first(self, count: int | None) -> ImageSet:
        """The first `count` images (all for None). Raises HardbitError if there are fewer."""
        if count is None:
            return self
        if not 0 < count <= len(self):
            raise HardbitError(
                f"{count} images are asked for, there are {len(self)}",
                where=self.source,
                remedy=f"ask for 1 to {len(self)}",
            )
        return self.pick(slice(0, count))

    def pick(self, indices: NDArray[np.int64] | slice) -> ImageSet:
        """The images at `indices`, in that order: a copy, or a view for a slice."""
        groups = None if self.groups is None else self.groups[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], groups=groups)

    def sha256(self) -> str:
        """Of the content: shape, bytes of the images, labels. Where the images lie and how they are stored is not in
        it."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def carve_validation(images: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split `count` images off a training set, drawn without replacement by `seed`: (rest, validation).

    Where images have groups, whole groups are drawn until they hold at least `count` images, so that near duplicates
    never stand on both sides. Both parts keep the order of the set. The same set, count and seed give the same split
    on every machine. Raises HardbitError unless both parts get at least one image.
    """
    if not 0 < count < len(images):
        raise HardbitError(
            f"a validation split of {count} cannot be carved from {len(images)} images",
            where=images.source,
            remedy=f"ask for 1 to {len(images) - 1}",
        )
    if images.groups is None:
        chosen = np.zeros(len(images), bool)
        chosen[np.random.default_rng(seed).permutation(len(images))[:count]] = True
    else:
        chosen = _whole_groups(images.groups, count, seed)
    if chosen.all():
        raise HardbitError(
            f"a validation split of {count} whole groups leaves nothing of {len(images)} images to train on",
            where=images.source,
            remedy="ask for fewer",
        )
    return images.pick(np.flatnonzero(~chosen)), images.pick(np.flatnonzero(chosen))


def _whole_groups(groups: NDArray[np.int64], count: int, seed: int) -> NDArray[np.bool_]:
    """Which images belong to the first drawn groups that hold `count` of them together."""
    _, membership, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    drawn = int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1
    return np.isin(membership, order[:drawn])
