"""Measured chunks on disk, so that an evaluation that was killed goes on where it was.

Boundary: stores and checks arrays; does not know what they mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardbit_deploy.chunk import Measurements
from hardbit_deploy.storage import refused_by_system, write_atomically

__all__ = ["ChunkStore", "forget_chunks"]

_FOLDER_NAME = re.compile("[0-9a-f]{16}")


class ChunkStore:
    """One folder for one evaluation: what decides its results is in the folder's name and in every file."""

    def __init__(self, work_dir: Path, decides: Mapping[str, Any]) -> None:
        text = json.dumps(decides, sort_keys=True, allow_nan=False)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = work_dir / self.key[:16]
        with _written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, first: int, count: int, measured: Measurements) -> None:
        """Write the measurements of images `first` to `first + count - 1`, whole or not at all."""
        stream = io.BytesIO()
        # numpy before 2.1 would take allow_pickle for one more array: there is nothing to pickle in these.
        np.savez(stream, **{"key": np.array(self.key)}, **measured)  # type: ignore[arg-type]
        content = stream.getvalue()
        with _written(self.folder):
            write_atomically(self._path(first, count), hashlib.sha256(content).digest() + content)

    def load(self, first: int, count: int) -> Measurements | None:
        """What was saved; None where nothing was, or where it is damaged or belongs to another evaluation."""
        try:
            content = self._path(first, count).read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                return None
            with np.load(io.BytesIO(content[32:]), allow_pickle=False) as archive:
                measured = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        if str(measured.pop("key", "")) != self.key or len(measured.get("index", ())) != count:
            return None
        return measured

    def _path(self, first: int, count: int) -> Path:
        return self.folder / f"images-{first:08d}-{first + count:08d}.npz.sha256"


def forget_chunks(work_dir: Path) -> None:
    """Remove the chunks of every evaluation in `work_dir`, and the folder too unless something else lies in it."""
    folders = list(work_dir.iterdir()) if work_dir.is_dir() else []
    for folder in folders:
        if _FOLDER_NAME.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        work_dir.rmdir()


def _written(folder: Path) -> contextlib.AbstractContextManager[None]:
    return refused_by_system("measurements cannot be kept", folder, "make room, then the same command goes on")
