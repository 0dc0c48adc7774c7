"""Memory of one execution: a single allocation on the device, and pinned buffers on the host.

All that an execution needs is laid out beforehand in one arena: running it allocates nothing, and addresses that a
captured graph holds stay good for as long as the arena does.

Boundary: does not know what the bytes mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Arena", "PinnedBuffers"]

ALIGNMENT = 256  # bytes: what cuMemAlloc gives, and TensorRT asks of the memory for its activations


class Arena:
    """Named regions of one device allocation, in the order given; made and freed in a current context."""

    def __init__(self, driver: Any, sizes: Mapping[str, int]) -> None:
        """`sizes` in bytes; raises pycuda.driver.MemoryError where the device has not so much left."""
        self._offsets: dict[str, int] = {}
        self.size = 0
        for name, size in sizes.items():
            self._offsets[name] = self.size
            self.size += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        self._allocation = driver.mem_alloc(self.size)
        self._start = int(self._allocation)

    def address(self, name: str) -> int:
        """Where a region starts on the device."""
        return self._start + self._offsets[name]

    def free(self) -> None:
        self._allocation.free()


class PinnedBuffers:
    """Page-locked arrays by name: copies to and from them run beside the host, and at full speed."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._arrays: dict[str, NDArray[Any]] = {}

    def add(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A buffer, zeroed, of at least one value."""
        flat: NDArray[Any] = self._driver.pagelocked_empty(max(1, math.prod(shape)), np.dtype(dtype))
        flat[:] = 0
        self._arrays[name] = flat
        return self.shaped(name, shape)

    def shaped(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The first values of a buffer, as an array of `shape`; no copy."""
        return self._arrays[name][: math.prod(shape)].reshape(shape)

    def names(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def free(self) -> None:
        """Give the pages back; arrays that are still held elsewhere must not be touched any more."""
        arrays, self._arrays = self._arrays, {}
        for array in arrays.values():
            allocation: Any = array.base  # PyCUDA's own object, which the array keeps alive
            allocation.free()
