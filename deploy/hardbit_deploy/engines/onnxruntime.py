"""The ONNX Runtime engine on a CPU, and the attack graph on the same runtime.

Both run in micro-batches: a chunk of images goes through in slices small enough that one layer's activations are still
in the cache when the next layer reads them. Results do not depend on the slices; speed does.

Boundary: opens graphs, never changes them; what they execute is proved by `executed_kernels`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hardbit_deploy.bundle import Bundle
from hardbit_deploy.engines.base import Engine, Gradient, PrecisionReport
from hardbit_deploy.engines.directions import GradientWithDirections
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.suite import LOSSES

if TYPE_CHECKING:
    from hardbit_deploy.taps import LayerTaps

__all__ = [
    "OnnxRuntimeEngine",
    "OnnxRuntimeGradient",
    "executed_precision",
    "open_engine",
    "open_gradient",
    "open_smooth_gradient",
    "open_taps",
    "session_options",
]

PROVIDER = "CPUExecutionProvider"
# Measured with ResNet-8, ResNet-20 (3 x 32 x 32: best from 2 to 16) and LeNet (28 x 28: best from 16 to 64).
_BATCH_VALUES = 24 << 10
_LARGEST_BATCH = 32
_NO_LOSS = np.zeros(len(LOSSES), np.float32)


def open_engine(bundle: Bundle, threads: int = 1) -> OnnxRuntimeEngine:
    """The bundle's engine graph, not yet active."""
    manifest = bundle.manifest
    return OnnxRuntimeEngine(bundle.file(manifest.engine_file), manifest.input_shape, manifest.classes, threads=threads)


def open_gradient(bundle: Bundle, threads: int = 1) -> Gradient:
    """The bundle's attack graph, with the one in integers beside it where the bundle has one; not yet active."""
    exact, integer_file = _gradient(bundle, bundle.manifest.attack_file, threads), bundle.manifest.integer_attack_file
    if integer_file is None:
        return exact
    batch = integer_batch(bundle.manifest.input_shape)
    return GradientWithDirections(exact, _gradient(bundle, integer_file, threads, batch))


def open_smooth_gradient(bundle: Bundle, threads: int = 1) -> OnnxRuntimeGradient:
    """The bundle's attack graph through the smooth surrogate, which it must have; not yet active."""
    return _gradient(bundle, bundle.manifest.smooth_attack_file or "", threads)


def _gradient(bundle: Bundle, file: str, threads: int, batch: int | None = None) -> OnnxRuntimeGradient:
    manifest = bundle.manifest
    return OnnxRuntimeGradient(bundle.file(file), manifest.input_shape, manifest.classes, threads=threads, batch=batch)


def executed_precision(bundle: Bundle) -> PrecisionReport:
    """Run one image through the engine, with its own settings and profiling on, and read which kernels ran."""
    from hardbit_deploy.engines.executed_kernels import judge_kernels, profiled_kernels

    image = np.ascontiguousarray(bundle.images[:1])
    kernels = profiled_kernels(bundle.file(bundle.manifest.engine_file), image, bundle.manifest.classes)
    return judge_kernels(kernels, bundle.manifest.integer_nodes, bundle.manifest.float_nodes)


def open_taps(bundle: Bundle) -> LayerTaps:
    """The bundle's engine and canonical graph with their codes as further outputs."""
    from hardbit_deploy.engines.onnxruntime_taps import OnnxRuntimeTaps

    return OnnxRuntimeTaps(bundle)


