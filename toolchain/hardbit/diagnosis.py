"""What this machine has of what hardbit uses: packages, processor features, data, and tools.

Boundary: looks and reports. Installs nothing, downloads nothing, imports no heavy package.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

__all__ = ["Finding", "diagnose"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Instructions that multiply bytes without saturating; without them a sum of two u8 x s8 products is clipped to 16 bits.
_INTEGER_FEATURES = {
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "amx_int8": "AMX INT8",
    "asimddp": "dot product",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    `status` is "found"; "missing" when `hardbit run` cannot work without it; "optional" when only `needed_for` does not
    work. `remedy` is the command that brings it.
    """

    name: str
    status: str
    detail: str
    needed_for: str = ""
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Every finding, what is most needed first."""
    return [_python(), *_packages(), _processor(), _cores(), _fashion_mnist(), *_tools(), _tensorrt()]


def _python() -> Finding:
    return Finding("python", "found", f"{platform.python_version()} ({sys.executable})")


def _packages() -> Iterator[Finding]:
    """What hardbit's own metadata requires, in its order."""
    for requirement in requires("hardbit") or ():
        if "extra ==" in requirement:
            continue
        name = re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]
        try:
            yield Finding(name, "found", version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed", "everything", f"pip install '{requirement}'")


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    name = platform.machine()
    try:
        text = cpuinfo.read_text()
    except OSError:
        return Finding("processor", "found", f"{name}; its features cannot be read")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    features = [label for flag, label in _INTEGER_FEATURES.items() if flag in present]
    label = f"{name}, {model[1]}" if model else name
    if features:
        return Finding("processor", "found", f"{label}; integer products: {', '.join(features)}")
    return Finding(
        "processor",
        "optional",
        f"{label}; no VNNI",
        "8-bit activations that agree with other machines",
        "use 7-bit activations (activations = 7), whose products cannot saturate",
    )


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("cores", "found", f"{usable} usable of {os.cpu_count()}")


def _fashion_mnist() -> Finding:
    from hardbit.data.fashion_mnist import DEBIAN_FOLDER, cached, find
    from hardbit_deploy.errors import HardbitError

    needed_for = "hardbit train (the demo carries its own images and weights)"
    remedy = "apt-get install dataset-fashion-mnist, or set HARDBIT_DATA to a folder with its four .gz files"
    try:
        folder = find() or cached()
    except HardbitError as error:
        return Finding("fashion-mnist", "optional", str(error), needed_for, remedy)
    if folder is None:
        detail = f"not in $HARDBIT_DATA, not in {DEBIAN_FOLDER}, not downloaded yet"
        return Finding("fashion-mnist", "optional", detail, needed_for, remedy)
    return Finding("fashion-mnist", "found", str(folder))


def _tools() -> Iterator[Finding]:
    browser = next((path for path in map(shutil.which, _BROWSERS) if path), None)
    yield _tool("chromium", browser, "pictures of reports and their tests", "apt-get install chromium")
    nvcc = shutil.which("nvcc") or next(
        (str(path) for path in [Path("/usr/local/cuda/bin/nvcc")] if path.exists()), None
    )
    yield _tool("nvcc", nvcc, "compiling the low-bit CUDA kernels", "apt-get install nvidia-cuda-toolkit")


def _tool(name: str, path: str | None, needed_for: str, remedy: str) -> Finding:
    if path is None:
        return Finding(name, "optional", "not on the PATH", needed_for, remedy)
    return Finding(name, "found", path)


def _tensorrt() -> Finding:
    for package in ("tensorrt", "tensorrt-rtx"):
        try:
            return Finding("tensorrt", "found", f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return Finding(
        "tensorrt", "optional", "not installed", "engines for NVIDIA GPUs and Jetson", "pip install tensorrt"
    )
