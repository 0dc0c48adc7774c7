"""The C library behind the fused operations: built by the system's compiler when it is first needed, kept in the cache.

Its name holds a digest of the source, the compiler and the processor's features, so that another machine, another
compiler or another version of hardbit builds its own. Where it cannot be built there is one remark and no library; the
operations then run as composites of PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["cache_folder", "load_library"]

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    "-O3",
    "-std=c11",
    "-fPIC",
    "-shared",
    "-fopenmp-simd",
    "-fno-math-errno",  # without it and the next no rounding is a vector's
    "-fno-trapping-math",
    "-ffp-contract=off",  # the bits are those of separate operations
)
_PROCESSORS = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes
_THREADS = (("-fopenmp",), ())
_SECONDS = 120


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, built if need be; None with HARDBIT_FUSED=0 in the environment or where it cannot be built."""
    if os.environ.get("HARDBIT_FUSED") == "0":
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning(
            "training runs more slowly without the fused operations (%s); HARDBIT_FUSED=0 silences this",
            " ".join(str(error).split())[:300],
        )
        return None


def cache_folder() -> Path:
    """Where libraries are kept."""
    import pooch

    return Path(pooch.os_cache("hardbit")) / "fused"


def _built() -> Path:
    compiler = _compiler()
    identity = "\n".join((compiler, _version(compiler), _processor(), *_FLAGS))
    digest = hashlib.sha256(_SOURCE.read_bytes() + identity.encode()).hexdigest()[:16]
    path = cache_folder() / f"hardbit-fused-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            _compile(compiler, fresh)
            fresh.replace(path)
    return path


def _compile(compiler: str, path: Path) -> None:
    """Compile to `path`, for this processor and with threads where the compiler can and the result loads."""
    for processor, threads in itertools.product(_PROCESSORS, _THREADS):
        command = [compiler, *_FLAGS, *processor, *threads, str(_SOURCE), "-o", str(path), "-lm"]
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, text=True)
        failure = done.stderr.strip() or f"exit code {done.returncode}"
        if done.returncode == 0:
            try:
                ctypes.CDLL(str(path))
                return
            except OSError as error:  # of a runtime of threads that is not there
                failure = str(error)
    raise OSError(f"{compiler}: {failure}")


def _compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise OSError("there is no C compiler")


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, timeout=_SECONDS, check=True, text=True).stdout


def _processor() -> str:
    """What decides which instructions -march=native chooses."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    words = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(words)}))
