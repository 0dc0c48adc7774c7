"""The GPU of this machine: its primary context, by PyCUDA, and its refusals as messages for people.

TensorRT and PyTorch use a device's primary context too, so all of them see the same memory. It is retained once for
each device and kept until the process ends: PyCUDA's way to release a primary context leaves it current in the thread
that does so, and making one again takes a good part of a second. It is current only inside `CudaDevice.current()`, in
whichever thread that is.

Boundary: allocates nothing and runs nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardbit_deploy.errors import HardbitError

__all__ = ["CudaDevice", "cuda_errors", "open_device"]

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_INSTALL = "install the NVIDIA driver and `pip install pycuda`"
_UPDATE = "update the NVIDIA driver, or install a PyCUDA that was built for it"
# What cuInit says where the driver's parts, or the driver and this process's CUDA, do not belong together.
_MISMATCHES = ("driver combination", "insufficient", "forward compatibility", "ptx was compiled with an unsupported")


@dataclass(frozen=True)
class CudaDevice:
    """A device whose primary context is retained; `driver` is the module pycuda.driver."""

    driver: Any
    context: Any
    name: str
    compute_capability: tuple[int, int]
    driver_text: str  # what the driver says of itself: the CUDA version that it serves and, on a PC, its own

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """The context is this thread's within the block; errors of CUDA come out of it as HardbitError."""
        with cuda_errors(self.driver, self.name):
            self.context.push()
            try:
                yield
            finally:
                self.context.pop()


@functools.cache
def open_device(ordinal: int = 0) -> CudaDevice:
    """The device of this number, one object for the whole process.

    Raises HardbitError where PyCUDA or the driver is missing, where there is no such device, and where the driver does
    not serve the CUDA version that PyCUDA was built for.
    """
    try:
        driver: Any = importlib.import_module("pycuda.driver")
    except ImportError as error:  # libcuda.so.1 is looked for on import
        raise HardbitError(f"PyCUDA cannot be used here ({error})", remedy=_INSTALL) from error
    with cuda_errors(driver, f"GPU {ordinal}"):
        driver.init()
        built_for, served = driver.get_version(), driver.get_driver_version()
        if built_for[0] > served // 1000:
            raise HardbitError(
                f"the driver serves {_cuda_version(served)}, PyCUDA was built for CUDA {built_for[0]}.{built_for[1]}",
                f"GPU {ordinal}",
                _UPDATE,
            )
        if ordinal >= driver.Device.count():
            raise HardbitError(f"there are {driver.Device.count()} GPUs", f"GPU {ordinal}", "name one of them")
        device = driver.Device(ordinal)
        context = device.retain_primary_context()
        # Its destructor would ask the driver to detach a primary context, which is an error.
        atexit.register(context.detach)
        return CudaDevice(driver, context, str(device.name()), tuple(device.compute_capability()), _driver_text(served))


def _cuda_version(served: int) -> str:
    return f"CUDA {served // 1000}.{served % 1000 // 10}"


def _driver_text(served: int) -> str:
    """A Jetson's driver is part of its system and has no such file."""
    try:
        own = re.search(r"\d+\.\d+(\.\d+)*", _DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        own = None
    return _cuda_version(served) + (f", driver {own.group()}" if own else "")


@contextlib.contextmanager
def cuda_errors(driver: Any, where: str) -> Iterator[None]:
    """Errors of PyCUDA as HardbitError: out of memory, no device, a driver that does not fit, anything else."""
    try:
        yield
    except driver.MemoryError as error:
        raise HardbitError(
            f"the GPU has not enough memory left ({error})", where, "use fewer workers, or build with a smaller batch"
        ) from error
    except driver.Error as error:
        text = str(error)
        if "no CUDA-capable device" in text or "no device" in text:
            raise HardbitError(
                f"no GPU was found ({text})", where, "run it where `nvidia-smi` or a Jetson's `tegrastats` shows one"
            ) from error
        if any(sign in text.lower() for sign in _MISMATCHES):
            raise HardbitError(f"driver and CUDA do not fit together ({text})", where, _UPDATE) from error
        raise HardbitError(
            f"CUDA failed ({text})", where, "after such an error the process must be started anew"
        ) from error
