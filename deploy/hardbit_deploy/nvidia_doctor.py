"""What doctor says of NVIDIA's side of a machine: board, GPUs, TensorRT, TensorRT for RTX, PyCUDA, power sensors.

Boundary: looks and reports; imports none of the runtimes, for that alone takes seconds and memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hardbit_deploy.finding import Finding
from hardbit_deploy.gpu_support import RTX_SUPPORT, Gpu, rtx_obstacle, visible_gpus
from hardbit_deploy.jetson import JetsonBoard, describe_jetson
from hardbit_deploy.telemetry import find_power_meter, find_rails

__all__ = ["gpu_findings"]

_SYSTEM_PACKAGES = "make the virtual environment with --system-site-packages: docs/jetson.md"
_ENGINES = "for target tensorrt: INT8 engines on an NVIDIA GPU or Jetson"


def gpu_findings(root: Path = Path("/")) -> list[Finding]:
    """Every finding about GPUs and boards; `root` is where proc/, sys/, etc/ and var/ are looked for."""
    board, gpus = describe_jetson(root), visible_gpus(root)
    found = list(_board(board)) if board is not None else []
    found += [_gpu(gpu) for gpu in gpus] or [Finding("gpu", "optional", _ENGINES, "an NVIDIA GPU with its driver")]
    found += [_tensorrt(board), _tensorrt_rtx(gpus), _pycuda(gpus)]
    return [*found, *_power_sensors(root, board)]


def _board(board: JetsonBoard) -> Iterator[Finding]:
    release = f"L4T {board.l4t or 'unknown'}, JetPack {board.jetpack or 'unknown'}"
    yield Finding("board", "found", f"{board.model}; {release}")
    if board.power_mode is None:
        yield Finding("power mode", "limited", "nvpmodel does not tell the power mode", "sudo nvpmodel -q")
    else:
        mode = f"{board.power_mode.name} (mode {board.power_mode.number})"
        yield Finding("power mode", "found", f"{mode}; a result is comparable within one mode only")
    clock = board.gpu_clock
    if clock is None:
        yield Finding("gpu clock", "limited", "the GPU's clock cannot be read")
    elif clock.locked:
        yield Finding("gpu clock", "found", f"locked at {clock.max_mhz:.0f} MHz")
    else:
        limits = f"moves between {clock.min_mhz:.0f} and {clock.max_mhz:.0f} MHz"
        yield Finding("gpu clock", "limited", limits, "time with --lock-clocks, which undoes it afterwards")
    if board.memory_mb is not None and board.available_mb is not None:
        yield Finding(
            "memory", "found", f"{board.available_mb:,} of {board.memory_mb:,} MB free, shared by CPU and GPU"
        )


def _gpu(gpu: Gpu) -> Finding:
    memory = f", {gpu.memory_mb:,} MB" if gpu.memory_mb and not gpu.on_jetson else ""
    driver = f", driver {gpu.driver}" if gpu.driver else ""
    return Finding("gpu", "found", f"{gpu.in_words}{memory}{driver}")


def _tensorrt(board: JetsonBoard | None) -> Finding:
    if importlib.util.find_spec("tensorrt") is not None:
        return Finding("tensorrt", "found", f"{_version('tensorrt')} {_ENGINES}")
    if board is None:
        return Finding("tensorrt", "optional", _ENGINES, "pip install tensorrt")
    if board.tensorrt is None:
        return Finding("tensorrt", "optional", _ENGINES, "sudo apt install nvidia-jetpack")
    beside = f"{_ENGINES}; JetPack's {board.tensorrt} is on the board, and this Python does not see it"
    if not board.has_tensorrt_for_python:
        return Finding("tensorrt", "optional", beside, f"sudo apt install python3-libnvinfer, and {_SYSTEM_PACKAGES}")
    return Finding("tensorrt", "optional", beside, _SYSTEM_PACKAGES)


def _tensorrt_rtx(gpus: Sequence[Gpu]) -> Finding:
    """Found where it can run; where no GPU here is served, what it can still do without one."""
    is_installed = importlib.util.find_spec("tensorrt_rtx") is not None
    obstacle = next((text for text in map(rtx_obstacle, gpus) if text is not None), None)
    if not is_installed:
        can_use = any(rtx_obstacle(gpu) is None for gpu in gpus)
        remedy = "pip install tensorrt-rtx" if can_use or not gpus else "use the target tensorrt here"
        return Finding("tensorrt_rtx", "optional", f"for target tensorrt_rtx: {obstacle or RTX_SUPPORT}", remedy)
    installed = _version("tensorrt_rtx")
    if obstacle is not None:
        return Finding("tensorrt_rtx", "limited", f"{installed}: {obstacle}", "use the target tensorrt here")
    if not gpus:
        return Finding("tensorrt_rtx", "found", f"{installed}, to parse and build; it runs on {RTX_SUPPORT}")
    return Finding("tensorrt_rtx", "found", f"{installed} for target tensorrt_rtx")


def _pycuda(gpus: Sequence[Gpu]) -> Finding:
    if importlib.util.find_spec("pycuda") is not None:
        return Finding("pycuda", "found", f"{_version('pycuda')}, memory and streams of the TensorRT targets")
    return Finding(
        "pycuda",
        "optional",
        "for targets tensorrt and tensorrt_rtx: memory, streams and events",
        "pip install pycuda (it is compiled with the CUDA toolkit's headers)"
        if gpus
        else "pip install pycuda, on the GPU",
    )


def _power_sensors(root: Path, board: JetsonBoard | None) -> Iterator[Finding]:
    meter, rails = find_power_meter(root), find_rails(root)
    if meter is not None:
        power = meter.power_mw()
        now = f", {power / 1000:.2f} W now" if power is not None else ""
        yield Finding("power sensor", "found", f"{meter.name}{now}: results will tell the energy of an inference")
    elif rails:
        names = ", ".join(rail.name for rail in rails)
        yield Finding("power sensor", "limited", f"{names}: not the whole module, so no energy is told")
    elif board is not None:
        yield Finding("power sensor", "limited", "no INA3221 or INA238 under /sys/class/hwmon, so no energy is told")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
