"""The IDX format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/), unsigned bytes only."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.errors import HardbitError

__all__ = ["parse_idx", "read_idx"]

_UNSIGNED_BYTE = 8
_MAX_DIMENSIONS = 4


def read_idx(file: Path, sha256: str, largest: int, title: str) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of the set called `title`.

    `sha256` is that of the unpacked content: mirrors pack the same content with other gzip headers. Raises HardbitError
    for another content, and for one of more than `largest` bytes without unpacking the rest.
    """
    try:
        with gzip.open(file) as stream:
            content = stream.read(largest + 1)  # a gzip bomb stops here
    except (OSError, EOFError, zlib.error) as error:
        raise HardbitError(f"this file cannot be unpacked: {error}", where=str(file), remedy="replace it") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise HardbitError(
            f"the SHA-256 of its unpacked content is not that of {title}'s {file.name}",
            where=str(file),
            remedy="replace it by the original; several sets use this name: give each a subfolder of its own",
        )
    return parse_idx(content, str(file))


def parse_idx(content: bytes, where: str) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, in the shape that its header declares.

    Raises HardbitError, naming `where`, for a file that is truncated, too long, or not IDX at all.
    """
    if len(content) < 4 or content[:2] != b"\x00\x00":
        raise HardbitError("this is not an IDX file: it does not begin with two zero bytes", where=where)
    kind, dimensions = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise HardbitError(f"this IDX file holds numbers of type {kind:#04x}, not unsigned bytes (0x08)", where=where)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise HardbitError(f"this IDX file declares {dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}", where=where)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise HardbitError("this IDX file ends inside its header", where=where)
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = math.prod(shape)
    if len(content) - header != expected:
        raise HardbitError(
            f"this IDX file declares {expected} bytes of shape {shape} and holds {len(content) - header}", where=where
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
