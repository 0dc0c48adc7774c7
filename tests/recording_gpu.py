"""A GPU that is a list: PyCUDA's driver, libcuda's graphs and TensorRT, as far as hardbit uses them.

Device memory is memory of this process, so that addresses are real and kernels run on them. What is launched on a
stream waits there until the host synchronizes, as on a device: who reads or overwrites too early gets wrong numbers.
Every call is written into `Machine.calls`. Uses that a device punishes are refused or poisoned: calls without a current
context, addresses outside of live allocations, memory that was freed, forbidden calls while a stream is captured.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hardbit_deploy.engines import cuda_context, tensorrt
from hardbit_deploy.engines.cuda_graphs import GraphDriver
from host_kernels import host_kernels

POISON = 0xA5
HOST_THREADS = 4  # of a block, in place of those that are asked for
_EACH_VALUE = ("begin_climb", "begin_linf", "begin_l2", "step_linf")


class CudaError(Exception): ...


class CudaMemoryError(CudaError): ...


class CudaLogicError(CudaError): ...


class CudaCompileError(CudaError):
    stderr = "pgd_step.cu(1): error: planted"


@dataclass
class Machine:
    """One device and what was done with it. `memory` is in bytes; `capture_error` fails captures with this status."""

    memory: int = 1 << 30
    devices: int = 1
    built_for: tuple[int, int, int] = (12, 6, 0)
    serves: int = 12060
    init_error: str | None = None
    capture_error: int = 0
    compile_error: bool = False
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    streams: dict[int, Queue] = field(default_factory=dict)
    allocations: dict[int, Allocation] = field(default_factory=dict)
    graphs: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)
    pushed: threading.local = field(default_factory=threading.local)
    clock_ms: float = 0.0
    handles: int = 0x7000

    def note(self, *call: Any) -> None:
        self.calls.append(call)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def handle(self) -> int:
        self.handles += 16
        return self.handles

    def born(self, kind: str) -> None:
        self.live[kind] = self.live.get(kind, 0) + 1

    def gone(self, kind: str) -> None:
        self.live[kind] -= 1
        self.note(f"{kind}.destroy")

    def depth(self) -> int:
        return getattr(self.pushed, "depth", 0)

    def require_current(self) -> None:
        if self.depth() == 0:
            raise CudaLogicError("cuFunction failed: invalid device context")

    def require_no_capture(self) -> None:
        if any(stream.captured is not None for stream in self.streams.values()):
            raise CudaLogicError("operation not permitted when stream is capturing")

    def require_live(self, address: int, size: int) -> None:
        """An address must lie in an allocation that is still there, with all its bytes."""
        for start, allocation in self.allocations.items():
            if start <= address and address + size <= start + allocation.size:
                return
        raise CudaLogicError(f"{size} bytes at {address:#x} lie in no allocation")

    def enqueue(self, stream: int, name: str, work: Callable[[], None], *details: Any) -> None:
        self.require_current()
        self.note(name, stream, *details)
        target = self.streams[stream]
        (target.waiting if target.captured is None else target.captured).append(work)

    def used_memory(self) -> int:
        return sum(allocation.size for allocation in self.allocations.values())


class Allocation:
    def __init__(self, machine: Machine, size: int) -> None:
        machine.require_current()
        machine.require_no_capture()
        if machine.used_memory() + size > machine.memory:
            raise CudaMemoryError("cuMemAlloc failed: out of memory")
        self._machine, self.size = machine, size
        self._bytes = np.full(size + 256, POISON, np.uint8)
        start = self._bytes.ctypes.data
        self._start = start + -start % 256
        machine.allocations[self._start] = self
        machine.note("mem_alloc", size)

    def __int__(self) -> int:
        return self._start

    def free(self) -> None:
        self._machine.require_current()
        self._machine.require_no_capture()
        del self._machine.allocations[self._start]
        self._bytes[:] = POISON
        self._machine.note("mem_free")


class Queue:
    """What waits on a stream, or is recorded where it is captured."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None


