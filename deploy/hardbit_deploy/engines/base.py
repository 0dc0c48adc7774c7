"""The protocol behind which every engine stands: checked once here, implemented in `*_impl` by a back end.

Boundary: knows no runtime and no file format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Climber", "Engine", "Gradient", "PrecisionReport", "PrecisionRow", "Target"]

Self = TypeVar("Self", bound="_Activated")


class _Activated(ABC):
    """Something with an input shape that is opened, used, and closed; may be opened again."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        self.input_shape = input_shape
        self.classes = classes
        self.is_active = False

    def activate(self: Self) -> Self:
        """Load what is needed to run. Does nothing where that has been done; returns self."""
        if not self.is_active:
            self.activate_impl()
            self.is_active = True
        return self

    def deactivate(self) -> None:
        """Let go of it. May be called from another thread: calls that follow there are refused."""
        if self.is_active:
            self.is_active = False
            self.deactivate_impl()

    def __enter__(self: Self) -> Self:
        return self.activate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deactivate()

    def _checked_images(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not self.is_active:
            raise RuntimeError(f"{type(self).__name__} is used before activate() or after deactivate()")
        if images.dtype != np.uint8 or images.shape[1:] != self.input_shape:
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (n, {self.input_shape})")
        return np.ascontiguousarray(images)

    def _checked_result(self, name: str, result: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        if result.dtype != np.float32 or result.shape != shape:
            raise RuntimeError(f"{type(self).__name__} gave {name} {result.dtype} {result.shape}, not float32 {shape}")
        return result

    @abstractmethod
    def activate_impl(self) -> None: ...

    @abstractmethod
    def deactivate_impl(self) -> None: ...


class Engine(_Activated):
    """The deployed classifier: bytes in, logits out. It alone decides what an image is taken for."""

    # How many images an iterative attack best moves at a time; None for all that it is given.
    images_in_flight: int | None = None
    # Milliseconds that the device computed for the last `infer`, without copies; None where it has no clock of its own.
    device_ms: float | None = None

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What executes it, with version and device, for example `onnxruntime 1.32.0 CPUExecutionProvider`."""

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, float32 (n, classes), of images uint8 (n, channels, height, width); n may be zero.

        Raises RuntimeError when it is not active, ValueError for images of another type or shape.
        """
        checked = self._checked_images(images)
        if not len(checked):
            return np.zeros((0, self.classes), np.float32)
        return self._checked_result("logits", self.infer_impl(checked), (len(checked), self.classes))

    def climber(self, gradient: Gradient) -> Climber | None:
        """Whole climbs along `gradient` where this engine runs; None where it cannot do that, and steps are taken one
        by one. It is closed with the engine."""
        return None

    @abstractmethod
    def infer_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]: ...


class Climber(Protocol):
    """All steps of projected gradient descent on the device: neither images nor gradients pass through the host."""

    # How many images it takes at a time.
    images_in_flight: int

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
        """The first iterate of each image that the engine gives another label, else the one of the lowest margin:
        bytes like `images`, uint8 (n, channels, height, width), and the engine's logits on them, float32 (n, classes).

        `start` like `images` lies in the ball and counts as an iterate, `labels` int64 (n,) name the classes, `loss` is
        `cross_entropy` or `margin`. The engine judges every iterate; the directions are taken at its logits. Iterates
        move as in `attacks.iterates`. Raises as `Engine.infer` does.
        """
        ...


class Gradient(_Activated):
    """The attack graph: directions for an attacker, from the network's twin that runs on the same machine."""

    def gradient(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        engine_logits: NDArray[np.float32],
        loss: str,
    ) -> NDArray[np.float32]:
        """d loss / d network input, float32 like `images`; the loss is taken at `engine_logits`, float32 (n, classes).

        `labels` is int64 (n,), `loss` is `cross_entropy` or `margin`. The array may be overwritten by the caller.
        Raises as `Engine.infer` does.
        """
        checked = self._checked_images(images)
        count = len(checked)
        if labels.shape != (count,) or engine_logits.shape != (count, self.classes):
            raise ValueError(f"{count} images with labels {labels.shape} and logits {engine_logits.shape}")
        if not count:
            return np.zeros(checked.shape, np.float32)
        gradient = self.gradient_impl(checked, labels, engine_logits, loss)
        return self._checked_result("a gradient", gradient, checked.shape)

    def pullback(self, images: NDArray[np.uint8], seeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vector-Jacobian products, float32 like `images`: row by row, d (seed . logits) / d network input.

        `seeds` float32 (n, classes) are the derivatives of any losses by the logits (see `attacks.objectives`). One
        grey level is 1/256 of the network's input. The array may be overwritten by the caller. Raises as `Engine.infer`
        does.
        """
        checked = self._checked_images(images)
        count = len(checked)
        if seeds.dtype != np.float32 or seeds.shape != (count, self.classes):
            raise ValueError(f"{count} images with seeds {seeds.dtype} {seeds.shape}")
        if not count:
            return np.zeros(checked.shape, np.float32)
        return self._checked_result("a product", self.pullback_impl(checked, seeds), checked.shape)

    def ascend(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], loss: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Own logits (n, classes) and the gradient of the loss at them, float32 like `images`, in one run.

        Stands for `Engine.infer` followed by `gradient` wherever `logits` has been seen to give the engine's very bits.
        The gradient may be rounded more coarsely than that of `gradient`: what counts is where it points.
        Raises as `gradient` does.
        """
        checked = self._checked_images(images)
        count = len(checked)
        if labels.shape != (count,):
            raise ValueError(f"{count} images with labels {labels.shape}")
        if not count:
            return np.zeros((0, self.classes), np.float32), np.zeros(checked.shape, np.float32)
        logits, gradient = self.ascend_impl(checked, labels, loss)
        return (
            self._checked_result("logits", logits, (count, self.classes)),
            self._checked_result("a gradient", gradient, checked.shape),
        )

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The attack graph's own forward pass, float32 (n, classes): what the engine is compared with."""
        checked = self._checked_images(images)
        if not len(checked):
            return np.zeros((0, self.classes), np.float32)
        return self._checked_result("logits", self.logits_impl(checked), (len(checked), self.classes))

    @abstractmethod
    def gradient_impl(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        engine_logits: NDArray[np.float32],
        loss: str,
    ) -> NDArray[np.float32]: ...

    @abstractmethod
    def pullback_impl(self, images: NDArray[np.uint8], seeds: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def ascend_impl(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], loss: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """In two runs, for a back end that cannot do it in one."""
        logits = self.logits_impl(images)
        return logits, self.gradient_impl(images, labels, logits, loss)

    @abstractmethod
    def logits_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Target:
    """An engine and its gradients, opened for one thread of work; `smooth` is the one through the smooth surrogate."""

    engine: Engine
    gradient: Gradient
    smooth: Gradient | None = None

    def activate(self) -> Target:
        for part in self._parts():
            part.activate()
        return self

    def deactivate(self) -> None:
        for part in self._parts():
            part.deactivate()

    def _parts(self) -> list[Engine | Gradient]:
        return [part for part in (self.engine, self.gradient, self.smooth) if part is not None]

    def __enter__(self) -> Target:
        return self.activate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deactivate()


@dataclass(frozen=True)
class PrecisionRow:
    """What was executed for one layer that the manifest declares integer."""

    name: str
    op: str
    executed: str  # the kernel, or "" where none was found
    operand_types: tuple[str, ...]
    provider: str
    integer: bool

    def to_document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "executed": self.executed,
            "operand_types": list(self.operand_types),
            "provider": self.provider,
            "integer": self.integer,
        }


@dataclass(frozen=True)
class PrecisionReport:
    """`integer` if every declared layer ran on an integer kernel and nothing heavy ran in float undeclared; `float` if
    the latter holds and no layer was declared integer."""

    status: Literal["integer", "float", "wrong"]
    nodes: tuple[PrecisionRow, ...]
    problems: tuple[str, ...]
    declared_float: tuple[str, ...] = ()  # heavy layers that run in float, as the manifest declares

    def to_document(self) -> dict[str, Any]:
        """The `precision` part of a result."""
        return {
            "status": self.status,
            "nodes": [row.to_document() for row in self.nodes],
            "problems": list(self.problems),
            "declared_float": list(self.declared_float),
        }
