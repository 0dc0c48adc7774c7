"""Files and folders that are written whole or not at all, and their digests.

Boundary: knows nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hardbit_deploy.errors import HardbitError

__all__ = ["refused_by_system", "replace_directory", "sha256_file", "write_atomically"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_BLOCK_BYTES = 1 << 20


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) so that a reader sees the old file or the new one, even after a power cut.

    Raises OSError as the file system does; the parent folder must exist.
    """
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.fsync(stream.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


@contextlib.contextmanager
def replace_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty sibling folder to write into; on leaving, it takes the place of `path` whole.

    If the body raises, `path` keeps what it had and the sibling is removed. On Linux the exchange is one system call
    (renameat2, RENAME_EXCHANGE); elsewhere the old folder is renamed away first, which leaves an instant without it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sibling = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        sibling.chmod(0o777 & ~_umask())
        yield sibling
        for folder, _, names in os.walk(sibling):
            for name in names:
                _sync_file(Path(folder) / name)
            _sync_directory(Path(folder))
        _take_place(sibling, target)
        _sync_directory(target.parent)
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


@contextlib.contextmanager
def refused_by_system(what: str, where: str | Path, remedy: str) -> Iterator[None]:
    """Turn an OSError of the body (a full disk, a folder without permission) into a HardbitError about `where`."""
    try:
        yield
    except OSError as error:
        raise HardbitError(f"{what}: {error.strerror or error}", str(error.filename or where), remedy) from error


def sha256_file(path: str | Path) -> str:
    """Lower-case hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _take_place(sibling: Path, target: Path) -> None:
    """Put `sibling` at `target`; whatever `target` held is left at `sibling` for removal."""
    if not target.exists():
        sibling.rename(target)
        return
    if _exchange(sibling, target):
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)) / "retired"
    target.rename(retired)
    try:
        sibling.rename(target)
    except OSError:
        retired.rename(target)
        raise
    finally:
        shutil.rmtree(retired.parent, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step where the system can; False where it cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(result == 0)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    """Make a rename durable; file systems that refuse to sync a folder are let off."""
    with contextlib.suppress(OSError):
        _sync_file(path)
