"""What this machine has of what the host side of hardbit uses, next to what a board needs.

Boundary: looks and reports. Installs nothing, downloads nothing, imports no heavy package.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from hardbit_deploy.doctor import Finding
from hardbit_deploy.doctor import diagnose as diagnose_board

__all__ = ["Finding", "diagnose"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_NVCC = Path("/usr/local/cuda/bin/nvcc")


def diagnose() -> list[Finding]:
    """Every finding, what is most needed first: python and packages, the machine, data, tools, other targets."""
    packages = list(_packages())
    named = {finding.name for finding in packages} | {"hardbit"}
    board = [finding for finding in diagnose_board() if finding.name not in named]
    needed = [finding for finding in board if finding.status != "optional"]
    optional = [finding for finding in board if finding.status == "optional"]
    return [*needed[:1], *packages, *needed[1:], *_data(), *_tools(), *optional]


def _packages() -> Iterator[Finding]:
    """What hardbit's own metadata requires, in its order."""
    for requirement in requires("hardbit") or ():
        if "extra ==" in requirement:
            continue
        name = re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]
        try:
            yield Finding(name, "found", version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install '{requirement}'")


def _data() -> Iterator[Finding]:
    """The published image sets: where each is, or what would bring it."""
    from hardbit.data.load import PUBLISHED
    from hardbit_deploy.errors import HardbitError

    for name, data_set in PUBLISHED.items():
        purpose = "for hardbit train; the demo carries its own images and weights"
        try:
            place = data_set.find() or data_set.cached()
        except HardbitError as error:
            yield Finding(name, "optional", f"{purpose}: {error}", data_set.ways())
            continue
        if place is None:
            yield Finding(name, "optional", f"{purpose}: not on this machine", data_set.ways())
        else:
            yield Finding(name, "found", str(place))


def _tools() -> Iterator[Finding]:
    browser = next((path for path in map(shutil.which, _BROWSERS) if path), None)
    yield _tool("chromium", browser, "for pictures of reports and their tests", "apt-get install chromium")
    nvcc = shutil.which("nvcc") or (str(_NVCC) if _NVCC.exists() else None)
    yield _tool("nvcc", nvcc, "for compiling the low-bit CUDA kernels", "apt-get install nvidia-cuda-toolkit")


def _tool(name: str, path: str | None, purpose: str, remedy: str) -> Finding:
    return Finding(name, "optional", purpose, remedy) if path is None else Finding(name, "found", path)
