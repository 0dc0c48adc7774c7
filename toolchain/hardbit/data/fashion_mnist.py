"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT licence): found on this machine or downloaded, always verified.

Digests of two kinds are held. `IDX_SHA256` is of the unpacked content, which every source must match: Debian's files
carry another gzip header than Zalando's and the same content. `GZIP_SHA256` is of Zalando's files as published, which a
download must match before it is kept.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from hardbit.data.idx import parse_idx
from hardbit.data.image_set import ImageFacts, ImageSet
from hardbit_deploy.errors import HardbitError

__all__ = ["CLASS_NAMES", "FACTS", "cached", "find", "load"]

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FACTS = {
    split: ImageFacts((1, 28, 28), count, len(CLASS_NAMES)) for split, count in (("train", 60_000), ("test", 10_000))
}
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_FILES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
          "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}  # fmt: skip
IDX_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
GZIP_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_LARGEST_IDX_BYTES = 16 + 60_000 * 28 * 28


def load(split: str) -> ImageSet:
    """The `train` (60,000) or `test` (10,000) split, from the first of the three sources that has it.

    Raises HardbitError if none has, or if what it has is not Fashion-MNIST.
    """
    folder = find()
    if folder is None:
        folder = _download(_FILES[split])
    images_file, labels_file = (folder / name for name in _FILES[split])
    images = parse_idx(_unpack(images_file), str(images_file))
    labels = parse_idx(_unpack(labels_file), str(labels_file))
    source = f"Fashion-MNIST {split} ({folder})"
    return ImageSet(images[:, np.newaxis], labels.astype(np.int64), CLASS_NAMES, source)


def find() -> Path | None:
    """The folder on this machine that holds all four files: `$HARDBIT_DATA`, then Debian's package; None if neither.

    Raises HardbitError when `$HARDBIT_DATA` names a folder that does not exist or holds only some of the files.
    """
    named = os.environ.get("HARDBIT_DATA")
    if named:
        if not Path(named).is_dir():
            raise HardbitError(
                "this folder does not exist", where=f"HARDBIT_DATA={named}", remedy="mend or unset HARDBIT_DATA"
            )
        for folder in (Path(named), Path(named) / "fashion-mnist"):
            missing = [name for name in IDX_SHA256 if not (folder / name).is_file()]
            if not missing:
                return folder
            if len(missing) < len(IDX_SHA256):
                raise HardbitError(f"{', '.join(missing)} missing", where=str(folder), remedy="complete the folder")
    if all((DEBIAN_FOLDER / name).is_file() for name in IDX_SHA256):
        return DEBIAN_FOLDER
    return None


def cached() -> Path | None:
    """The folder of earlier downloads, if all four files are there."""
    folder = _cache()
    return folder if all((folder / name).is_file() for name in IDX_SHA256) else None


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("hardbit")) / "fashion-mnist"


def _unpack(file: Path) -> bytes:
    try:
        with gzip.open(file) as stream:
            content = stream.read(_LARGEST_IDX_BYTES + 1)  # a gzip bomb stops here
    except (OSError, EOFError, zlib.error) as error:
        raise HardbitError(f"this file cannot be unpacked: {error}", where=str(file), remedy="replace it") from error
    if hashlib.sha256(content).hexdigest() != IDX_SHA256[file.name]:
        raise HardbitError(
            f"the SHA-256 of its unpacked content is not that of Fashion-MNIST's {file.name}",
            where=str(file),
            remedy="replace it by the original",
        )
    return content


def _download(names: tuple[str, ...]) -> Path:
    import pooch

    cache = _cache()
    try:
        for name in names:
            pooch.retrieve(URL + name, known_hash=f"sha256:{GZIP_SHA256[name]}", fname=name, path=cache)
    except Exception as error:  # every downloader of pooch raises its own kinds
        named = os.environ.get("HARDBIT_DATA")
        places = f"neither in HARDBIT_DATA={named} nor elsewhere on this machine" if named else "not on this machine"
        raise HardbitError(
            f"Fashion-MNIST is {places}, and downloading it failed ({_root_cause(error)})",
            where="data.set = fashion-mnist",
            remedy=(
                f"one of three ways brings it: put its four .gz files into a folder and set HARDBIT_DATA to that; "
                f"'apt-get install dataset-fashion-mnist' (Debian, Ubuntu: {DEBIAN_FOLDER}); "
                f"or let this machine reach {URL}"
            ),
        ) from error
    return cache


def _root_cause(error: BaseException) -> str:
    """The innermost of the errors that led to this one, on one line: what a network library wraps says little."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split())[:160] or type(error).__name__
