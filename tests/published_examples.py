"""What stands in for publishers in these tests: no set on this machine, no network, archives of a few images."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hardbit.data.load import PUBLISHED
from hardbit.data.published import PublishedSet


def leave_no_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment variable, no package, an empty cache, no network: a test adds back what it is about."""
    monkeypatch.delenv("HARDBIT_DATA", raising=False)
    for name, data_set in PUBLISHED.items():
        monkeypatch.setitem(PUBLISHED, name, replace(data_set, system_folder=tmp_path / "not-installed"))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("HTTPConnectionPool: Max retries exceeded") from ConnectionError("Name or service not known")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", unreachable)


def serve(monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]) -> list[str]:
    """Let the publisher's addresses answer with `contents`; returns the addresses as they are asked for."""
    asked: list[str] = []

    def answer(self: object, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        asked.append(url)
        Path(output_file).write_bytes(contents[url.rpartition("/")[2]])

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", answer)
    return asked


def digest(kind: str, content: bytes) -> str:
    return f"{kind}:{hashlib.new(kind, content).hexdigest()}"


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def picture(pixels: NDArray[np.uint8], kind: str = "PPM") -> bytes:
    """A file of `pixels` (height, width[, 3])."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


Publish = Callable[[PublishedSet, dict[str, bytes]], None]


def published_as(data_set: PublishedSet, contents: dict[str, bytes]) -> PublishedSet:
    """The set with the digests of `contents` in place of the publisher's."""
    files = {
        split: tuple(replace(file, digest=digest(file.digest.partition(":")[0], contents[file.name])) for file in files)
        for split, files in data_set.files.items()
    }
    return replace(data_set, files=files)
