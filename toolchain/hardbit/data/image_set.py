"""The value that every data source yields, and the rule that splits it."""

from __future__ import annotations

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
    `source` says in words where they come from. Raises HardbitError where these do not fit together.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    source: str

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
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def pick(self, indices: NDArray[np.int64]) -> ImageSet:
        """A copy of the images at `indices`, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


def carve_validation(images: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split `count` images off a training set, drawn without replacement by `seed`: (rest, validation).

    Both keep the order of the set. The same set, count and seed give the same split on every machine.
    Raises HardbitError unless both parts get at least one image.
    """
    if not 0 < count < len(images):
        raise HardbitError(
            f"a validation split of {count} cannot be carved from {len(images)} images",
            where=images.source,
            remedy=f"ask for 1 to {len(images) - 1}",
        )
    chosen = np.zeros(len(images), bool)
    chosen[np.random.default_rng(seed).permutation(len(images))[:count]] = True
    return images.pick(np.flatnonzero(~chosen)), images.pick(np.flatnonzero(chosen))