class Stream:
    def __init__(self, machine: Machine, flags: int = 0) -> None:
        machine.require_current()
        self._machine, self._queue, self.handle = machine, Queue(), machine.handle()
        machine.streams[self.handle] = self._queue
        machine.born("stream")
        machine.note("stream", self.handle, flags)

    def synchronize(self) -> None:
        self._machine.require_current()
        self._machine.require_no_capture()
        self._machine.note("synchronize", self.handle)
        while self._queue.waiting:
            self._queue.waiting.pop(0)()

    def __del__(self) -> None:
        if hasattr(self, "_queue"):
            self._machine.gone("stream")


class Event:
    def __init__(self, machine: Machine) -> None:
        machine.require_current()
        self._machine, self.at_ms = machine, math.nan
        machine.born("event")

    def record(self, stream: Stream) -> None:
        self._machine.enqueue(stream.handle, "event.record", self._tick)

    def _tick(self) -> None:
        self.at_ms = self._machine.clock_ms

    def time_till(self, other: Event) -> float:
        return other.at_ms - self.at_ms

    def __del__(self) -> None:
        if hasattr(self, "at_ms"):
            self._machine.gone("event")


class Context:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def push(self) -> None:
        self._machine.pushed.depth = self._machine.depth() + 1

    def detach(self) -> None:
        self._machine.note("detach")

    def pop(self) -> None:
        self._machine.require_current()
        self._machine.pushed.depth -= 1


class Device:
    def __init__(self, machine: Machine, ordinal: int) -> None:
        self._machine = machine

    def name(self) -> str:
        return "Recording GPU"

    def compute_capability(self) -> tuple[int, int]:
        return (8, 7)

    def retain_primary_context(self) -> Context:
        self._machine.note("retain_primary_context")
        return Context(self._machine)


class Pinned:
    def __init__(self, machine: Machine, array: np.ndarray) -> None:
        self._machine, self.array = machine, array
        self.__array_interface__ = array.__array_interface__
        machine.born("pinned")
        machine.note("pagelocked_empty", array.nbytes)

    def free(self) -> None:
        self._machine.require_current()
        self._machine.gone("pinned")
        self.array.view(np.uint8)[:] = POISON


def _ignore(result: object) -> None: ...


def driver_of(machine: Machine) -> ModuleType:
    """A module like pycuda.driver."""
    driver = ModuleType("pycuda.driver")

    def init() -> None:
        machine.note("init")
        if machine.init_error:
            raise CudaLogicError(machine.init_error)

    def pagelocked_empty(shape: int, dtype: Any) -> np.ndarray:
        machine.require_current()
        array = np.frombuffer(bytearray([POISON]) * (shape * np.dtype(dtype).itemsize), np.uint8).view(dtype)
        return np.asarray(Pinned(machine, array))

    def copy(destination: int, source: int, size: int) -> Callable[[], None]:
        return lambda: _ignore(ctypes.memmove(destination, source, size))

    def memcpy_htod_async(destination: int, source: np.ndarray, stream: Stream) -> None:
        assert source.flags.c_contiguous
        machine.require_live(destination, source.nbytes)
        work = copy(destination, source.ctypes.data, source.nbytes)
        machine.enqueue(stream.handle, "htod", work, destination, source.nbytes)

    def memcpy_dtoh_async(destination: np.ndarray, source: int, stream: Stream) -> None:
        assert destination.flags.c_contiguous
        machine.require_live(source, destination.nbytes)
        work = copy(destination.ctypes.data, source, destination.nbytes)
        machine.enqueue(stream.handle, "dtoh", work, source, destination.nbytes)

    def device(ordinal: int) -> Device:
        return Device(machine, ordinal)

    device.count = lambda: machine.devices  # type: ignore[attr-defined]
    names: dict[str, Any] = {
        "Error": CudaError,
        "MemoryError": CudaMemoryError,
        "LogicError": CudaLogicError,
        "CompileError": CudaCompileError,
        "init": init,
        "get_version": lambda: machine.built_for,
        "get_driver_version": lambda: machine.serves,
        "Device": device,
        "Stream": lambda flags=0: Stream(machine, flags),
        "Event": lambda: Event(machine),
        "mem_alloc": lambda size: Allocation(machine, size),
        "pagelocked_empty": pagelocked_empty,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
    }
    driver.__dict__.update(names)
    return driver


