"""The arrays beside a result document: read when a report is made, and never trusted further than their shapes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Examples", "Missing", "Records", "read_examples", "read_query_times", "read_records"]

LARGEST_BYTES = 256 * 1024 * 1024  # unpacked; a million records are 20 MB


@dataclass(frozen=True)
class Missing:
    """Evidence that is not there, and why: the report says so in its place."""

    reason: str


@dataclass(frozen=True)
class Examples:
    """Images before and after an attack, uint8 (m, channels, height, width); labels and predictions int64 (m,)."""

    clean: NDArray[np.uint8]
    adversarial: NDArray[np.uint8]
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    adversarial_prediction: NDArray[np.int64]
    attack: NDArray[np.str_]


@dataclass(frozen=True)
class Records:
    """What became of every image, each of shape (n,): its label, whether it was right clean, and after all attacks."""

    label: NDArray[np.int64]
    clean: NDArray[np.bool_]
    worst_case: NDArray[np.bool_]


def read_examples(document: Mapping[str, Any], folder: Path | None) -> Examples | Missing:
    names = ("clean", "adversarial", "label", "clean_prediction", "adversarial_prediction", "attack")
    arrays = _read(document, folder, "examples", names)
    if isinstance(arrays, Missing):
        return arrays
    clean, adversarial, *per_image = (arrays[name] for name in names)
    if clean.ndim != 4 or clean.dtype != np.uint8 or adversarial.dtype != np.uint8 or clean.shape != adversarial.shape:
        return Missing("examples.npz does not hold pairs of 8-bit images")
    if any(array.shape != clean.shape[:1] for array in per_image):
        return Missing("examples.npz does not hold one label and prediction for every image")
    if not len(clean):
        return Missing("no image was kept")
    return Examples(clean, adversarial, *per_image)


def read_records(document: Mapping[str, Any], folder: Path | None) -> Records | Missing:
    arrays = _read(document, folder, "records", ("label", "clean", "worst_case"))
    if isinstance(arrays, Missing):
        return arrays
    label, clean, worst_case = arrays["label"], arrays["clean"], arrays["worst_case"]
    if label.ndim != 1 or not label.size or clean.shape != label.shape or worst_case.shape != label.shape:
        return Missing("records.npz does not hold one entry for every image")
    return Records(label.astype(np.int64), clean.astype(bool), worst_case.astype(bool))


def read_query_times(document: Mapping[str, Any], folder: Path | None) -> NDArray[np.floating] | Missing:
    """Milliseconds of every query, (processes, queries); a process with fewer queries is filled up with NaN."""
    arrays = _read(document, folder, "latency", ("query_ms",))
    if isinstance(arrays, Missing):
        return arrays
    times = np.atleast_2d(arrays["query_ms"])
    if times.ndim != 2 or times.dtype.kind != "f" or not np.isfinite(times).any():
        return Missing("latency.npz holds no times of queries")
    return times


def _read(
    document: Mapping[str, Any], folder: Path | None, kind: str, names: tuple[str, ...]
) -> dict[str, NDArray[Any]] | Missing:
    if folder is None:
        return Missing("the report was made from the result document alone")
    name = (document.get("files") or {}).get(kind)
    if not name:
        return Missing(f"the result lists no {kind}")
    path = folder / str(name)
    if Path(str(name)).name != name or not path.is_file():
        return Missing(f"{name} does not lie beside the result")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_BYTES:
                return Missing(f"{name} unpacks to more than {LARGEST_BYTES // 2**20} MiB")
        with np.load(path, allow_pickle=False) as arrays:
            absent = [wanted for wanted in names if wanted not in arrays]
            if absent:
                return Missing(f"{name} lacks {', '.join(absent)}")
            return {wanted: arrays[wanted] for wanted in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return Missing(f"{name} cannot be read ({error})")
