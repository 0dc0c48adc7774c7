"""Projected gradient descent on the device: engine, judge, attack graph and step follow one another on one stream.

The steps are captured once for a batch size and replayed from then on (see `device_pgd_steps`). What changes from climb
to climb, sizes and radii, is read by the kernels from the device. The host copies images in, waits once, and copies the
best iterates out.

Images that have fallen keep their place and are computed along with the others; what they give is not looked at.

Boundary: geometry and judgement are in pgd_step.cu; compares no results with the host's.
"""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import L2_SLACK
from hardbit_deploy.engines.cuda_graphs import GraphDriver
from hardbit_deploy.engines.cuda_memory import Arena, PinnedBuffers
from hardbit_deploy.engines.cuda_pgd import PgdKernels
from hardbit_deploy.engines.device_pgd_steps import ITERATES, ClimbSteps, own_name
from hardbit_deploy.engines.tensorrt_execution import NON_BLOCKING
from hardbit_deploy.engines.tensorrt_plan import LoadedPlan, as_codes
from hardbit_deploy.suite import LOSSES

__all__ = ["SETTINGS", "ClimbSizes", "DevicePgd", "settings_of"]

# `ClimbSettings` of pgd_step.cu.
SETTINGS = np.dtype(
    [
        ("rows", np.int32),
        ("radius", np.int32),
        ("size_units", np.int32),
        ("size_255", np.float32),
        ("eps_255", np.float64),
        ("inside_255", np.float64),
    ],
    align=True,
)
_UNITS = 64


@dataclass(frozen=True)
class ClimbSizes:
    """What a climb is of."""

    input_shape: tuple[int, int, int]
    classes: int

    @property
    def values(self) -> int:
        return math.prod(self.input_shape)


def settings_of(rows: int, norm: str, eps_255: float, size_255: float) -> NDArray[np.void]:
    """One `ClimbSettings`; steps of a box are rounded to 1/64 grey level and at least one, as on the host."""
    settings = np.zeros((), SETTINGS)
    settings["rows"] = rows
    settings["radius"] = min(math.floor(eps_255), 255)
    settings["size_units"] = max(1, round(min(size_255, 255.0) * _UNITS))
    settings["size_255"] = size_255
    settings["eps_255"] = eps_255
    settings["inside_255"] = eps_255 * L2_SLACK
    return settings