def compiler_of(machine: Machine) -> ModuleType:
    """A module like pycuda.compiler, whose modules run the source on this machine's CPU."""
    compiler = ModuleType("pycuda.compiler")

    class Function:
        def __init__(self, name: str) -> None:
            self._name = name

        def prepare(self, formats: str) -> None:
            self._formats = formats

        def prepared_async_call(self, grid: Any, block: Any, stream: Stream, *arguments: int) -> None:
            for kind, value in zip(self._formats, arguments, strict=True):
                if kind == "P":
                    machine.require_live(value, 1)
            threads, name, formats = HOST_THREADS, self._name, self._formats
            # Kernels whose threads are values get as many threads in smaller blocks; the others a block for each row.
            columns = grid[0] * block[0] // threads if name in _EACH_VALUE else grid[0]
            work = partial(host_kernels().launch, name, (columns, grid[1]), threads, formats, *arguments)
            machine.enqueue(stream.handle, name, work, *arguments)

    class SourceModule:
        def __init__(self, source: str, nvcc: str, options: list[str], no_extern_c: bool) -> None:
            machine.require_current()
            assert no_extern_c, "the source names its own"
            machine.born("module")
            if machine.compile_error:
                raise CudaCompileError("nvcc compilation failed")
            machine.note("SourceModule", nvcc)

        def get_function(self, name: str) -> Function:
            return Function(name)

        def __del__(self) -> None:
            machine.gone("module")

    compiler.SourceModule = SourceModule  # type: ignore[attr-defined]
    return compiler


