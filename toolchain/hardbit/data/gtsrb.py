"""GTSRB, the German Traffic Sign Recognition Benchmark (Stallkamp, Schlipsing, Salmen, Igel 2012), at 32x32.

The official final training set: 39,209 photographs in 1,307 tracks, each the 30 frames of one drive past one physical
sign, which are near duplicates: a track is a group of `ImageSet.groups`. The official test set: 12,630 photographs of
other signs. Of each photograph the whole image is taken, not the annotated region, and resized to 32x32 by bilinear
interpolation at pixel centres without a low-pass filter (OpenCV's default), whatever its proportions.

The archives are read in memory and never unpacked. Their publisher names no SHA-256: they are held to the MD5 that
those who load the set agree on, which tells damage but would not withstand a forger.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardbit.data.pictures import read_picture, resized
from hardbit.data.published import Arrays, PublishedFile, PublishedSet, verified_bytes
from hardbit_deploy.errors import HardbitError

__all__ = ["CLASS_NAMES", "GTSRB", "TEST_IMAGES", "TEST_LABELS", "TRAINING_IMAGES", "read_test", "read_training"]

_ADDRESS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
TRAINING_IMAGES = PublishedFile(f"{_ADDRESS}GTSRB_Final_Training_Images.zip", "md5:f33fd80ac59bff73c82d25ab499e03a3")
TEST_IMAGES = PublishedFile(f"{_ADDRESS}GTSRB_Final_Test_Images.zip", "md5:c7e4e6327067d32654124b0fe9e82185")
TEST_LABELS = PublishedFile(f"{_ADDRESS}GTSRB_Final_Test_GT.zip", "md5:fe31e9c9270bbcd7b84b7f21a9d9d9e5")

_SIDE = 32
_TRAINING_NAME = re.compile(r"GTSRB/Final_Training/Images/(\d{5})/(\d{5})_(\d{5})\.ppm\Z")
_TEST_NAME = re.compile(r"GTSRB/Final_Test/Images/(\d{5}\.ppm)\Z")
_LABELS_NAME = "GT-final_test.csv"
_TRACKS_OF_A_CLASS = 1000  # more than any class has: one number tells class and track

CLASS_NAMES = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80",
    "end of speed limit 80", "speed limit 100", "speed limit 120", "no overtaking", "no overtaking by lorries",
    "right of way at the next junction", "priority road", "give way", "stop", "no vehicles", "no lorries", "no entry",
    "danger", "bend to the left", "bend to the right", "double bend", "uneven road", "slippery road",
    "road narrows on the right", "road works", "traffic signals", "pedestrians", "children", "bicycles", "ice or snow",
    "wild animals", "end of all limits", "turn right ahead", "turn left ahead", "ahead only", "ahead or right",
    "ahead or left", "keep right", "keep left", "roundabout", "end of no overtaking", "end of no overtaking by lorries",
)  # fmt: skip


def read_training(archive: bytes, where: str) -> Arrays:
    """Images, labels and tracks in the bytes of the training archive, in the order of class, track and frame."""
    with _opened(archive, where) as members:
        found = _matches(members, _TRAINING_NAME)
        images = _pictures(members, [match[0] for match in found], where)
    labels = np.array([int(match[1]) for match in found], np.int64)
    tracks = np.array([int(match[2]) for match in found], np.int64)
    return images, labels, labels * _TRACKS_OF_A_CLASS + tracks


def read_test(archive: bytes, where: str, labels_archive: bytes, labels_where: str) -> Arrays:
    """Images and labels in the bytes of the two test archives, in the order of the file names."""
    with _opened(labels_archive, labels_where) as members:
        classes = _classes_by_file(members, labels_where)
    with _opened(archive, where) as members:
        found = _matches(members, _TEST_NAME)
        unknown = [match[1] for match in found if match[1] not in classes]
        if unknown:
            raise HardbitError(f"{unknown[0]} has no class in {_LABELS_NAME}", where=labels_where, remedy="replace it")
        images = _pictures(members, [match[0] for match in found], where)
    return images, np.array([classes[match[1]] for match in found], np.int64), None


def _opened(content: bytes, where: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise HardbitError(f"this is not a zip archive: {error}", where=where, remedy="replace it") from error


def _matches(members: zipfile.ZipFile, form: re.Pattern[str]) -> list[re.Match[str]]:
    return [match for name in sorted(members.namelist()) if (match := form.match(name))]


def _member(members: zipfile.ZipFile, name: str, where: str) -> bytes:
    try:
        return members.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise HardbitError(f"'{name}' in it cannot be read: {error}", where=where, remedy="replace it") from error


def _pictures(members: zipfile.ZipFile, names: list[str], where: str) -> NDArray[np.uint8]:
    images = np.empty((len(names), 3, _SIDE, _SIDE), np.uint8)
    for image, name in zip(images, names, strict=True):
        picture = read_picture(io.BytesIO(_member(members, name, where)), f"{where}: {name}", channels=3)
        image[:] = resized(picture, _SIDE, _SIDE).transpose(2, 0, 1)
    return images


def _classes_by_file(members: zipfile.ZipFile, where: str) -> Mapping[str, int]:
    text = _member(members, _LABELS_NAME, where).decode("ascii", "replace")
    try:
        return {row["Filename"]: int(row["ClassId"]) for row in csv.DictReader(io.StringIO(text), delimiter=";")}
    except (KeyError, TypeError, ValueError) as error:
        raise HardbitError(
            f"{_LABELS_NAME} in it does not give every Filename its ClassId", where=where, remedy="replace it"
        ) from error


def _read(folder: Path, split: str, files: tuple[PublishedFile, ...]) -> Arrays:
    archives = [(verified_bytes(folder, file), str(folder / file.name)) for file in files]
    return read_training(*archives[0]) if split == "train" else read_test(*archives[0], *archives[1])


GTSRB = PublishedSet(
    name="gtsrb",
    title="GTSRB",
    shape=(3, _SIDE, _SIDE),
    class_names=CLASS_NAMES,
    counts={"train": 39_209, "test": 12_630},
    files={"train": (TRAINING_IMAGES,), "test": (TEST_IMAGES, TEST_LABELS)},
    read=_read,
    npz="gtsrb32.npz",
)
