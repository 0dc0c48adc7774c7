"""MNIST (LeCun, Cortes, Burges), and the form of its four files, which Fashion-MNIST took over.

Both digests, of the files as published and of their unpacked content, are those that the many who mirror the set agree
on; the first address is the mirror of the Common Visual Data Foundation, since LeCun's own no longer answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hardbit.data.idx import read_idx
from hardbit.data.published import Arrays, PublishedFile, PublishedSet, Reader

__all__ = ["GZIP_SHA256", "IDX_SHA256", "MNIST", "idx_files", "idx_reader"]

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_LARGEST_IDX_BYTES = 16 + 60_000 * 28 * 28


def idx_files(address: str, sha256: Mapping[str, str]) -> dict[str, tuple[PublishedFile, ...]]:
    """Images and labels by split, below `address`, with the digests of the files as published."""
    return {
        split: tuple(PublishedFile(address + name, f"sha256:{sha256[name]}") for name in names)
        for split, names in _FILES.items()
    }


def idx_reader(title: str, idx_sha256: Mapping[str, str]) -> Reader:
    """What reads a split of a set in this form; `idx_sha256` are the digests of the unpacked files."""

    def read(folder: Path, split: str, files: tuple[PublishedFile, ...]) -> Arrays:
        names = [file.name for file in files]
        images, labels = (read_idx(folder / n, idx_sha256[n], _LARGEST_IDX_BYTES, title) for n in names)
        return images[:, np.newaxis], labels.astype(np.int64), None

    return read


IDX_SHA256 = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
GZIP_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

MNIST = PublishedSet(
    name="mnist",
    title="MNIST",
    shape=(1, 28, 28),
    class_names=tuple("0123456789"),
    counts={"train": 60_000, "test": 10_000},
    files=idx_files("https://storage.googleapis.com/cvdf-datasets/mnist/", GZIP_SHA256),
    read=idx_reader("MNIST", IDX_SHA256),
    npz="mnist.npz",
)