class GraphLibrary:
    """The functions of libcuda that `cuda_graphs` calls, with the types of arguments that ctypes hands over."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def _value(self, handle: ctypes.c_void_p) -> int:
        assert isinstance(handle, ctypes.c_void_p), "a bare int would be cut to 32 bits"
        return int(handle.value or 0)

    def cuStreamBeginCapture_v2(self, stream: Any, mode: ctypes.c_int) -> int:  # noqa: N802
        assert mode.value == 1, "other threads must be left alone"
        self._machine.note("begin capture", self._value(stream))
        self._machine.streams[self._value(stream)].captured = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        target = self._machine.streams[self._value(stream)]
        captured, target.captured = target.captured, None
        self._machine.note("end capture", self._value(stream))
        if self._machine.capture_error:
            return self._machine.capture_error
        return self._put(graph, captured, "graph")

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: ctypes.c_ulonglong) -> int:  # noqa: N802
        assert flags.value == 0
        return self._put(executable, list(self._machine.graphs[self._value(graph)]), "executable")

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:  # noqa: N802
        works = self._machine.graphs[self._value(executable)]
        self._machine.enqueue(self._value(stream), "graph launch", lambda: _ignore([work() for work in works]))
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        del self._machine.graphs[self._value(graph)]
        self._machine.gone("graph")
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:  # noqa: N802
        del self._machine.graphs[self._value(executable)]
        self._machine.gone("executable")
        return 0

    def _put(self, place: Any, works: Any, kind: str) -> int:
        handle = self._machine.handle() + (1 << 40)  # does not fit in 32 bits, as pointers do not
        self._machine.graphs[handle] = works
        self._machine.born(kind)
        place._obj.value = handle
        return 0


@dataclass(frozen=True)
class Network:
    """What a plan computes. Tensors are (type's name, shape, is_input), -1 for the batch."""

    tensors: Mapping[str, tuple[str, tuple[int, ...], bool]]
    compute: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    largest: int = 8
    workspace: int = 1000
    information: str = '{"Layers": []}'


_TYPES = {"FLOAT": np.float32, "INT8": np.int8, "BOOL": np.bool_}


def tensorrt_of(machine: Machine, networks: Mapping[bytes, Network], **faults: Any) -> ModuleType:
    """A module like tensorrt, which knows these plans. `faults`: `no_context`, `no_run`, `no_runtime`, `no_shape` are
    messages that TensorRT logs before it gives nothing."""
    trt = ModuleType("tensorrt")
    trt.__version__ = "10.3.0"

    class ILogger:
        def __init__(self) -> None: ...

    def complain(log: Any, fault: str) -> bool:
        if fault not in faults:
            return False
        log.log(SimpleNamespace(name="WARNING"), "never mind")
        log.log(SimpleNamespace(name="ERROR"), faults[fault])
        return True

    class ExecutionContext:
        def __init__(self, engine: Engine, log: Any) -> None:
            self._engine, self._log = engine, log
            self._addresses: dict[str, int] = {}
            self._batch = 0
            machine.born("execution context")

        def set_device_memory(self, address: int, size: int) -> None:
            assert address % 256 == 0
            assert size >= self._engine.network.workspace
            machine.require_live(address, size)
            self._workspace = address

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            if complain(self._log, "no_shape") or not 1 <= shape[0] <= self._engine.network.largest:
                return False
            assert self._batch in (0, shape[0]), "a context is for one batch size"
            self._batch = shape[0]
            return True

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert name in self._engine.network.tensors
            assert name not in self._addresses, "a context is for one set of addresses"
            assert address % 256 == 0
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            if complain(self._log, "no_run"):
                return False
            network = self._engine.network
            assert self._addresses.keys() == network.tensors.keys()
            views = {}
            for name, (kind, shape, _) in network.tensors.items():
                shape = tuple(self._batch if size == -1 else size for size in shape)
                dtype = np.dtype(_TYPES[kind])
                size = math.prod(shape) * dtype.itemsize
                machine.require_live(self._addresses[name], size)
                memory = (ctypes.c_uint8 * size).from_address(self._addresses[name])
                views[name] = np.frombuffer(memory, dtype).reshape(shape)

            def work() -> None:
                given = {name: views[name].copy() for name, tensor in network.tensors.items() if tensor[2]}
                for name, value in network.compute(given).items():
                    views[name][...] = value
                machine.clock_ms += 1.5

            machine.enqueue(stream, "execute", work, dict(self._addresses), self._batch)
            return True

        def __del__(self) -> None:
            machine.gone("execution context")

    class Engine:
        def __init__(self, network: Network, log: Any) -> None:
            self.network, self._log = network, log
            self.num_io_tensors = len(network.tensors)
            self.device_memory_size_v2 = network.workspace
            machine.born("engine")

        def get_tensor_name(self, place: int) -> str:
            return list(self.network.tensors)[place]

        def get_tensor_dtype(self, name: str) -> Any:
            return SimpleNamespace(name=self.network.tensors[name][0])

        def get_tensor_mode(self, name: str) -> str:
            return "INPUT" if self.network.tensors[name][2] else "OUTPUT"

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.network.tensors[name][1]

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            assert profile == 0
            shape = self.network.tensors[name][1]
            sizes = (1, 1, self.network.largest)
            return [tuple(batch if size == -1 else size for size in shape) for batch in sizes]

        def create_execution_context(self, strategy: str) -> ExecutionContext | None:
            assert strategy == "USER_MANAGED"
            machine.require_no_capture()
            return None if complain(self._log, "no_context") else ExecutionContext(self, self._log)

        def create_engine_inspector(self) -> Any:
            return SimpleNamespace(get_engine_information=lambda kind: self.network.information)

        def __del__(self) -> None:
            machine.gone("engine")

    class Runtime:
        def __init__(self, log: Any) -> None:
            machine.require_current()
            if complain(log, "no_runtime"):
                raise TypeError("factory function returned nullptr")
            self._log = log
            machine.born("runtime")

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if plan not in networks:
                self._log.log(SimpleNamespace(name="ERROR"), "the plan is of another version")
                return None
            return Engine(networks[plan], self._log)

        def __del__(self) -> None:
            if hasattr(self, "_log"):
                machine.gone("runtime")

    names: dict[str, Any] = {
        "ILogger": ILogger,
        "Runtime": Runtime,
        "TensorIOMode": SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        "ExecutionContextAllocationStrategy": SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        "LayerInformationFormat": SimpleNamespace(JSON="JSON"),
    }
    trt.__dict__.update(names)
    return trt


def install(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    """Put the machine in the place of PyCUDA, libcuda and nvcc; TensorRT is put there by whoever has its plans."""
    package = ModuleType("pycuda")
    package.__path__ = []
    modules = {"pycuda": package, "pycuda.driver": driver_of(machine), "pycuda.compiler": compiler_of(machine)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(tensorrt, "load_graph_driver", lambda: GraphDriver(GraphLibrary(machine)))
    monkeypatch.setattr(tensorrt, "find_nvcc", lambda: "/usr/bin/nvcc")
    cuda_context.open_device.cache_clear()
