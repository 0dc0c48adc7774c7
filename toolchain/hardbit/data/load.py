"""A data set's name in a recipe -> its images."""

from __future__ import annotations

from pathlib import Path

from hardbit.data.cifar10 import CIFAR10
from hardbit.data.fashion_mnist import FASHION_MNIST
from hardbit.data.gtsrb import GTSRB
from hardbit.data.image_set import ImageFacts, ImageSet
from hardbit.data.mnist import MNIST
from hardbit.data.npz import read_facts, read_npz
from hardbit.data.published import PublishedSet
from hardbit_deploy.errors import HardbitError

__all__ = ["PUBLISHED", "image_facts", "load_images", "set_names"]

PUBLISHED: dict[str, PublishedSet] = {each.name: each for each in (MNIST, FASHION_MNIST, CIFAR10, GTSRB)}
_NPZ = "npz:"


def set_names() -> list[str]:
    """What may be written as the name of a set; `npz:FILE` stands for any file in the form of `hardbit.data.npz`."""
    return [*PUBLISHED, "npz:FILE"]


def load_images(data_set: str, split: str, limit: int | None = None) -> ImageSet:
    """The first `limit` images (all for None) of the split `train` or `test` of a set, in the set's own order.

    `data_set` is one of `PUBLISHED`, or `npz:FILE` with a path relative to the working folder.
    Raises HardbitError for an unknown set or split, and where the images are missing, damaged or too few.
    """
    _check(data_set, split)
    images = PUBLISHED[data_set].load(split) if data_set in PUBLISHED else read_npz(_path(data_set), split)
    return images.first(limit)


def image_facts(data_set: str, split: str) -> ImageFacts:
    """Shape, count and classes of a split, without loading its images; raises as `load_images` does."""
    _check(data_set, split)
    return PUBLISHED[data_set].facts(split) if data_set in PUBLISHED else read_facts(_path(data_set), split)


def _path(data_set: str) -> Path:
    return Path(data_set.removeprefix(_NPZ))


def _check(data_set: str, split: str) -> None:
    if data_set not in PUBLISHED and not data_set.startswith(_NPZ):
        raise HardbitError(f"there is no data set '{data_set}'", where="data.set", remedy=f"known: {set_names()}")
    if split not in ("train", "test"):
        raise HardbitError(f"there is no split '{split}'", where="data", remedy="known: train, test")
