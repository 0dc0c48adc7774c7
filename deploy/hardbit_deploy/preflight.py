"""What machine this is, and how far a timing taken on it can be trusted.

Grade A: clocks locked and nobody else at work. Grade B: clocks may wander, or nobody can say. Grade C: foreign load.
A gate compares equal grades only. Nothing here changes a clock or a governor: locking them is the user's decision.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hardbit_deploy.gpu_support import visible_gpus
from hardbit_deploy.jetson import describe_jetson

__all__ = [
    "FOREIGN_LOAD_LIMIT",
    "Grade",
    "LoadMeter",
    "cpu_model",
    "describe_machine",
    "foreign_load",
    "grade",
    "usable_cores",
    "worse_grade",
]

FOREIGN_LOAD_LIMIT = 0.10  # cores busy with other people's work, per core of the machine
LOAD_INTERVAL_S = 0.3  # at 100 ticks a second and two cores this resolves 2 % of the machine


@dataclass(frozen=True)
class Grade:
    """`letter` is A, B or C; `reasons` say in words what kept it from being better, or that nothing did."""

    letter: str
    reasons: tuple[str, ...]


def describe_machine(root: Path = Path("/"), load_interval_s: float = LOAD_INTERVAL_S) -> dict[str, Any]:
    """Describe this machine as JSON-ready values; whatever cannot be read is None, never guessed.

    `root` is where proc/ and sys/ are looked for, so that recorded machines can be described too.
    """
    return {
        "machine": platform.machine(),
        "cpu": cpu_model(root),
        "cores": os.cpu_count() or 1,
        "affinity": _affinity(),
        "governor": _common_text(root, "scaling_governor"),
        "frequency_mhz": _frequencies(root, "scaling_cur_freq"),
        "frequency_min_mhz": _frequencies(root, "scaling_min_freq"),
        "frequency_max_mhz": _frequencies(root, "scaling_max_freq"),
        "clocks_locked": _clocks_locked(root),
        "boost": _boost(root),
        "temperature_c": _temperature(root),
        "load_average": _load_average(root),
        "foreign_load": foreign_load(root, load_interval_s),
        "board": _board_model(root),
        "gpus": [asdict(gpu) for gpu in visible_gpus(root)],
        **_jetson(root),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        **_onnxruntime(),
        "tensorrt": _version("tensorrt"),
        "tensorrt_rtx": _version("tensorrt_rtx"),
    }


def grade(environment: Mapping[str, Any], on_gpu: bool = False) -> Grade:
    """Grade a machine from its description; pure, so a recorded description gets the grade that it had.

    `on_gpu` says that what is timed runs on a GPU: then a GPU whose clock nobody can tell counts too.
    """
    load = environment.get("foreign_load")
    if load is not None and load > FOREIGN_LOAD_LIMIT:
        limit = f"limit {100 * FOREIGN_LOAD_LIMIT:.0f} %"
        return Grade("C", (f"other programs keep {100 * load:.0f} % of the machine busy ({limit})",))
    reasons = []
    if load is None:
        reasons.append("the load of other programs cannot be read")
    locked = environment.get("clocks_locked")
    if locked is None:
        reasons.append("the clocks cannot be read")
    elif not locked:
        low, high = environment["frequency_min_mhz"], environment["frequency_max_mhz"]
        governor = environment.get("governor") or "unknown"
        reasons.append(f"the clocks may move between {low:.0f} and {high:.0f} MHz (governor {governor})")
    if on_gpu and environment.get("gpu_clocks_locked") is None:
        reasons.append("whether the GPU's clock is locked cannot be read")
    if environment.get("gpu_clocks_locked") is False:
        low, high = environment["gpu_frequency_min_mhz"], environment["gpu_frequency_max_mhz"]
        reasons.append(f"the GPU's clock may move between {low:.0f} and {high:.0f} MHz")
    if environment.get("boost"):
        reasons.append("turbo boost is on")
    return Grade("B", tuple(reasons)) if reasons else Grade("A", ("clocks locked, no foreign load",))


def usable_cores() -> int:
    """How many cores this process may run on: fewer than the machine has, where it is pinned or in a container."""
    return len(_affinity() or range(os.cpu_count() or 1))


def worse_grade(first: Grade, second: Grade) -> Grade:
    """The worse of two grades, such as before and after a measurement."""
    return second if second.letter > first.letter else first


class LoadMeter:
    """Share of the machine that other processes keep busy from the construction on.

    Stolen time counts: a hypervisor's other guests disturb a measurement as much as a neighbour on the same system.
    The time of this process and of children that it has waited for is taken off, so a measurement in child processes
    can be watched as a whole; children that still run count as foreign.
    """

    def __init__(self, root: Path = Path("/"), cores: int | None = None) -> None:
        self._root = root
        self._cores = cores or os.cpu_count() or 1
        self._started_s = time.monotonic()
        self._ticks = _busy_ticks(root)
        self._own_s = _own_seconds()

    def foreign_share(self) -> float | None:
        """Between 0 and 1, of all cores; None where /proc/stat is missing."""
        ticks, elapsed_s = _busy_ticks(self._root), time.monotonic() - self._started_s
        if ticks is None or self._ticks is None or elapsed_s <= 0:
            return None
        busy_s = (ticks - self._ticks) / os.sysconf("SC_CLK_TCK") - (_own_seconds() - self._own_s)
        return round(min(1.0, max(0.0, busy_s / (elapsed_s * self._cores))), 4)


def foreign_load(root: Path = Path("/"), interval_s: float = LOAD_INTERVAL_S) -> float | None:
    """Foreign share of the machine over a short sleep."""
    meter = LoadMeter(root)
    time.sleep(interval_s)
    return meter.foreign_share()


def _busy_ticks(root: Path) -> int | None:
    """Ticks that all cores spent at work: user, nice, system, irq, softirq and steal of `cpu` in proc_stat(5)."""
    for line in _lines(root / "proc/stat"):
        name, *fields = line.split()
        if name == "cpu" and len(fields) >= 8:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            return user + nice + system + irq + softirq + steal
    return None


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _onnxruntime() -> dict[str, Any]:
    try:
        import onnxruntime
    except ImportError:
        return {"onnxruntime": None, "providers": []}
    return {"onnxruntime": onnxruntime.__version__, "providers": list(onnxruntime.get_available_providers())}


def _version(package: str) -> str | None:
    """From the package's metadata: importing TensorRT takes seconds and memory."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _jetson(root: Path) -> dict[str, Any]:
    """What only a Jetson has; no key at all on another machine."""
    board = describe_jetson(root)
    if board is None:
        return {}
    mode, clock = board.power_mode, board.gpu_clock
    return {
        "l4t": board.l4t,
        "jetpack": board.jetpack,
        "power_mode": mode.name if mode else None,
        "gpu_frequency_mhz": clock.mhz if clock else None,
        "gpu_frequency_min_mhz": clock.min_mhz if clock else None,
        "gpu_frequency_max_mhz": clock.max_mhz if clock else None,
        "gpu_clocks_locked": clock.locked if clock else None,
    }


