"""A data set's name in a recipe -> its images."""

from __future__ import annotations

from pathlib import Path

from hardbit.data import fashion_mnist
from hardbit.data.image_set import ImageFacts, ImageSet
from hardbit.data.npz import read_facts, read_npz
from hardbit_deploy.errors import HardbitError

__all__ = ["image_facts", "load_images", "set_names"]

_NPZ = "npz:"


def set_names() -> list[str]:
    """What may be written as the name of a set; `npz:FILE` stands for any file in the form of `hardbit.data.npz`."""
    return ["fashion-mnist", "npz:FILE"]


def load_images(data_set: str, split: str, limit: int | None = None) -> ImageSet:
    """The first `limit` images (all for None) of the split `train` or `test` of a set, in the set's own order.

    `data_set` is `fashion-mnist`, or `npz:FILE` with a path relative to the working folder.
    Raises HardbitError for an unknown set or split, and where the images are missing, damaged or too few.
    """
    _check(data_set, split)
    images = fashion_mnist.load(split) if data_set == "fashion-mnist" else read_npz(_path(data_set), split)
    return images.first(limit)


def image_facts(data_set: str, split: str) -> ImageFacts:
    """Shape, count and classes of a split, without loading its images; raises as `load_images` does."""
    _check(data_set, split)
    return fashion_mnist.FACTS[split] if data_set == "fashion-mnist" else read_facts(_path(data_set), split)


def _path(data_set: str) -> Path:
    return Path(data_set.removeprefix(_NPZ))


def _check(data_set: str, split: str) -> None:
    if data_set != "fashion-mnist" and not data_set.startswith(_NPZ):
        raise HardbitError(f"there is no data set '{data_set}'", where="data.set", remedy=f"known: {set_names()}")
    if split not in ("train", "test"):
        raise HardbitError(f"there is no split '{split}'", where="data", remedy="known: train, test")
