"""A Jetson as its own files tell it: module, L4T release, JetPack, TensorRT, power mode, GPU clock, memory.

Read from /etc/nv_tegra_release, dpkg's status file, nvpmodel or its files, /sys/class/devfreq and /proc/meminfo.

Boundary: looks. What may be changed for a measurement is changed in clock_lock.py, and undone there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "GpuClock",
    "JetsonBoard",
    "PowerMode",
    "describe_jetson",
    "find_tool",
    "installed_packages",
    "read_gpu_clock",
    "read_power_mode",
]

_TOOL_TIMEOUT_S = 10
# Packages of JetPack whose versions say what a board runs, and what each is called here.
_PACKAGES = {
    "nvidia-jetpack": "jetpack",
    "nvidia-l4t-core": "l4t",
    "libnvinfer10": "tensorrt",
    "libnvinfer11": "tensorrt",
    "libnvinfer-bin": "tensorrt",
    "python3-libnvinfer": "tensorrt for Python",
}
_JETPACK_OF_L4T = {35: "5", 36: "6", 38: "7", 39: "7"}  # major releases, for boards without the package nvidia-jetpack
_CAPABILITIES = {"Thor": (11, 0), "Orin": (8, 7), "Xavier": (7, 2)}


@dataclass(frozen=True)
class PowerMode:
    """A power mode of nvpmodel, such as 0, `MAXN`."""

    number: int
    name: str


@dataclass(frozen=True)
class GpuClock:
    """Limits and present clock of the integrated GPU, in MHz."""

    min_mhz: float
    max_mhz: float
    mhz: float | None

    @property
    def locked(self) -> bool:
        """Whether a single clock is allowed."""
        return self.min_mhz == self.max_mhz


@dataclass(frozen=True)
class JetsonBoard:
    """One board; whatever cannot be read is None."""

    model: str
    l4t: str | None
    jetpack: str | None
    tensorrt: str | None
    has_tensorrt_for_python: bool
    power_mode: PowerMode | None
    gpu_clock: GpuClock | None
    memory_mb: int | None
    available_mb: int | None

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """Of the integrated GPU, by the name of the module."""
        return next((capability for name, capability in _CAPABILITIES.items() if name in self.model), None)


def describe_jetson(root: Path = Path("/")) -> JetsonBoard | None:
    """This board; None on a machine that is no Jetson. `root` is where its files are looked for."""
    release = _text(root / "etc/nv_tegra_release")
    model = (_text(root / "proc/device-tree/model") or "").rstrip("\0")
    if release is None and "Jetson" not in model:
        return None
    packages = installed_packages(root)
    l4t = _l4t(release or "") or _upstream(packages.get("l4t"))
    memory = _memory_mb(root)
    return JetsonBoard(
        model=model or "NVIDIA Jetson",
        l4t=l4t,
        jetpack=_upstream(packages.get("jetpack")) or _JETPACK_OF_L4T.get(int(l4t.split(".")[0]) if l4t else 0),
        tensorrt=_upstream(packages.get("tensorrt")),
        has_tensorrt_for_python="tensorrt for Python" in packages,
        power_mode=read_power_mode(root),
        gpu_clock=read_gpu_clock(root),
        memory_mb=memory.get("MemTotal"),
        available_mb=memory.get("MemAvailable"),
    )


def installed_packages(root: Path = Path("/")) -> dict[str, str]:
    """Versions of JetPack's parts from dpkg's status file, by the names that this module gives them."""
    found: dict[str, str] = {}
    for paragraph in (_text(root / "var/lib/dpkg/status") or "").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        name = _PACKAGES.get(fields.get("Package", ""))
        if name and fields.get("Status", "").endswith(" installed") and "Version" in fields:
            found.setdefault(name, fields["Version"])
    return found


def read_power_mode(root: Path = Path("/")) -> PowerMode | None:
    """The present power mode, as `nvpmodel -q` says or, where it cannot be asked, as its files say."""
    tool = find_tool("nvpmodel")
    if tool is not None:
        try:
            finished = subprocess.run(
                [tool, "-q"],
                capture_output=True,
                text=True,
                check=False,
                timeout=_TOOL_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return _mode_of_files(root)
        # A line `NV Power Mode: MAXN`, then a line with the number.
        if told := re.search(r"NV Power Mode: *(\S+)\s+(\d+)\s*$", finished.stdout, flags=re.M):
            return PowerMode(int(told[2]), told[1])
    return _mode_of_files(root)


def read_gpu_clock(root: Path = Path("/")) -> GpuClock | None:
    """The clock of the integrated GPU from /sys/class/devfreq: 17000000.gpu on Orin, gpu-gpc-0 on Thor."""
    folder = root / "sys/class/devfreq"
    for device in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not re.search(r"gpu|ga10b|gv11b", device.name):
            continue
        low, high, now = (_mhz(device / f"{name}_freq") for name in ("min", "max", "cur"))
        if low is not None and high is not None:
            return GpuClock(low, high, now)
    return None


def find_tool(name: str) -> str | None:
    """Path of one of NVIDIA's tools; they lie in sbin, which not every account looks into."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin")


def _mode_of_files(root: Path) -> PowerMode | None:
    """`pmode:0002` in the file of the present mode, and its name in the table of modes."""
    present = re.match(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if present is None:
        return None
    number = int(present[1])
    table = _text(root / "etc/nvpmodel.conf") or ""
    named = re.search(rf"^< *POWER_MODEL +ID={number} +NAME=(\S+) *>", table, flags=re.M)
    return PowerMode(number, named[1] if named else str(number))


def _l4t(release: str) -> str | None:
    """`36.4.3` of `# R36 (release), REVISION: 4.3, GCID: ...`."""
    told = re.search(r"R(\d+) *\(release\), *REVISION: *([\d.]+)", release)
    return f"{told[1]}.{told[2]}" if told else None


def _upstream(version: str | None) -> str | None:
    """The part of a Debian version that upstream gave: `10.3.0.30` of `10.3.0.30-1+cuda12.5`."""
    return re.split(r"[-+~]", version)[0] if version else None


def _memory_mb(root: Path) -> dict[str, int]:
    lines = re.findall(r"^(\w+): +(\d+) kB$", _text(root / "proc/meminfo") or "", flags=re.M)
    return {name: int(value) // 1024 for name, value in lines}


def _mhz(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1e6 if text and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
