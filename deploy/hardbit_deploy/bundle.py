"""A bundle on disk: written whole, verified before anything in it is parsed, and inert.

A bundle is one flat folder: `manifest.json` and the files that it lists, which are JSON, ONNX and npy without pickle.
Verification guards against damage and against a bundle that was tampered with before it came here; someone who can
write to this machine's disk while hardbit runs is outside of what it can guard against.

Boundary: does not know what the ONNX files mean, and never executes anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.errors import BundleError
from hardbit_deploy.manifest import FORMAT, MANIFEST_NAME, SCHEMA_VERSION, Manifest, parse_manifest
from hardbit_deploy.storage import refused_by_system, replace_directory, sha256_file

__all__ = ["MAX_FILE_BYTES", "MAX_MANIFEST_BYTES", "Bundle", "load_bundle", "write_bundle"]

MAX_FILE_BYTES = 2 << 30
MAX_MANIFEST_BYTES = 4 << 20

_COPY_AGAIN = "copy or build the bundle anew"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Arrays are memory-mapped and read-only: opening one costs no memory."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    def file(self, name: str) -> Path:
        """Path of a listed file; raises BundleError for any other name."""
        if name not in self.manifest.files:
            raise BundleError(f"has no file {name!r}", str(self.path), f"it has {', '.join(self.manifest.files)}")
        return self.path / name

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """Evaluation images, uint8 (n, channels, height, width)."""
        return self._array(self.manifest.images_file, np.uint8, *self.manifest.input_shape)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Their labels, int64 (n,)."""
        return self._array(self.manifest.labels_file, np.int64)

    @cached_property
    def twin_clean_logits(self) -> NDArray[np.float32] | None:
        """The training framework's logits on `images`, float32 (n, classes); None where none were recorded."""
        name = self.manifest.twin_clean_logits_file
        return None if name is None else self._array(name, np.float32, self.manifest.classes)

    @cached_property
    def twin_adversarial_images(self) -> NDArray[np.uint8] | None:
        """Adversarial images that were made on the training framework's model, like `images`."""
        name = self.manifest.twin_adversarial_images_file
        return None if name is None else self._array(name, np.uint8, *self.manifest.input_shape)

    @cached_property
    def twin_adversarial_logits(self) -> NDArray[np.float32] | None:
        """The training framework's logits on `twin_adversarial_images`, float32 (n, classes)."""
        name = self.manifest.twin_adversarial_logits_file
        return None if name is None else self._array(name, np.float32, self.manifest.classes)

    @cached_property
    def transfers(self) -> dict[str, NDArray[np.uint8]]:
        """Adversarial images made on other networks, by their names: uint8 (n, candidates, channels, height, width)."""
        shape = self.manifest.input_shape
        return {
            source.name: self._array(source.images_file, np.uint8, source.candidates, *shape)
            for source in self.manifest.transfers
        }

    def _array(self, name: str, dtype: type[np.generic], *image: int) -> NDArray[Any]:
        expected = (self.manifest.image_count, *image)
        try:
            array = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy passes on whatever its parsers of headers and archives raise
            raise BundleError(f"is not an npy file ({error})", name, _COPY_AGAIN) from None
        if not isinstance(array, np.ndarray) or array.shape != expected or array.dtype != dtype:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
            raise BundleError(f"holds {found}, not {np.dtype(dtype)} {expected}", name, _COPY_AGAIN)
        return array


def load_bundle(path: str | Path, max_file_bytes: int = MAX_FILE_BYTES) -> Bundle:
    """Verify the folder against its manifest, then open it.

    Raises BundleError, in one sentence, for: no bundle, a manifest that is malformed, too large or of a newer schema; a
    listed name that leads out of the folder; a file that is missing, unlisted, not a regular file (symbolic links among
    them), of another size than listed, larger than `max_file_bytes`, or of another digest; arrays of the wrong shape or
    type, and labels out of range. No listed file is parsed before all of them have been verified.
    Raises HardbitError where the system does not let a file be read.
    """
    folder = Path(path)
    with refused_by_system("the bundle cannot be read", folder, "look at its permissions and its disk"):
        data = _manifest_bytes(folder)
        manifest = parse_manifest(data)
        _verify_listing(folder, manifest)
        _verify_sizes(folder, manifest, max_file_bytes)
        for name, entry in manifest.files.items():
            if sha256_file(folder / name) != entry.sha256:
                raise BundleError("its content is not what the manifest lists (SHA-256 differs)", name, _COPY_AGAIN)
    bundle = Bundle(folder, manifest, hashlib.sha256(data).hexdigest())
    _open_arrays(bundle)
    return bundle


