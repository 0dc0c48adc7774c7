"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html), from the archive for C programs.

The archive for Python holds pickles, which run code when they are read; this one holds bytes: records of one label and
3,072 pixels, red, green and blue planes of 32x32. It is read in memory and never unpacked. The split is the official
one: five files of 10,000 to train on, one to test.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from hardbit.data.published import Arrays, PublishedFile, PublishedSet, verified_bytes
from hardbit_deploy.errors import HardbitError

__all__ = ["ARCHIVE", "CIFAR10", "read_archive"]

ARCHIVE = PublishedFile(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_BATCHES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
_RECORD_BYTES = 1 + 3 * 32 * 32


def read_archive(content: bytes, split: str, where: str) -> Arrays:
    """The images of `split` in the bytes of the archive."""
    batches = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for name in _BATCHES[split]:
                stream = archive.extractfile(f"cifar-10-batches-bin/{name}")
                batches.append(stream.read() if stream is not None else b"")
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise HardbitError(f"this archive cannot be read: {error}", where=where, remedy="replace it") from error
    for name, batch in zip(_BATCHES[split], batches, strict=True):
        if not batch or len(batch) % _RECORD_BYTES:
            raise HardbitError(f"{name} in it does not hold whole images", where=where, remedy="replace it")
    table = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, _RECORD_BYTES)
    return np.ascontiguousarray(table[:, 1:]).reshape(-1, 3, 32, 32), table[:, 0].astype(np.int64), None


def _read(folder: Path, split: str, files: tuple[PublishedFile, ...]) -> Arrays:
    (archive,) = files
    return read_archive(verified_bytes(folder, archive), split, str(folder / archive.name))


CIFAR10 = PublishedSet(
    name="cifar10",
    title="CIFAR-10",
    shape=(3, 32, 32),
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    counts={"train": 50_000, "test": 10_000},
    files={"train": (ARCHIVE,), "test": (ARCHIVE,)},
    read=_read,
    npz="cifar10.npz",
)
