"""Sequences of launches that are captured once and replayed: what PyCUDA has no names for, by the driver itself.

A network of fifty small kernels costs the host more time to launch than the device to run. Captured in a CUDA graph it
is one launch. The first run of a sequence is a plain one, for TensorRT prepares things in it that may not be captured;
the second is captured, and replayed from then on. What cannot be captured is run plainly, with the same results.

Boundary: does not know what is launched. The context must be current for all calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from hardbit_deploy.errors import HardbitError

__all__ = ["CudaGraph", "GraphDriver", "ReplayedLaunches", "load_graph_driver"]

# Only calls of the capturing thread are held to the rules of capture: other workers may allocate meanwhile.
_CAPTURE_THREAD_LOCAL = 1


class CaptureError(Exception):
    """The driver refused to capture; the stream is out of capture again."""


class GraphDriver:
    """The five calls of the driver that capture and replay; `library` is libcuda."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def capture(self, stream: int, enqueue: Callable[[], None]) -> CudaGraph:
        """Record what `enqueue` launches on the stream of this handle. Raises CaptureError, or what `enqueue` does."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_CAPTURE_THREAD_LOCAL))
        try:
            enqueue()
        except BaseException:
            # The stream must leave capture whatever happened; what was recorded is thrown away.
            self._library.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
            self._destroy_graph(graph)
            raise
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            no_flags = ctypes.c_ulonglong(0)
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, no_flags)
        finally:
            self._destroy_graph(graph)
        return CudaGraph(self, executable)

    def launch(self, executable: ctypes.c_void_p, stream: int) -> None:
        self._call("cuGraphLaunch", executable, ctypes.c_void_p(stream))

    def destroy(self, executable: ctypes.c_void_p) -> None:
        self._call("cuGraphExecDestroy", executable)

    def _destroy_graph(self, graph: ctypes.c_void_p) -> None:
        if graph.value:
            self._library.cuGraphDestroy(graph)

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise CaptureError(f"{name} gave error {status}")


class CudaGraph:
    """A captured sequence, ready to run."""

    def __init__(self, driver: GraphDriver, executable: ctypes.c_void_p) -> None:
        self._driver = driver
        self._executable = executable

    def launch(self, stream: int) -> None:
        """Raises HardbitError where the driver refuses."""
        try:
            self._driver.launch(self._executable, stream)
        except CaptureError as error:
            raise HardbitError(
                f"a captured graph cannot be launched ({error})", remedy="start the process anew"
            ) from error

    def destroy(self) -> None:
        self._driver.destroy(self._executable)


class ReplayedLaunches:
    """A sequence of launches with constant arguments on one stream, which is captured where that can be done."""

    def __init__(
        self, graphs: GraphDriver, stream: int, enqueue: Callable[[], None], can_be_captured: Callable[[], bool]
    ) -> None:
        self._graphs, self._stream, self._enqueue = graphs, stream, enqueue
        self._can_be_captured = can_be_captured
        self._graph: CudaGraph | None = None
        self._runs = 0
        self.refusal: str | None = None  # why it is not captured, where it was tried

    def run(self) -> None:
        """Launch everything once; returns before it has run."""
        self._runs += 1
        if self._runs == 2:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()

    def close(self) -> None:
        """Destroy the graph. Nothing of it may be running."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.destroy()

    def _capture(self) -> None:
        if not self._can_be_captured():
            self.refusal = "TensorRT says that this network cannot be captured"
            return
        try:
            self._graph = self._graphs.capture(self._stream, self._enqueue)
        except (CaptureError, HardbitError) as error:  # plain launches follow, which fail by themselves if they must
            self.refusal = str(error)


def load_graph_driver() -> GraphDriver:
    """Raises HardbitError where the driver's library is missing."""
    try:
        return GraphDriver(ctypes.CDLL("libcuda.so.1"))
    except OSError as error:
        raise HardbitError(f"the CUDA driver is missing ({error})", remedy="install the NVIDIA driver") from error
