"""Image sets as class folders, the way ImageNet lies on a disk: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg, or
`val` for `test`.

Classes are the names of the subfolders of `train`, sorted; pictures are PNG, JPEG and other files that Pillow reads by
their suffix, whatever their size. Each is scaled until it just covers the network's input, and the middle is cut out
(`hardbit.data.pictures.covering`). They come in an order that mixes the classes and is the same on every machine: that
of the SHA-256 of their paths below DIR, so that the first n are a sample of all.

Boundary: all images of a split are held in memory as bytes, and a split that does not fit is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardbit.data.image_set import ImageFacts, ImageSet
from hardbit.data.pictures import covering, read_picture
from hardbit_deploy.errors import HardbitError

__all__ = ["SUFFIXES", "folder_digest", "folder_facts", "read_folder"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}


@dataclass(frozen=True)
class _Listing:
    """The files of a split in the set's order, their labels, and the names of the classes."""

    files: list[Path]
    labels: list[int]
    class_names: tuple[str, ...]


def read_folder(folder: Path, split: str, shape: tuple[int, int, int], limit: int | None = None) -> ImageSet:
    """The first `limit` images (all for None) of `split`, as bytes of `shape` (channels, height, width).

    Raises HardbitError for a folder without that split, a class without pictures, a class that was not trained on, a
    picture that cannot be read, and more images than the memory of this machine takes.
    """
    listing = _list(folder, split)
    count = len(listing.files)
    if limit is not None and not 0 < limit <= count:
        raise HardbitError(
            f"{limit} images are asked for, there are {count}", where=str(folder), remedy=f"ask for 1 to {count}"
        )
    files = listing.files[:limit]
    images = _room_for(len(files), shape, folder)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # Pillow decodes outside the interpreter's lock
        for image, pixels in zip(images, threads.map(lambda file: _pixels(file, shape), files), strict=True):
            image[:] = pixels
    channels, height, width = shape
    colours = "RGB" if channels == 3 else "grey"
    source = f"{folder.name} {split}: {count:,} pictures, each cut to {width}x{height} in {colours}"
    return ImageSet(images, np.array(listing.labels[:limit], np.int64), listing.class_names, source)


def folder_facts(folder: Path, split: str, shape: tuple[int, int, int]) -> ImageFacts:
    """What `read_folder` would give, from the names of the files alone."""
    listing = _list(folder, split)
    return ImageFacts(shape, len(listing.files), len(listing.class_names))


def folder_digest(folder: Path) -> str:
    """SHA-256 over name, size and time of change of every picture: another digest where a picture may be another."""
    digest = hashlib.sha256()
    for names in _SPLIT_FOLDERS.values():
        for file in sorted(file for name in names for file in (folder / name).glob("*/*")):
            status = file.stat()
            digest.update(f"{file.relative_to(folder)}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _list(folder: Path, split: str) -> _Listing:
    place = _split_folder(folder, split)
    trained = folder / "train"
    names = _subfolders(trained if trained.is_dir() else place)
    unknown = sorted(set(_subfolders(place)) - set(names))
    if unknown:
        raise HardbitError(
            f"class '{unknown[0]}' of {place.name} is not in train", where=str(place), remedy="classes are train's"
        )
    found = [(file, label) for label, name in enumerate(names) for file in _pictures(place / name, place == trained)]
    found.sort(key=lambda pair: hashlib.sha256(pair[0].relative_to(folder).as_posix().encode()).digest())
    if not found:
        raise HardbitError("there are no pictures in it", where=str(place), remedy=f"known are {', '.join(SUFFIXES)}")
    return _Listing([file for file, _ in found], [label for _, label in found], tuple(names))


def _split_folder(folder: Path, split: str) -> Path:
    for name in _SPLIT_FOLDERS[split]:
        if (folder / name).is_dir():
            return folder / name
    wanted = " or ".join(_SPLIT_FOLDERS[split])
    raise HardbitError(
        "there is no such folder" if not folder.is_dir() else f"there is no folder '{wanted}' in it",
        where=str(folder),
        remedy=f"{split} images lie in {wanted}/CLASS/",
    )


def _subfolders(place: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise HardbitError("there is no folder of a class in it", where=str(place), remedy="lay images into CLASS/")
    return names


def _pictures(place: Path, required: bool) -> Iterator[Path]:
    """The picture files of one class; none only where `required` is False."""
    if not place.is_dir():
        return
    found = False
    for entry in os.scandir(place):
        if not entry.name.startswith(".") and Path(entry.name).suffix.lower() in SUFFIXES:
            found = True
            yield Path(entry.path)
    if required and not found:
        raise HardbitError(
            "this class has no pictures", where=str(place), remedy=f"remove it, or add some: {', '.join(SUFFIXES)}"
        )


def _room_for(count: int, shape: tuple[int, int, int], folder: Path) -> NDArray[np.uint8]:
    needed = count * int(np.prod(shape))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise HardbitError(
            f"{count:,} images of {list(shape)} take {needed / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB",
            where=str(folder),
            remedy="choose a smaller input_shape, or train on a part of them",
        )
    return np.empty((count, *shape), np.uint8)


def _pixels(file: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    channels, height, width = shape
    try:
        with file.open("rb") as stream:
            picture = read_picture(stream, str(file), channels)
    except OSError as error:
        raise HardbitError(f"this picture cannot be read: {error.strerror}", where=str(file)) from error
    pixels = covering(picture, height, width)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)
