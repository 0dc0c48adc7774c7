"""Image sets in NumPy's .npz, read without pickle.

A file holds either one split, as arrays `images` and `labels`, or several, as `x_<split>` and `y_<split>` (`x_train`,
`y_train`, `x_test`, `y_test`). Images are uint8 of shape (n, channels, height, width), (n, height, width, channels) or
(n, height, width); channels are 1 or 3, and a shape that could be read both ways is read channels first. Labels are
integers (n,). Optional texts: `class_names` (classes,), `split` (which split the one split is; `test` if absent) and
`provenance` (whose images these are). Optional integers (n,): `track_<split>`, equal for images of one object or one
recording, which no validation split parts.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardbit.data.image_set import ImageFacts, ImageSet
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import write_atomically

__all__ = ["read_facts", "read_npz", "write_npz"]

_CHANNELS = (1, 3)


def read_npz(file: Path, split: str) -> ImageSet:
    """The images of `split` in `file`. Raises HardbitError if the file lacks them or breaks the form above."""
    with _open(file) as archive:
        images_name, labels_name = _array_names(archive, file, split)
        images = _channels_first(_array(archive, images_name, file), file, images_name)
        labels = _integers(archive, labels_name, file)
        names = _class_names(archive, labels, file)
        tracks = f"track_{split}"
        groups = _integers(archive, tracks, file) if tracks in archive else None
        provenance = _text(archive, "provenance", file)
    source = f"{file.name} {split}" + (f": {provenance}" if provenance else "")
    return ImageSet(np.ascontiguousarray(images), labels, names, source, groups)


def read_facts(file: Path, split: str) -> ImageFacts:
    """Shape, count and classes of `split`: of its images, the header of their array alone is read."""
    with _open(file) as archive:
        name, labels_name = _array_names(archive, file, split)
        classes = len(_class_names(archive, _integers(archive, labels_name, file), file))
        try:
            with zipfile.ZipFile(file) as members, members.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, _ = read(stream)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise HardbitError(f"'{name}' cannot be read: {error}", where=str(file)) from error
    order = _axes(shape, file, name)
    padded = (*shape, 1) if len(shape) == 3 else shape
    count, channels, height, width = (padded[axis] for axis in order)
    return ImageFacts((channels, height, width), count, classes)


def write_npz(file: Path, images: ImageSet, split: str, provenance: str) -> None:
    """Write one split, compressed, in the form that `read_npz` reads; the same images give the same bytes."""
    arrays = {
        "images": images.images,
        "labels": images.labels.astype(np.min_scalar_type(int(images.labels.max()))),
        "class_names": np.array(images.class_names),
        "split": np.array(split),
        "provenance": np.array(provenance),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: np.savez would write the time of day into the file
            member.compress_type = zipfile.ZIP_DEFLATED
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(member, content.getvalue())
    write_atomically(file, buffer.getvalue())


def _open(file: Path) -> np.lib.npyio.NpzFile:
    if not file.is_file():
        raise HardbitError("there is no such file", where=str(file))
    try:
        archive = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise HardbitError(f"this is not an .npz file: {error}", where=str(file)) from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise HardbitError("this holds a single array, an .npz file holds named ones", where=str(file))
    return archive


def _array_names(archive: np.lib.npyio.NpzFile, file: Path, split: str) -> tuple[str, str]:
    if f"x_{split}" in archive and f"y_{split}" in archive:
        return f"x_{split}", f"y_{split}"
    if "images" in archive and "labels" in archive:
        held = _text(archive, "split", file) or "test"
        if held == split:
            return "images", "labels"
        raise HardbitError(
            f"this file holds the '{held}' split, '{split}' is asked for",
            where=str(file),
            remedy=f"add arrays 'x_{split}' and 'y_{split}'",
        )
    raise HardbitError(
        f"the split '{split}' is not in it: arrays are {', '.join(sorted(archive.files)) or 'none'}",
        where=str(file),
        remedy=f"name them 'x_{split}' and 'y_{split}', or 'images' and 'labels'",
    )


def _array(archive: np.lib.npyio.NpzFile, name: str, file: Path) -> NDArray[np.generic]:
    try:
        return np.asarray(archive[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:  # ValueError: it would need pickle
        raise HardbitError(f"'{name}' cannot be read: {error}", where=str(file)) from error


def _integers(archive: np.lib.npyio.NpzFile, name: str, file: Path) -> NDArray[np.int64]:
    """Labels or tracks."""
    numbers = _array(archive, name, file)
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.ndim != 1 or not numbers.size:
        kind = "tracks" if name.startswith("track_") else "labels"
        raise HardbitError(
            f"'{name}' is {numbers.dtype} {numbers.shape}, {kind} are integers of shape (n,)", where=str(file)
        )
    return numbers.astype(np.int64)


def _class_names(archive: np.lib.npyio.NpzFile, labels: NDArray[np.int64], file: Path) -> tuple[str, ...]:
    """The names that the file gives, or the numbers from 0 to the largest label."""
    if "class_names" in archive:
        return tuple(str(name) for name in np.atleast_1d(_array(archive, "class_names", file)))
    return tuple(str(number) for number in range(int(labels.max()) + 1))


def _text(archive: np.lib.npyio.NpzFile, name: str, file: Path) -> str:
    return str(_array(archive, name, file)) if name in archive else ""


def _channels_first(images: NDArray[np.generic], file: Path, name: str) -> NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise HardbitError(
            f"'{name}' is {images.dtype}, images are uint8", where=str(file), remedy="store the bytes of the camera"
        )
    order = _axes(images.shape, file, name)
    return np.transpose(images[..., np.newaxis] if images.ndim == 3 else images, order)


def _axes(shape: tuple[int, ...], file: Path, name: str) -> tuple[int, int, int, int]:
    """The axes of a (padded to four) `shape` that are batch, channels, height and width."""
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return 0, 1, 2, 3
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in _CHANNELS):
        return 0, 3, 1, 2
    raise HardbitError(
        f"'{name}' has shape {shape}",
        where=str(file),
        remedy="shapes are (n, channels, height, width), (n, height, width, channels) with 1 or 3 channels, or "
        "(n, height, width)",
    )