class DevicePgd:
    """Climbs of one engine along one attack graph; one at a time, from any thread."""

    def __init__(
        self, engine: LoadedPlan, gradient: LoadedPlan, graphs: GraphDriver, sizes: ClimbSizes, nvcc: str
    ) -> None:
        """The context must be current. Raises pycuda.driver.MemoryError or HardbitError, and leaves nothing behind."""
        self._engine, self._gradient, self._graphs, self._sizes = engine, gradient, graphs, sizes
        self._lock = threading.Lock()
        self._is_open = True
        self._steps: dict[tuple[int, str], ClimbSteps] = {}
        self._batches = tuple(batch for batch in engine.batches if batch <= gradient.batches[-1])
        self.images_in_flight = self._batches[-1]
        device = engine.device
        with contextlib.ExitStack() as stack:  # closed in reverse: graphs and contexts, host, arena, kernels, stream
            self._stream = device.driver.Stream(NON_BLOCKING)
            stack.callback(self._forget, "_stream")
            self._kernels = PgdKernels(device, nvcc, self._stream, sizes.values, sizes.classes)
            stack.callback(self._forget, "_kernels")
            self._arena = Arena(device.driver, self._layout(self.images_in_flight))
            stack.callback(self._arena.free)
            self._host = self._buffers(stack)
            stack.callback(self._close_steps)
            stack.callback(self._stream.synchronize)
            self._stack = stack.pop_all()

    def climb(
        self,
        images: NDArray[np.uint8],
        start: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        norm: Literal["linf", "l2"],
        eps_255: float,
        steps: int,
        size_255: float,
        loss: str,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """See `base.Climber`; at most `images_in_flight` images."""
        rows = len(images)
        if not 0 < rows <= self.images_in_flight:
            raise ValueError(f"{rows} images at a time, and this takes 1 to {self.images_in_flight}")
        if loss not in LOSSES:
            raise ValueError(f"loss {loss!r} is not one of {', '.join(LOSSES)}")
        with self._lock:
            if not self._is_open:
                raise RuntimeError("the engine has been closed")
            with self._engine.device.current():
                self._send(images, start, labels, settings_of(rows, norm, eps_255, size_255), loss)
                batch = next(batch for batch in self._batches if batch >= rows)
                self._at(batch, norm).run(steps)
                return self._fetch(rows)

    def close(self) -> None:
        """Wait for what runs, then let go of everything; a climb that follows is refused."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                with self._engine.device.current():
                    self._stack.close()

    def _layout(self, batch: int) -> dict[str, int]:
        """Bytes of each region. Both networks run in turns, on one workspace."""
        values, classes = batch * self._sizes.values, batch * self._sizes.classes
        sizes = {
            "settings": SETTINGS.itemsize,
            "pixels": values,
            "labels": 4 * batch,
            "standing": batch,
            "shadow": 4 * values,  # int16 in a box, float32 in a Euclidean ball
            "best_iterate": values,
            "best_logits": 4 * classes,
            "best_margin": 4 * batch,
            "logits": 4 * classes,
            **dict.fromkeys(ITERATES, values),
            "workspace": max(self._engine.workspace_bytes, self._gradient.workspace_bytes),
        }
        return sizes | {
            region: tensor.nbytes(batch)
            for name, tensor in self._gradient.tensors.items()
            if (region := own_name(name)) is not None
        }

    def _buffers(self, stack: contextlib.ExitStack) -> PinnedBuffers:
        host, batch = PinnedBuffers(self._engine.device.driver), self.images_in_flight
        stack.callback(host.free)
        host.add("settings", (SETTINGS.itemsize,), np.uint8)
        host.add("pixels", (batch, *self._sizes.input_shape), np.uint8)
        host.add("iterate_even", (batch, *self._sizes.input_shape), np.int8)
        host.add("labels", (batch,), np.int32)
        host.add("best_iterate", (batch, *self._sizes.input_shape), np.int8)
        host.add("best_logits", (batch, self._sizes.classes), np.float32)
        for name, tensor in self._gradient.tensors.items():
            if tensor.is_input and (region := own_name(name)) is not None:
                host.add(region, tensor.at(batch), tensor.dtype)
        return host

    def _send(
        self,
        images: NDArray[np.uint8],
        start: NDArray[np.uint8],
        labels: NDArray[np.int64],
        settings: NDArray[np.void],
        loss: str,
    ) -> None:
        """Rows that fill up the batch are copied too, whatever an earlier climb left in them."""
        rows, host = len(images), self._host
        host["settings"][:] = np.frombuffer(settings.tobytes(), np.uint8)
        host.shaped("pixels", images.shape)[...] = images
        host.shaped("iterate_even", start.shape)[...] = as_codes(start)
        host["labels"][:rows] = labels
        onehot = host.shaped("gradient/onehot", (self.images_in_flight, self._sizes.classes))
        onehot[...] = 0
        onehot[np.arange(rows), labels] = 1
        host["gradient/loss_weights"][:] = np.eye(len(LOSSES))[LOSSES.index(loss)]
        for name in host.names():
            if not name.startswith("best"):
                self._engine.device.driver.memcpy_htod_async(self._arena.address(name), host[name], self._stream)

    def _fetch(self, rows: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        codes = self._host.shaped("best_iterate", (rows, *self._sizes.input_shape))
        logits = self._host.shaped("best_logits", (rows, self._sizes.classes))
        for name, pinned in (("best_iterate", codes), ("best_logits", logits)):
            self._engine.device.driver.memcpy_dtoh_async(pinned, self._arena.address(name), self._stream)
        self._stream.synchronize()
        return codes.view(np.uint8) ^ np.uint8(128), logits.copy()

    def _at(self, batch: int, norm: str) -> ClimbSteps:
        if (batch, norm) not in self._steps:
            plans = self._engine, self._gradient
            self._steps[batch, norm] = ClimbSteps(
                *plans, self._graphs, self._kernels, self._arena, self._stream, batch, norm
            )
        return self._steps[batch, norm]

    def _close_steps(self) -> None:
        while self._steps:
            self._steps.popitem()[1].close()

    def _forget(self, name: str) -> None:
        """PyCUDA destroys streams and modules with their last reference."""
        delattr(self, name)
