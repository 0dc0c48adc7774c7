"""A data set's name in a recipe -> its images."""

from __future__ import annotations

from pathlib import Path

from hardbit.data.cifar10 import CIFAR10
from hardbit.data.fashion_mnist import FASHION_MNIST
from hardbit.data.folder import folder_digest, folder_facts, read_folder
from hardbit.data.gtsrb import GTSRB
from hardbit.data.image_set import ImageFacts, ImageSet
from hardbit.data.mnist import MNIST
from hardbit.data.npz import read_facts, read_npz
from hardbit.data.published import PublishedSet
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file

__all__ = ["PUBLISHED", "data_fingerprint", "image_facts", "load_images", "set_names"]

PUBLISHED: dict[str, PublishedSet] = {each.name: each for each in (MNIST, FASHION_MNIST, CIFAR10, GTSRB)}

Shape = tuple[int, int, int]


def set_names() -> list[str]:
    """What may be written as the name of a set; `npz:FILE` stands for any file in the form of `hardbit.data.npz`,
    `folder:DIR` for any folder in that of `hardbit.data.folder`."""
    return [*PUBLISHED, "npz:FILE", "folder:DIR"]


def load_images(data_set: str, split: str, limit: int | None = None, shape: Shape | None = None) -> ImageSet:
    """The first `limit` images (all for None) of the split `train` or `test` of a set, in the set's own order.

    `data_set` is one of `PUBLISHED`, or `npz:FILE` or `folder:DIR` with a path relative to the working folder. Pictures
    of a folder are cut to `shape` (channels, height, width); the other sets have a shape of their own.
    Raises HardbitError for an unknown set or split, and where the images are missing, damaged or too few.
    """
    path = _check(data_set, split)
    if data_set in PUBLISHED:
        return PUBLISHED[data_set].load(split).first(limit)
    if data_set.startswith("npz:"):
        return read_npz(path, split).first(limit)
    return read_folder(path, split, _given(shape, data_set), limit)


def image_facts(data_set: str, split: str, shape: Shape | None = None) -> ImageFacts:
    """Shape, count and classes of a split, without loading its images; raises as `load_images` does."""
    path = _check(data_set, split)
    if data_set in PUBLISHED:
        return PUBLISHED[data_set].facts(split)
    if data_set.startswith("npz:"):
        return read_facts(path, split)
    return folder_facts(path, split, _given(shape, data_set))


def data_fingerprint(data_set: str, split: str) -> str:
    """Another text when the images of a split on this machine may be others: the SHA-256 of the file that holds them,
    for a folder that of its listing; for a set that is verified whenever it is read, and for a missing one, the name.
    """
    kind, _, place = data_set.partition(":")
    found = PUBLISHED[kind].file(split) if kind in PUBLISHED else Path(place)
    if found is not None and found.is_file():
        return sha256_file(found)
    return folder_digest(found) if kind == "folder" and found is not None and found.is_dir() else kind


def _check(data_set: str, split: str) -> Path:
    """The path in the name of a set, if it has one."""
    kind, separator, place = data_set.partition(":")
    if data_set not in PUBLISHED and not (kind in ("npz", "folder") and separator):
        raise HardbitError(f"there is no data set '{data_set}'", where="data.set", remedy=f"known: {set_names()}")
    if split not in ("train", "test"):
        raise HardbitError(f"there is no split '{split}'", where="data", remedy="known: train, test")
    return Path(place)


def _given(shape: Shape | None, data_set: str) -> Shape:
    if shape is None:
        raise HardbitError(
            "pictures in folders have sizes of their own", where=data_set, remedy="say which shape they are cut to"
        )
    return shape
