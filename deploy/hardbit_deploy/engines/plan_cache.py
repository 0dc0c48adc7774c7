"""Built plans on disk, each under a key of all that it depends on.

A plan is native code for one device, driver and runtime, and builds differ from one to the next. So the plan that was
tested is kept and used again; where anything of its key is another, a plan of its own is built beside it. A plan is
executable content: the folder must belong to the user and let nobody else write, and a plan from elsewhere is taken
only where its file is named, and only if its key is the one wanted.

Boundary: stores and compares; knows no runtime and builds nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hardbit_deploy.engines.tensorrt_build import BuiltPlan
from hardbit_deploy.engines.tensorrt_layers import LayerRow
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import refused_by_system, replace_directory

__all__ = ["PlanKey", "StoredPlan", "default_folder", "named_plan", "plan_for"]

_FORMAT = 1
_PLAN, _ENTRY, _TIMINGS, _LOG = "plan.engine", "entry.json", "timing.cache", "build.log"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class PlanKey:
    """What a plan depends on. `versions` are of the runtime, `settings` those of the build as plain JSON values, and
    `digests` the SHA-256 of the graph and of whatever else of the bundle has a say.
    """

    device: str
    compute_capability: str
    driver: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    digests: Mapping[str, str]

    def to_document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dict(json.loads(json.dumps(asdict(self))))

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, hexadecimal: the name of the plan's folder."""
        return hashlib.sha256(json.dumps(self.to_document(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StoredPlan:
    """A plan as it lies on disk. `rebuilt_because` is empty where it was found, else why it had to be built."""

    plan: bytes
    layers: tuple[LayerRow, ...]
    plan_sha256: str
    path: Path
    timing_cache: bytes = b""
    rebuilt_because: str = ""


class _UnusableError(Exception):
    """Why a stored plan cannot be used; the text is for people."""


def default_folder() -> Path:
    """`hardbit/plans` in the user's folder for caches (XDG Base Directory Specification); raises HardbitError where
    the user has no home.
    """
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise HardbitError("there is no home to keep plans in", "XDG_CACHE_HOME", "set it to a folder") from error
    return Path(cache) / "hardbit" / "plans"


def plan_for(folder: Path, key: PlanKey, build: Callable[[], BuiltPlan]) -> StoredPlan:
    """The plan of `key` in `folder`, built and stored first where there is none, or one that is damaged or foreign.

    Raises HardbitError where the folder cannot be written or others may write to it, and whatever `build` raises.
    """
    path = folder / key.digest
    with refused_by_system("plans cannot be kept", folder, "look at its permissions and its disk"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(folder)
        try:
            return _read(path, key)
        except _UnusableError as reason:
            because = str(reason)
    built = build()
    with refused_by_system("the plan cannot be stored", folder, "look at its permissions and its disk"):
        _write(path, key, built)
    return StoredPlan(built.plan, built.layers, built.digests["plan"], path, built.timing_cache, because)


def named_plan(path: Path, key: PlanKey) -> StoredPlan:
    """The plan in the folder `path`, which the user has named; raises HardbitError with all that is another in it."""
    with refused_by_system("the plan cannot be read", path, "look at its permissions"):
        try:
            return _read(path, key)
        except _UnusableError as reason:
            raise HardbitError(f"is not taken: {reason}", str(path), "name no plan, and one is built here") from None


def _read(path: Path, key: PlanKey) -> StoredPlan:
    if not (path / _ENTRY).is_file():
        raise _UnusableError("there is no plan yet")
    try:
        entry = json.loads((path / _ENTRY).read_text(encoding="utf-8"))
        if entry["format"] != _FORMAT:
            raise _UnusableError(f"it is stored in format {entry['format']}, not {_FORMAT}")
        if differences := _differences(entry["key"], key.to_document()):
            raise _UnusableError(f"it was built for something else: {'; '.join(differences)}")
        plan = (path / _PLAN).read_bytes()
        if hashlib.sha256(plan).hexdigest() != entry["plan_sha256"]:
            raise _UnusableError("its bytes are not those that were stored (SHA-256 differs)")
        layers = tuple(LayerRow.from_document(layer) for layer in entry["layers"])
        return StoredPlan(plan, layers, entry["plan_sha256"], path, (path / _TIMINGS).read_bytes())
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise _UnusableError(f"it is damaged ({error!r})") from error


def _write(path: Path, key: PlanKey, built: BuiltPlan) -> None:
    entry = {
        "format": _FORMAT,
        "key": key.to_document(),
        "plan_sha256": built.digests["plan"],
        "build_seconds": round(built.seconds, 3),
        "layers": [layer.to_document() for layer in built.layers],
    }
    with replace_directory(path) as folder:
        (folder / _PLAN).write_bytes(built.plan)
        (folder / _TIMINGS).write_bytes(built.timing_cache)
        (folder / _LOG).write_text("\n".join(built.log) + "\n", encoding="utf-8")
        (folder / _ENTRY).write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`driver 550.54, not 560.35` for every value that is another; values in nested objects under dotted names."""
    found = []
    for name in dict.fromkeys([*stored, *wanted]):
        here, there = wanted.get(name), stored.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found += _differences(there, here, f"{prefix}{name}.")
        elif here != there:
            found.append(f"{prefix}{name} {there}, not {here}")
    return found


def _require_private(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_MAY_WRITE:
        raise HardbitError(
            "others may write to it, and a plan is executed",
            str(folder),
            f"chmod 700 {folder}, or choose another folder",
        )