def cpu_model(root: Path = Path("/")) -> str:
    """The name that /proc/cpuinfo gives; Arm kernels give part numbers only, which is still better than nothing."""
    fields: dict[str, str] = {}
    for line in _lines(root / "proc/cpuinfo"):
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" in fields:
        return f"Arm implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return platform.processor() or "unknown"


def _board_model(root: Path) -> str | None:
    """Name of a board with a device tree, such as `NVIDIA Jetson Orin Nano`; it ends in a zero byte."""
    text = _text(root / "proc/device-tree/model")
    return text.rstrip("\0") if text else None


def _affinity() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _cpu_folders(root: Path) -> list[Path]:
    folder = root / "sys/devices/system/cpu"
    return sorted(folder.glob("cpu[0-9]*/cpufreq")) if folder.is_dir() else []


def _common_text(root: Path, name: str) -> str | None:
    """One setting of all cores; a mixture is spelled out, `performance+powersave`."""
    values = {text for folder in _cpu_folders(root) if (text := _text(folder / name))}
    return "+".join(sorted(values)) or None


def _frequencies(root: Path, name: str) -> float | None:
    """Extreme frequency over the cores in MHz: the lowest minimum, the highest maximum, the highest current."""
    values = [float(text) / 1000 for folder in _cpu_folders(root) if (text := _text(folder / name)) and text.isdigit()]
    if not values:
        return None
    return min(values) if "min" in name else max(values)


def _clocks_locked(root: Path) -> bool | None:
    """Whether every core's policy allows a single frequency; clusters of unlike cores may each have their own."""
    limits = [(_text(folder / "scaling_min_freq"), _text(folder / "scaling_max_freq")) for folder in _cpu_folders(root)]
    if not limits or any(low is None or high is None for low, high in limits):
        return None
    return all(low == high for low, high in limits)


def _boost(root: Path) -> bool | None:
    """Whether the processor may exceed its nominal clock: cpufreq/boost, or Intel's no_turbo the other way round."""
    folder = root / "sys/devices/system/cpu"
    if (text := _text(folder / "cpufreq/boost")) is not None:
        return text == "1"
    if (text := _text(folder / "intel_pstate/no_turbo")) is not None:
        return text == "0"
    return None


def _temperature(root: Path) -> float | None:
    """The hottest thermal zone in degrees Celsius; zones give thousandths, and broken ones give nonsense."""
    folder = root / "sys/class/thermal"
    zones = sorted(folder.glob("thermal_zone*/temp")) if folder.is_dir() else []
    values = []
    for zone in zones:
        with contextlib.suppress(TypeError, ValueError):
            values.append(float(_text(zone)) / 1000)  # type: ignore[arg-type]
    plausible = [value for value in values if -40 < value < 150]
    return max(plausible) if plausible else None


def _load_average(root: Path) -> list[float] | None:
    text = _text(root / "proc/loadavg")
    return [float(field) for field in text.split()[:3]] if text else None


def _text(path: Path) -> str | None:
    """Content of a small kernel file without its final newline; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()
