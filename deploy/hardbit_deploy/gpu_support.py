"""Which NVIDIA GPUs this machine shows, and which of them TensorRT and TensorRT for RTX serve.

TensorRT for RTX serves a short list: compute capability 7.5, 8.0, 8.6, 8.9 and 12.x, no Jetson, no plugins.
A GPU that it does not serve is refused here, in words, and not by a builder that fails after minutes.

Boundary: asks nvidia-smi and the board's files. Opens no device.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.jetson import describe_jetson

__all__ = ["RTX_SUPPORT", "Gpu", "refuse_unsupported_gpu", "rtx_obstacle", "visible_gpus"]

RTX_SUPPORT = "compute capability 7.5, 8.0, 8.6, 8.9 and 12.x; no Jetson, no 9.0, no plugins"
_RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9))
_RTX_MAJOR = 12
_TIMEOUT_S = 20


@dataclass(frozen=True)
class Gpu:
    """One GPU; `driver` and `memory_mb` are None where nobody says."""

    name: str
    compute_capability: tuple[int, int]
    driver: str | None = None
    memory_mb: int | None = None
    on_jetson: bool = False

    @property
    def in_words(self) -> str:
        """Such as `NVIDIA H100 (compute capability 9.0)`."""
        major, minor = self.compute_capability
        return f"{self.name} (compute capability {major}.{minor})"


def visible_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi tells of, or the one of a Jetson, known by its name; none where there is neither."""
    board = describe_jetson(root)
    if board is not None:
        capability = board.compute_capability
        return (Gpu(board.model, capability, memory_mb=board.memory_mb, on_jetson=True),) if capability else ()
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    fields = "name,compute_cap,driver_version,memory.total"
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    gpus = (_parse(line) for line in finished.stdout.splitlines()) if finished.returncode == 0 else ()
    return tuple(gpu for gpu in gpus if gpu is not None)


def rtx_obstacle(gpu: Gpu) -> str | None:
    """Why TensorRT for RTX does not serve this GPU, in words; None where it does."""
    if gpu.on_jetson:
        return f"TensorRT for RTX does not run on a Jetson, and this is {gpu.name}"
    if gpu.compute_capability in _RTX_CAPABILITIES or gpu.compute_capability[0] == _RTX_MAJOR:
        return None
    return f"TensorRT for RTX does not serve {gpu.in_words}, only {RTX_SUPPORT}"


def refuse_unsupported_gpu(target: str, gpu: Gpu) -> None:
    """Raise HardbitError where the runtime of `target`, "tensorrt" or "tensorrt_rtx", does not serve this GPU."""
    obstacle = rtx_obstacle(gpu) if target == "tensorrt_rtx" else None
    if obstacle is not None:
        raise HardbitError(obstacle, where=f"target {target}", remedy='build the bundle for the target "tensorrt"')


def _parse(line: str) -> Gpu | None:
    """One line of nvidia-smi; None for a device that tells no compute capability."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != 4:
        return None
    name, capability, driver, memory = values
    major, dot, minor = capability.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        return None
    return Gpu(name, (int(major), int(minor)), driver, int(memory) if memory.isdigit() else None)
