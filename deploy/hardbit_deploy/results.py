"""A run on disk: result.json beside records.npz, examples.npz and latency.npz.

The document is published as a JSON schema (schemas/result-v1.json). A board has no schema validator, so reading checks
format, version and the keys that this code goes on to use; the tests hold writer and schema together.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.junit import junit_xml
from hardbit_deploy.storage import refused_by_system, write_atomically

__all__ = [
    "FORMAT",
    "RESULT_FILE",
    "SCHEMA_VERSION",
    "document_text",
    "junit_xml",
    "load_records",
    "load_result",
    "load_schema",
    "write_result",
]

FORMAT = "hardbit-result"
SCHEMA_VERSION = 1
RESULT_FILE = "result.json"
ARRAY_FILES = ("records", "examples", "latency")

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "bundle": dict,
    "environment": dict,
    "threat_model": dict,
    "suite": dict,
    "precision": dict,
    "agreement": list,
    "attacks": list,
    "alarms": list,
    "latency": (dict, type(None)),
    "gate": list,
    "verdict": dict,
    "files": dict,
}


def write_result(
    folder: str | Path,
    document: Mapping[str, Any],
    records: Mapping[str, NDArray[Any]] | None = None,
    examples: Mapping[str, NDArray[Any]] | None = None,
    latency: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, Any]:
    """Write a run and return its document with `files` filled in.

    Arrays come first and result.json last, so a folder with a result.json is complete; arrays of an earlier run that
    this one does not have are removed. Raises HardbitError where the folder cannot be written.
    """
    folder = Path(folder)
    with refused_by_system("the result cannot be written", folder, "make room, or choose another folder"):
        return _write_result(folder, document, (records, examples, latency))


def _write_result(
    folder: Path, document: Mapping[str, Any], kinds: tuple[Mapping[str, NDArray[Any]] | None, ...]
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    files: dict[str, str] = {}
    for name, arrays in zip(ARRAY_FILES, kinds, strict=True):
        path = folder / f"{name}.npz"
        if arrays is None:
            path.unlink(missing_ok=True)
            continue
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())
        files[name] = path.name
    written: dict[str, Any] = json.loads(document_text({**document, "files": files}))
    write_atomically(folder / RESULT_FILE, document_text(written))
    return written


def document_text(document: Mapping[str, Any]) -> str:
    """JSON of a document that may still hold numpy scalars; numbers that JSON cannot say become null."""
    text = json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Half characters come from names of files that are not UTF-8: JSON has an escape for them, UTF-8 has none.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def load_result(path: str | Path) -> dict[str, Any]:
    """Read result.json, given itself or its folder. Raises HardbitError in one sentence."""
    path = _result_path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HardbitError(f"no result can be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise HardbitError(f"not a JSON document: {error}", where=str(path)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HardbitError(f'not a result: its "format" is not {FORMAT}', where=str(path))
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise HardbitError(
            f"has schema version {version}, this hardbit reads {SCHEMA_VERSION}",
            where=str(path),
            remedy="install the hardbit-deploy that wrote it",
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(document.get(key), kind):
            raise HardbitError(f'damaged: its key "{key}" is missing or of another type', where=str(path))
    return document


def load_records(path: str | Path, document: Mapping[str, Any], name: str = "records") -> dict[str, NDArray[Any]]:
    """Read the arrays that lie beside a result.json: "records", "examples" or "latency". Raises HardbitError."""
    file = document["files"].get(name)
    if not isinstance(file, str) or Path(file).name != file:
        raise HardbitError(f"holds no {name}", where=str(_result_path(path)))
    arrays = _result_path(path).parent / file
    try:
        with np.load(arrays, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise HardbitError(f"the {name} cannot be read: {error}", where=str(arrays)) from error


def load_schema(name: str) -> dict[str, Any]:
    """One of the published schemas: "result-v1" or "manifest-v1"."""
    text = resources.files("hardbit_deploy").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _result_path(path: str | Path) -> Path:
    path = Path(path)
    return path / RESULT_FILE if path.is_dir() else path


def _plain(value: Any) -> Any:
    """Python values only; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
