"""Runs a plan on arrays of the host: in batches, each one captured graph, with pinned buffers at either end.

Rows are filled up to the next batch size of the plan, so that an attack whose images fall one by one meets a handful
of sizes and not every number up to the largest. What fills up is computed and thrown away.

Boundary: knows tensors by their names, not what they mean.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.engines.cuda_graphs import GraphDriver, ReplayedLaunches
from hardbit_deploy.engines.cuda_memory import Arena, PinnedBuffers
from hardbit_deploy.engines.tensorrt_plan import LoadedPlan

__all__ = ["NON_BLOCKING", "PlanExecution", "capturable"]

NON_BLOCKING = 1  # a stream that does not wait for the default one (CU_STREAM_NON_BLOCKING)
_WORKSPACE = "workspace"


class PlanExecution:
    """A plan with all memory that it needs, on a stream of its own; one run at a time, from any thread."""

    def __init__(self, plan: LoadedPlan, graphs: GraphDriver) -> None:
        """The plan's device must have memory for its largest batch: raises pycuda.driver.MemoryError, or HardbitError,
        and leaves nothing behind. The context must be current."""
        self._plan, self._graphs = plan, graphs
        self._lock = threading.Lock()
        self._is_open = True
        self._launches: dict[int, _Launches] = {}
        self.device_ms = 0.0  # of the last run: what the device computed, without copies
        driver, largest = plan.device.driver, plan.batches[-1]
        sizes = {name: tensor.nbytes(largest) for name, tensor in plan.tensors.items()}
        with contextlib.ExitStack() as stack:  # closed in reverse: launches, host, arena, events, stream
            self._stream = driver.Stream(NON_BLOCKING)
            stack.callback(self._forget, "_stream")
            self._started, self._ended = driver.Event(), driver.Event()
            stack.callback(self._forget, "_started", "_ended")
            self._arena = Arena(driver, {**sizes, _WORKSPACE: plan.workspace_bytes})
            stack.callback(self._arena.free)
            self._host = PinnedBuffers(driver)
            stack.callback(self._host.free)
            for name, tensor in plan.tensors.items():
                self._host.add(name, tensor.at(largest), tensor.dtype)
            stack.callback(self._close_launches)
            stack.callback(self._stream.synchronize)
            self._stack = stack.pop_all()

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Outputs for inputs by name: batched ones (n, ...), others whole. Raises RuntimeError after close(), and
        HardbitError where device or TensorRT fail."""
        tensors = self._plan.tensors
        rows = next(len(array) for name, array in feeds.items() if tensors[name].is_batched)
        results = [np.empty(tensors[name].at(rows), tensors[name].dtype) for name in outputs]
        with self._lock:
            if not self._is_open:
                raise RuntimeError("the execution has been closed")
            self.device_ms = 0.0
            with self._plan.device.current():
                largest = self._plan.batches[-1]
                for first in range(0, rows, largest):
                    part = slice(first, min(first + largest, rows))
                    fed = {name: array[part] if tensors[name].is_batched else array for name, array in feeds.items()}
                    self._run_batch(fed, part.stop - first, dict(zip(outputs, (r[part] for r in results), strict=True)))
        return results

    def close(self) -> None:
        """Wait for what runs, then let go of everything; a run that follows is refused."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                with self._plan.device.current():
                    self._stack.close()

    def _run_batch(self, feeds: Mapping[str, NDArray[Any]], rows: int, results: Mapping[str, NDArray[Any]]) -> None:
        driver, stream, tensors = self._plan.device.driver, self._stream, self._plan.tensors
        for name, array in feeds.items():
            pinned = self._host.shaped(name, tensors[name].at(rows))
            pinned[...] = array
            driver.memcpy_htod_async(self._arena.address(name), pinned, stream)
        launches = self._at(self._plan.batch_for(rows))
        self._started.record(stream)
        launches.replayed.run()
        self._ended.record(stream)
        copies = {name: self._host.shaped(name, tensors[name].at(rows)) for name in results}
        for name, pinned in copies.items():
            driver.memcpy_dtoh_async(pinned, self._arena.address(name), stream)
        stream.synchronize()
        self.device_ms += self._started.time_till(self._ended)
        for name, pinned in copies.items():
            results[name][...] = pinned

    def _at(self, batch: int) -> _Launches:
        if batch not in self._launches:
            self._launches[batch] = _Launches(self._plan, self._graphs, self._stream, batch, self._arena)
        return self._launches[batch]

    def _close_launches(self) -> None:
        while self._launches:
            self._launches.popitem()[1].close()

    def _forget(self, *names: str) -> None:
        """PyCUDA destroys streams and events with their last reference."""
        for name in names:
            delattr(self, name)


def capturable(context: Any, stream: int) -> bool:
    """What TensorRT for RTX says of that; the others do not say, and whoever captures finds out."""
    ask = getattr(context, "is_stream_capturable", None)
    return ask is None or bool(ask(stream))


class _Launches:
    """The plan at one batch size."""

    def __init__(self, plan: LoadedPlan, graphs: GraphDriver, stream: Any, batch: int, arena: Arena) -> None:
        addresses = {name: arena.address(name) for name in plan.tensors}
        context = plan.context(batch, addresses, arena.address(_WORKSPACE))
        self._context, handle = context, int(stream.handle)
        self.replayed = ReplayedLaunches(
            graphs,
            handle,
            lambda: plan.enqueue(self._context, handle),
            lambda: capturable(self._context, handle),
        )

    def close(self) -> None:
        """The graph first: it was captured from the context."""
        self.replayed.close()
        del self.replayed, self._context