def default_batch(input_shape: tuple[int, int, int]) -> int:
    """Images per run: the power of two that keeps a micro-batch's pixels at or below 24,576, between 1 and 32.

    Activations outgrow caches with the size of the images; below that the cost of a call counts, which is microseconds.
    """
    fitting = max(1, _BATCH_VALUES // math.prod(input_shape))
    return min(_LARGEST_BATCH, 1 << (fitting.bit_length() - 1))


def integer_batch(input_shape: tuple[int, int, int]) -> int:
    """The same for an attack graph whose cotangents are bytes: twice as many (ResNet-20: 4 % faster, and best)."""
    return min(_LARGEST_BATCH, 2 * default_batch(input_shape))


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """The one set of options under which engines are attacked, timed and proved.

    `session.set_denormal_as_zero` is left alone: it changes the floating-point mode of the thread that opens the first
    session, for good, and with it whatever else that process computes, training among it. The attack graph's seeds are
    free of scale, so that subnormal numbers are not met (measured: no difference on ResNet-20, logits times 1e-6).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


def open_session(
    path: Path, options: onnxruntime.SessionOptions, appended: bytes = b""
) -> onnxruntime.InferenceSession:
    """A session on the CPU alone; raises HardbitError where the graph cannot be loaded or another provider is used.

    `appended` is merged with the file's own graph (see `onnx_bytes`).

    The graph is handed over as bytes: from a path, ONNX Runtime 1.23 follows a graph's references to weights in other
    files to any place on the disk, where no digest of the bundle reaches.
    """
    try:
        session = onnxruntime.InferenceSession(path.read_bytes() + appended, options, providers=[PROVIDER])
    except Exception as error:  # the runtime raises a class of its own for every status code
        raise HardbitError(f"ONNX Runtime cannot load it ({error})", path.name, "build the bundle anew") from error
    if session.get_providers() != [PROVIDER]:
        raise HardbitError(
            f"the session runs on {', '.join(session.get_providers())}", path.name, f"install a runtime with {PROVIDER}"
        )
    return session


class OnnxRuntimeEngine(Engine):
    """Engine graph: input `image` uint8 (batch, channels, height, width), output `logits` float32 (batch, classes)."""

    def __init__(
        self,
        path: Path,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        threads: int = 1,
        batch: int | None = None,
    ) -> None:
        super().__init__(input_shape, classes)
        self._path = path
        self._threads = threads
        self._batch = batch or default_batch(input_shape)
        # A few micro-batches: as images fall, those that are left still fill one.
        self.images_in_flight = 4 * self._batch
        self._session: onnxruntime.InferenceSession | None = None

    @property
    def runtime(self) -> str:
        return f"onnxruntime {onnxruntime.__version__} {PROVIDER}"

    def activate_impl(self) -> None:
        session = open_session(self._path, session_options(self._threads))
        require_engine_signature(session, self._path, self.input_shape, self.classes)
        self._session = session

    def deactivate_impl(self) -> None:
        self._session = None

    def infer_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        run = _active(self._session).run
        parts = [run(["logits"], {"image": images[part]})[0] for part in _micro_batches(len(images), self._batch)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class OnnxRuntimeGradient(Gradient):
    """Attack graph.

    Inputs `image`, `onehot`, `engine_logits`, `own_logits`, `loss_weights`, `seed`; outputs `gradient` and `logits`.
    """

    def __init__(
        self,
        path: Path,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        threads: int = 1,
        batch: int | None = None,
    ) -> None:
        super().__init__(input_shape, classes)
        self._path = path
        self._threads = threads
        self._batch = batch or default_batch(input_shape)
        self._session: onnxruntime.InferenceSession | None = None
        self._onehot = np.eye(classes, dtype=np.float32)
        self._loss_weights: dict[str, NDArray[np.float32]] = dict(
            zip(LOSSES, np.eye(len(LOSSES), dtype=np.float32), strict=True)
        )

    def activate_impl(self) -> None:
        session = open_session(self._path, session_options(self._threads))
        per_class = "tensor(float)", (None, self.classes)
        inputs: _Signature = {
            "image": ("tensor(uint8)", (None, *self.input_shape)),
            "onehot": per_class,
            "engine_logits": per_class,
            "own_logits": ("tensor(bool)", ()),
            "loss_weights": ("tensor(float)", (len(LOSSES),)),
            "seed": per_class,
        }
        outputs: _Signature = {"gradient": ("tensor(float)", (None, *self.input_shape)), "logits": per_class}
        _require_signature(session, self._path, inputs, outputs)
        self._session = session

    def deactivate_impl(self) -> None:
        self._session = None

    def gradient_impl(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        engine_logits: NDArray[np.float32],
        loss: str,
    ) -> NDArray[np.float32]:
        weights = self._weights(loss)
        return self._run(["gradient"], images, weights, onehot=self._onehot[labels], logits=engine_logits)[0]

    def pullback_impl(self, images: NDArray[np.uint8], seeds: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._run(["gradient"], images, _NO_LOSS, seeds=seeds)[0]

    def ascend_impl(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], loss: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        outputs, weights = ["logits", "gradient"], self._weights(loss)
        logits, gradient = self._run(outputs, images, weights, onehot=self._onehot[labels], own_logits=True)
        return logits, gradient

    def logits_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run(["logits"], images, _NO_LOSS)[0]

    def _weights(self, loss: str) -> NDArray[np.float32]:
        if loss not in self._loss_weights:
            raise ValueError(f"loss {loss!r} is not one of {', '.join(self._loss_weights)}")
        return self._loss_weights[loss]

    def _run(
        self,
        outputs: list[str],
        images: NDArray[np.uint8],
        loss_weights: NDArray[np.float32],
        *,
        onehot: NDArray[np.float32] | None = None,
        logits: NDArray[np.float32] | None = None,
        own_logits: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> list[NDArray[np.float32]]:
        """`logits` are the engine's; what is left out is zero."""
        run = _active(self._session).run
        zeros = np.zeros((min(len(images), self._batch), self.classes), np.float32)
        own = np.asarray(own_logits)
        parts = []
        for part in _micro_batches(len(images), self._batch):
            nothing = zeros[: part.stop - part.start]
            feed = {
                "image": images[part],
                "onehot": nothing if onehot is None else onehot[part],
                "engine_logits": nothing if logits is None else logits[part],
                "own_logits": own,
                "loss_weights": loss_weights,
                "seed": nothing if seeds is None else seeds[part],
            }
            parts.append(run(outputs, feed))
        return parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]


