"""Files that a user names for results: refused before the work is done, where they cannot be written after it."""

from __future__ import annotations

from pathlib import Path

from hardbit_deploy.errors import HardbitError

__all__ = ["output_file"]


def output_file(name: str) -> Path:
    """The path `name`. Raises HardbitError where it is a folder, or would lie in a folder that does not exist."""
    path = Path(name)
    if path.is_dir():
        raise HardbitError("this is a folder", where=name, remedy="name a file")
    if not path.parent.is_dir():
        raise HardbitError("there is no such folder", where=str(path.parent), remedy="make it first")
    return path