def write_bundle(
    path: str | Path, manifest_fields: Mapping[str, Any], files: Mapping[str, bytes | Path | NDArray[Any]]
) -> Bundle:
    """Write a bundle and return it as `load_bundle` sees it; an older bundle at `path` is replaced whole or not at all.

    `manifest_fields` is the manifest without `format`, `schema_version` and `files`, which are added here; `files` maps
    plain names to bytes, to a file to copy, or to an array to store as npy. Raises BundleError where the result would
    be refused, or where `path` holds something that is not a bundle.
    """
    target = Path(path)
    _refuse_to_replace_anything_else(target)
    with replace_directory(target) as folder:
        document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest_fields}
        document["files"] = {name: _store(folder / Path(name).name, content) for name, content in files.items()}
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
        load_bundle(folder)
    return load_bundle(target)


def _store(destination: Path, content: bytes | Path | NDArray[Any]) -> dict[str, str | int]:
    if isinstance(content, np.ndarray):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.ascontiguousarray(content), version=(1, 0), allow_pickle=False)
        destination.write_bytes(stream.getbuffer())
    elif isinstance(content, Path):
        shutil.copyfile(content, destination)
    else:
        destination.write_bytes(content)
    return {"sha256": sha256_file(destination), "bytes": destination.stat().st_size}


def _refuse_to_replace_anything_else(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError("is not a folder", str(target), "choose another place for the bundle")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_NAME).is_file():
        raise BundleError("holds other files", str(target), "choose another place for the bundle")


def _manifest_bytes(folder: Path) -> bytes:
    remedy = "point at the folder of a bundle"
    if not folder.is_dir():
        raise BundleError("there is no such folder", str(folder), remedy)
    path = folder / MANIFEST_NAME
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise BundleError(f"is not a bundle: it has no {MANIFEST_NAME}", str(folder), remedy) from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError("is not a regular file", MANIFEST_NAME, _COPY_AGAIN)
    if status.st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"is larger than {MAX_MANIFEST_BYTES >> 20} MiB", MANIFEST_NAME, _COPY_AGAIN)
    return path.read_bytes()


def _verify_listing(folder: Path, manifest: Manifest) -> None:
    present = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            present[entry.name] = entry
            if entry.is_symlink():
                raise BundleError("is a symbolic link", entry.name, "bundles hold files only: copy it with cp -L")
            if entry.name != MANIFEST_NAME and entry.name not in manifest.files:
                raise BundleError("is in the folder but not in the manifest", entry.name, "remove it")
            if not entry.is_file(follow_symlinks=False):
                raise BundleError("is not a regular file", entry.name, _COPY_AGAIN)
    for name in manifest.files:
        if name not in present:
            raise BundleError("is in the manifest but not in the folder", name, _COPY_AGAIN)


def _verify_sizes(folder: Path, manifest: Manifest, max_file_bytes: int) -> None:
    for name, entry in manifest.files.items():
        size = (folder / name).lstat().st_size
        if max(size, entry.bytes) > max_file_bytes:
            raise BundleError(
                f"has {max(size, entry.bytes)} bytes, over the limit of {max_file_bytes}",
                name,
                "raise the limit if you trust its source",
            )
        if size != entry.bytes:
            raise BundleError(f"has {size} bytes where the manifest lists {entry.bytes}", name, _COPY_AGAIN)


def _open_arrays(bundle: Bundle) -> None:
    """Shapes and types once, here, so that whoever uses a bundle need not check again."""
    labels = bundle.labels
    if labels.min() < 0 or labels.max() >= bundle.manifest.classes:
        raise BundleError(
            f"labels run from {labels.min()} to {labels.max()} with {bundle.manifest.classes} classes",
            bundle.manifest.labels_file,
            "build the bundle anew",
        )
    _ = (bundle.images, bundle.twin_clean_logits, bundle.twin_adversarial_images, bundle.twin_adversarial_logits)
    _ = bundle.transfers
