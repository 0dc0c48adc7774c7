"""Image sets that somebody publishes: found on this machine or downloaded, and verified whenever they are read.

A set is looked for in `$HARDBIT_DATA` and its subfolder of the set's name, then where a package of the system puts it,
then in the cache of downloads, which the publisher's address fills. In each place a file `NAME.npz` in the form of
`hardbit.data.npz` may stand for the published files, also one that holds only a part of them: no checksum is published
for a part, so it is taken at its word, and `source` says how much of the set it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardbit.data.image_set import ImageFacts, ImageSet
from hardbit.data.npz import read_facts, read_npz
from hardbit_deploy.errors import HardbitError

__all__ = ["Arrays", "PublishedFile", "PublishedSet", "Reader", "verified_bytes"]

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64] | None]
"""Images (n, channels, height, width), labels (n,), groups (n,) or None."""


@dataclass(frozen=True)
class PublishedFile:
    """A file as published: its address, and its digest as `sha256:...`, or `md5:...` where only that is published."""

    url: str
    digest: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


Reader = Callable[[Path, str, tuple[PublishedFile, ...]], Arrays]
"""A folder, a split, and the split's files, which lie in that folder -> verified images, labels and groups."""


@dataclass(frozen=True)
class PublishedSet:
    """One set: `files` by split, and `read`, which makes a split's arrays of them.

    `npz` names the file that may stand for the published ones, `package` the system's package that has them, in
    `system_folder`.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    counts: dict[str, int]
    files: dict[str, tuple[PublishedFile, ...]]
    read: Reader
    npz: str
    package: str = ""
    system_folder: Path | None = None

    def load(self, split: str) -> ImageSet:
        """The `train` or `test` split, from the first place that has it.

        Raises HardbitError if none has, or if what it has is not this set.
        """
        place = self.find() or self.cached(split) or self._download(split)
        if place.is_file():
            return self._load_npz(place, split)
        images, labels, groups = self.read(place, split, self.files[split])
        if len(images) != self.counts[split]:
            raise HardbitError(
                f"it holds {len(images):,} images, {self.title}'s {split} split has {self.counts[split]:,}",
                where=str(place),
                remedy="replace the files by the originals",
            )
        return ImageSet(images, labels, self.class_names, f"{self.title} {split}, as published", groups)

    def facts(self, split: str) -> ImageFacts:
        """Shape, count and classes of a split as `load` would give it; of the published one where nothing is found."""
        file = self.file(split)
        if file is not None:
            return self._npz_facts(file, split)
        return ImageFacts(self.shape, self.counts[split], len(self.class_names))

    def file(self, split: str) -> Path | None:
        """The .npz that `load` would take for a split, if it is that."""
        try:
            place = self.find() or self.cached(split)
        except HardbitError:  # `load` will say it, if ever these images are needed
            return None
        return place if place is not None and place.is_file() else None

    def find(self) -> Path | None:
        """The folder that holds all published files, or the .npz, on this machine; None if neither is there.

        Raises HardbitError when `$HARDBIT_DATA` names a folder that does not exist or holds only some of the files.
        """
        names = self._file_names()
        for folder in self._named_folders():
            missing = [name for name in names if not (folder / name).is_file()]
            if not missing:
                return folder
            if (folder / self.npz).is_file():
                return folder / self.npz
            if len(missing) < len(names):
                raise HardbitError(f"{', '.join(missing)} missing", where=str(folder), remedy="complete the folder")
        system = self.system_folder
        if system is not None and all((system / name).is_file() for name in names):
            return system
        return None

    def cached(self, split: str | None = None) -> Path | None:
        """The folder of earlier downloads, if the files of `split` (of all splits for None) are there, or an .npz."""
        folder = _cache(self.name)
        if all((folder / name).is_file() for name in self._file_names(split)):
            return folder
        return folder / self.npz if (folder / self.npz).is_file() else None

    def _file_names(self, split: str | None = None) -> list[str]:
        files = [file for key, files in self.files.items() if split in (None, key) for file in files]
        return list(dict.fromkeys(file.name for file in files))

    def _named_folders(self) -> tuple[Path, ...]:
        named = os.environ.get("HARDBIT_DATA")
        if not named:
            return ()
        if not Path(named).is_dir():
            raise HardbitError(
                "this folder does not exist", where=f"HARDBIT_DATA={named}", remedy="mend or unset HARDBIT_DATA"
            )
        return Path(named) / self.name, Path(named)

    def _load_npz(self, file: Path, split: str) -> ImageSet:
        self._npz_facts(file, split)
        held = []
        for each, kind in (("train", "official training images"), ("test", "official test images")):
            try:
                count = read_facts(file, each).count
            except HardbitError:
                count = 0
            held.append(f"{count:,} of {self.counts[each]:,} {kind}")
        source = f"{self.title} {split}: {', '.join(held)} ({file.name})"
        return replace(read_npz(file, split), class_names=self.class_names, source=source)

    def _npz_facts(self, file: Path, split: str) -> ImageFacts:
        facts = read_facts(file, split)
        fits = facts.shape == self.shape and facts.classes <= len(self.class_names)
        if not fits or facts.count > self.counts[split]:
            raise HardbitError(
                f"{facts.count:,} images {facts.shape} of {facts.classes} classes are no part of {self.title}'s "
                f"{split} split: {self.counts[split]:,} images {self.shape} of {len(self.class_names)} classes",
                where=str(file),
                remedy="mend or remove it",
            )
        return ImageFacts(facts.shape, facts.count, len(self.class_names))

    def _download(self, split: str) -> Path:
        import pooch

        cache = _cache(self.name)
        try:
            for file in self.files[split]:
                pooch.retrieve(file.url, known_hash=file.digest, fname=file.name, path=cache)
        except Exception as error:  # every downloader of pooch raises its own kinds
            named = os.environ.get("HARDBIT_DATA")
            places = (
                f"neither in HARDBIT_DATA={named} nor elsewhere on this machine" if named else "not on this machine"
            )
            raise HardbitError(
                f"{self.title} is {places}, and downloading it failed ({_root_cause(error)})",
                where=f"data.set = {self.name}",
                remedy=self.ways(),
            ) from error
        return cache

    def ways(self) -> str:
        """What brings the set to this machine, in words."""
        addresses = dict.fromkeys(file.url.rpartition("/")[0] for files in self.files.values() for file in files)
        ways = [f"put {', '.join(self._file_names())} or {self.npz} into a folder and set HARDBIT_DATA to that"]
        if self.package:
            ways.append(f"'apt-get install {self.package}' (Debian, Ubuntu: {self.system_folder})")
        ways.append(f"let this machine reach {' and '.join(f'{address}/' for address in addresses)}")
        return f"one of these brings it: {'; '.join(ways[:-1])}; or {ways[-1]}"


def verified_bytes(folder: Path, file: PublishedFile) -> bytes:
    """The content of a published file in `folder`. Raises HardbitError where its digest is not the published one."""
    path = folder / file.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HardbitError(f"this file cannot be read: {error.strerror}", where=str(path)) from error
    kind, _, digest = file.digest.partition(":")
    if hashlib.new(kind, content, usedforsecurity=False).hexdigest() != digest:
        raise HardbitError(
            f"its {kind.upper()} is not the published one of {file.name}",
            where=str(path),
            remedy=f"replace it by the original: {file.url}",
        )
    return content


def _cache(name: str) -> Path:
    import pooch

    return Path(pooch.os_cache("hardbit")) / name


def _root_cause(error: BaseException) -> str:
    """The innermost of the errors that led to this one, on one line: what a network library wraps says little."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split())[:160] or type(error).__name__
