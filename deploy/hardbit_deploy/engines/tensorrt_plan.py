"""A TensorRT plan, loaded: what its tensors are, and execution contexts at one batch size each.

The module is given by its name, `tensorrt` or `tensorrt_rtx`; only names that TensorRT 10.3 to 11.4 and TensorRT for
RTX share are used.

A context keeps what it prepared for its last shape, and a captured graph keeps addresses: so a context here is made for
one batch size and for one set of addresses, and neither ever changes.

Boundary: builds nothing (see `tensorrt_build`) and owns no memory of tensors.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.engines.cuda_context import CudaDevice
from hardbit_deploy.errors import HardbitError

__all__ = ["LoadedPlan", "Signature", "Tensor", "as_codes", "import_runtime", "require_tensors"]

# Types and shapes of tensors by their names; -1 is the batch.
Signature = dict[str, tuple[type[np.generic], tuple[int, ...]]]

_DTYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
_INSTALL = {
    "tensorrt": "use a JetPack with TensorRT 10.3 or later, or `pip install tensorrt`",
    "tensorrt_rtx": "`pip install tensorrt-rtx`",
}
_KEPT_ERRORS = 3
_BUILD_AGAIN = "build it anew on this machine"


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan; -1 in `shape` is the batch."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_input: bool

    @property
    def is_batched(self) -> bool:
        return -1 in self.shape

    def at(self, batch: int) -> tuple[int, ...]:
        """Its shape at a batch size."""
        return tuple(batch if size == -1 else size for size in self.shape)

    def nbytes(self, batch: int) -> int:
        return math.prod(self.at(batch)) * self.dtype.itemsize


def import_runtime(module: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`; raises HardbitError where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HardbitError(f"{module} cannot be used here ({error})", remedy=_INSTALL.get(module, "")) from error


class LoadedPlan:
    """A deserialized engine; the device's context must be current for all calls."""

    def __init__(self, device: CudaDevice, module: str, plan: bytes, where: str) -> None:
        """`where` names it in messages. Raises HardbitError where TensorRT does not take the plan."""
        self.device = device
        self.where = where
        self._trt = trt = import_runtime(module)
        self._closers: list[Callable[[], None]] = []
        self._log = _error_log(trt)
        try:
            self._runtime = trt.Runtime(self._log)
        except (TypeError, RuntimeError) as error:  # what its bindings make of a runtime that does not start
            raise self._refusal("TensorRT does not start", error) from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refusal("TensorRT cannot load the plan")
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._tensor(name) for name in names}
        self.workspace_bytes = int(self._engine.device_memory_size_v2)
        self.batches = self._batches()

    @property
    def version(self) -> str:
        return f"{self._trt.__name__} {self._trt.__version__}"

    def information(self) -> str:
        """What TensorRT's inspector tells of all layers, as JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def batch_for(self, rows: int) -> int:
        """The smallest batch size that holds so many rows, or the largest of all."""
        return next((batch for batch in self.batches if batch >= rows), self.batches[-1])

    def context(self, batch: int, addresses: Mapping[str, int], workspace: int) -> Any:
        """An execution context for inputs of `batch` images at these addresses; `workspace` is that of device memory of
        `workspace_bytes`, which contexts on one stream may share. Raises HardbitError where TensorRT refuses."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._refusal("TensorRT gives no execution context")
        context.set_device_memory(workspace, self.workspace_bytes)
        for tensor in self.tensors.values():
            if tensor.is_input and tensor.is_batched and not context.set_input_shape(tensor.name, tensor.at(batch)):
                raise self._refusal(f"TensorRT does not take {tensor.name} of shape {tensor.at(batch)}")
            if not context.set_tensor_address(tensor.name, addresses[tensor.name]):
                raise self._refusal(f"TensorRT does not take the address of {tensor.name}")
        return context

    def enqueue(self, context: Any, stream: int) -> None:
        """Run a context on the stream of this handle; raises HardbitError where TensorRT refuses."""
        if not context.execute_async_v3(stream):
            raise self._refusal("TensorRT does not run it")

    def on_close(self, closer: Callable[[], None]) -> None:
        """Call `closer`, whose contexts are of this plan, before the plan goes."""
        self._closers.append(closer)

    def close(self) -> None:
        """Whatever was made of it first, then the engine, then its runtime."""
        while self._closers:
            self._closers.pop()()
        self._engine = None
        self._runtime = None

    def _tensor(self, name: str) -> Tensor:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise HardbitError(f"{name} is {kind}", self.where, "build the bundle with this hardbit")
        is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
        return Tensor(name, np.dtype(_DTYPES[kind]), shape, is_input)

    def _batches(self) -> tuple[int, ...]:
        """Powers of two up to the profile's largest batch, and that; a batch between them is filled up."""
        batched = next((tensor for tensor in self.tensors.values() if tensor.is_input and tensor.is_batched), None)
        if batched is None:
            raise HardbitError(
                "takes no batch of a size of one's choice", self.where, "build the bundle with this hardbit"
            )
        axis = batched.shape.index(-1)
        least, _, most = (int(shape[axis]) for shape in self._engine.get_tensor_profile_shape(batched.name, 0))
        powers = [1 << power for power in range(most.bit_length()) if least < 1 << power < most]
        return tuple(sorted({least, *powers, most}))

    def _refusal(self, what: str, error: Exception | None = None) -> HardbitError:
        said = [*self._log.errors[-_KEPT_ERRORS:], *([str(error)] if error else [])]
        self._log.errors.clear()
        text = " ".join(said)
        remedy = _BUILD_AGAIN
        if "out of memory" in text.lower() or "outofmemory" in text.lower():
            remedy = "use fewer workers, or build with a smaller batch"
        elif "CUDA initialization failure" in text or "driver" in text.lower():
            remedy = "update the NVIDIA driver, or install the TensorRT that was made for it"
        return HardbitError(f"{what} ({text})" if text else what, self.where, remedy)


def require_tensors(plan: LoadedPlan, wanted: Signature) -> None:
    """Raise HardbitError unless the plan's tensors include these, of such types and shapes, and no further inputs."""
    lacking = []
    for name, (dtype, shape) in wanted.items():
        tensor = plan.tensors.get(name)
        if tensor is None or tensor.dtype != dtype:
            lacking.append(f"{name} {np.dtype(dtype)}")
        elif tensor.shape != shape:
            lacking.append(f"{name} of shape {shape} (its own is {tensor.shape})")
    extra = [name for name, tensor in plan.tensors.items() if tensor.is_input and name not in wanted]
    if lacking or extra:
        said = [f"lacks {', '.join(lacking)}"] if lacking else []
        said += [f"asks for {', '.join(extra)}"] if extra else []
        raise HardbitError(" and ".join(said), plan.where, "build the bundle with this hardbit")


def _error_log(trt: Any) -> Any:
    """A logger of TensorRT that keeps errors in its list `errors`."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # its bindings ask for this very call
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(message)

    return ErrorLog()


def as_codes(images: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Bytes as the engine takes them, int8 = byte - 128, of the same shape."""
    return (images ^ np.uint8(128)).view(np.int8)
