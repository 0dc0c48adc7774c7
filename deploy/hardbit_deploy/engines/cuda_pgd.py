"""The kernels of pgd_step.cu: compiled for the device at hand, and launched by name with their arguments spelled out.

Boundary: launches; what runs between the kernels is decided by `device_pgd`.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from hardbit_deploy.engines.cuda_context import CudaDevice
from hardbit_deploy.errors import HardbitError

__all__ = ["COMPILER_OPTIONS", "SOURCE", "PgdKernels", "find_nvcc"]

SOURCE = Path(__file__).with_name("pgd_step.cu")
# Sums in float64 are rounded after every product, as numpy does; float32 is written as intrinsics anyway.
COMPILER_OPTIONS = ("-fmad=false",)
THREADS = 256  # of a block: MAX_THREADS of the source
# For PyCUDA: P is an address, i an int32.
_ARGUMENTS = {
    "begin_climb": "PPPi",
    "begin_linf": "PPi",
    "begin_l2": "PPPi",
    "judge": "PPPiiPPPP",
    "step_linf": "PPPPPiPP",
    "step_l2": "PPPPPiPP",
}
_USUAL_PLACE = "/usr/local/cuda/bin/nvcc"  # JetPack's, which is not on its PATH


def find_nvcc() -> str | None:
    """The CUDA compiler of this machine; None where there is none."""
    return shutil.which("nvcc") or shutil.which(_USUAL_PLACE)


class PgdKernels:
    """One method a kernel; arguments are addresses on the device, and all of them return before it has run."""

    def __init__(self, device: CudaDevice, nvcc: str, stream: Any, values: int, classes: int) -> None:
        """For images of so many values and classes, on a stream. PyCUDA keeps what it compiled on disk.

        The context must be current. Raises HardbitError where the compiler fails.
        """
        compiler: Any = importlib.import_module("pycuda.compiler")
        try:
            self._module = compiler.SourceModule(
                SOURCE.read_text(encoding="utf-8"), nvcc=nvcc, options=list(COMPILER_OPTIONS), no_extern_c=True
            )
        except device.driver.CompileError as error:
            last = (str(error.stderr or error).strip().splitlines() or ["no reason given"])[-1]
            raise HardbitError(
                f"nvcc cannot compile it ({last})", SOURCE.name, "install the CUDA toolkit of the driver's version"
            ) from error
        self._stream, self._values, self._classes = stream, values, classes
        self._functions = {name: self._module.get_function(name) for name in _ARGUMENTS}
        for name, arguments in _ARGUMENTS.items():
            self._functions[name].prepare(arguments)

    def begin(self, settings: int, best_margin: int, standing: int, batch: int) -> None:
        """Mark the climb's images as standing, and forget margins."""
        self._launch("begin_climb", (-(-batch // THREADS), 1), settings, best_margin, standing, batch)

    def begin_linf(self, batch: int, iterate: int, shadow: int) -> None:
        """The shadow int16 (batch, values) of an iterate."""
        self._launch("begin_linf", self._each_value(batch), iterate, shadow, self._values)

    def begin_l2(self, batch: int, iterate: int, pixels: int, delta: int) -> None:
        """How far an iterate is from its image, float32 (batch, values)."""
        self._launch("begin_l2", self._each_value(batch), iterate, pixels, delta, self._values)

    def judge(
        self,
        batch: int,
        *,
        logits: int,
        labels: int,
        iterate: int,
        standing: int,
        best_margin: int,
        best_logits: int,
        best_iterate: int,
    ) -> None:
        """Keep iterates that lost their label or have a lower margin than those before."""
        sizes = self._classes, self._values
        best = best_margin, best_logits, best_iterate
        self._launch("judge", (batch, 1), logits, labels, iterate, *sizes, standing, *best)

    def step(
        self,
        norm: str,
        batch: int,
        *,
        settings: int,
        gradient: int,
        pixels: int,
        standing: int,
        iterate: int,
        shadow: int,
        following: int,
    ) -> None:
        """Move standing images from `iterate` to `following`; the shadow moves in place."""
        name, grid = ("step_linf", self._each_value(batch)) if norm == "linf" else ("step_l2", (batch, 1))
        self._launch(name, grid, settings, gradient, pixels, standing, iterate, self._values, shadow, following)

    def _each_value(self, batch: int) -> tuple[int, int]:
        return -(-self._values // THREADS), batch

    def _launch(self, name: str, grid: tuple[int, int], *arguments: int) -> None:
        self._functions[name].prepared_async_call(grid, (THREADS, 1, 1), self._stream, *arguments)