def _micro_batches(images: int, batch: int) -> list[slice]:
    """Slices of at most `batch` images, as equal as can be: 17 images are 9 and 8, not 16 and 1."""
    count = -(-images // batch)
    edges = [images * part // count for part in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _active(session: onnxruntime.InferenceSession | None) -> onnxruntime.InferenceSession:
    """The session, also while another thread deactivates: a call either runs to its end or is refused."""
    if session is None:
        raise RuntimeError("the session has been closed")
    return session


# Type and shape of values by their names; None for a dimension that must be free.
_Signature = dict[str, tuple[str, tuple[int | None, ...]]]


def require_engine_signature(
    session: onnxruntime.InferenceSession, path: Path, input_shape: tuple[int, ...], classes: int
) -> None:
    """Raise HardbitError unless the graph takes any number of such images and gives a logit for each class."""
    _require_signature(
        session,
        path,
        {"image": ("tensor(uint8)", (None, *input_shape))},
        {"logits": ("tensor(float)", (None, classes))},
    )


def _require_signature(
    session: onnxruntime.InferenceSession, path: Path, inputs: _Signature, outputs: _Signature
) -> None:
    missing = []
    for wanted, values in ((inputs, session.get_inputs()), (outputs, session.get_outputs())):
        found = {value.name: value for value in values}
        for name, (kind, shape) in wanted.items():
            if name not in found or found[name].type != kind:
                missing.append(f"{name} {kind}")
            elif not _fits(found[name].shape, shape):
                missing.append(f"{name} of shape {_shape_text(shape)} (its own is {_shape_text(found[name].shape)})")
    if extra := [value.name for value in session.get_inputs() if value.name not in inputs]:
        raise HardbitError(f"asks for {', '.join(extra)}", path.name, "build the bundle with this hardbit")
    if missing:
        raise HardbitError(
            f"lacks {', '.join(missing)} among its inputs and outputs", path.name, "build the bundle with this hardbit"
        )


def _fits(found: list[int | str | None], wanted: tuple[int | None, ...]) -> bool:
    """Dimensions that a graph leaves open fit whatever is wanted of them; the engine's results are checked again."""
    if not found and wanted:
        return True  # a shape that is not declared at all
    return len(found) == len(wanted) and all(
        not isinstance(own, int) or own == size for own, size in zip(found, wanted, strict=True)
    )


def _shape_text(shape: Iterable[int | str | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
