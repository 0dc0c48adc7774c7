"""Engine and attack graph on an NVIDIA GPU: TensorRT, or TensorRT for RTX, by the bundle's target.

A plan is built on this machine when a bundle is first opened, and kept (see `plan_cache`). The engine's is tuned for
single images, which is how it is timed, the attack graph's for full batches; both take any number up to the same
largest batch. The plan that is attacked is the plan that is timed, and `runtime` names it.

Boundary: opens and runs; builds by `tensorrt_build`, proves by `tensorrt_precision`.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.bundle import Bundle
from hardbit_deploy.engines.base import Engine, Gradient, PrecisionReport
from hardbit_deploy.engines.cuda_context import CudaDevice, open_device
from hardbit_deploy.engines.cuda_graphs import GraphDriver, load_graph_driver
from hardbit_deploy.engines.cuda_pgd import find_nvcc
from hardbit_deploy.engines.device_pgd import ClimbSizes, DevicePgd
from hardbit_deploy.engines.plan_cache import PlanKey, StoredPlan, default_folder, plan_for
from hardbit_deploy.engines.tensorrt_build import BuildSettings, build_plan, runtime_versions
from hardbit_deploy.engines.tensorrt_execution import PlanExecution
from hardbit_deploy.engines.tensorrt_plan import LoadedPlan, Signature, as_codes, require_tensors
from hardbit_deploy.engines.tensorrt_precision import judge_layers, layers_from_inspector
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gpu_support import Gpu, refuse_unsupported_gpu
from hardbit_deploy.jetson import describe_jetson
from hardbit_deploy.suite import LOSSES

if TYPE_CHECKING:
    from hardbit_deploy.taps import LayerTaps

__all__ = [
    "TensorRTEngine",
    "TensorRTGradient",
    "executed_precision",
    "open_engine",
    "open_gradient",
    "open_smooth_gradient",
    "open_taps",
]

_LOG = logging.getLogger(__name__)
_LARGEST_BATCH = 256
_BATCH_VALUES = 4 << 20  # pixels of a batch, at most: 256 images of 3 x 32 x 32, 16 of 3 x 224 x 224


def open_engine(bundle: Bundle, threads: int = 1) -> TensorRTEngine:
    """The bundle's engine graph, not yet active; `threads` are a matter of CPUs."""
    return TensorRTEngine(bundle)


def open_gradient(bundle: Bundle, threads: int = 1) -> TensorRTGradient:
    """The bundle's attack graph, not yet active."""
    return TensorRTGradient(bundle, bundle.manifest.attack_file)


def open_smooth_gradient(bundle: Bundle, threads: int = 1) -> TensorRTGradient:
    """The bundle's attack graph through the smooth surrogate, which it must have; not yet active."""
    return TensorRTGradient(bundle, bundle.manifest.smooth_attack_file or "")


def open_taps(bundle: Bundle) -> LayerTaps:
    """Raises HardbitError: a TensorRT engine is one piece, which keeps the codes of its layers to itself."""
    raise HardbitError(
        "a TensorRT engine does not show the codes of its layers",
        bundle.manifest.name,
        "compare layers on a bundle of the same network for onnxruntime",
    )


def executed_precision(bundle: Bundle) -> PrecisionReport:
    """Load the plan that `open_engine` runs, and judge the layers that TensorRT's inspector lists of it."""
    device, manifest = open_device(), bundle.manifest
    stored = _stored_plan(bundle, manifest.engine_file, device, _engine_settings(manifest.input_shape))
    with device.current(), ExitStack() as stack:
        plan = LoadedPlan(device, manifest.target, stored.plan, manifest.engine_file)
        stack.callback(plan.close)
        layers = layers_from_inspector(plan.information())
    return judge_layers(layers, manifest.integer_nodes, manifest.float_nodes)


class TensorRTEngine(Engine):
    """Engine graph: input `image` int8 (batch, channels, height, width) = byte - 128, output `logits` float32."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.manifest.input_shape, bundle.manifest.classes)
        self._bundle = bundle
        self._opened: _Opened | None = None
        self._climbers: dict[LoadedPlan, DevicePgd | None] = {}
        # A few batches: as images fall, those that are left still fill one.
        self.images_in_flight = 4 * _largest_batch(self.input_shape)

    @property
    def runtime(self) -> str:
        opened = _active(self._opened)
        major, minor = opened.device.compute_capability
        return f"{opened.plan.version} on {opened.device.name} sm_{major}{minor}, plan {opened.plan_sha256[:12]}"

    def activate_impl(self) -> None:
        signature: Signature = {
            "image": (np.int8, (-1, *self.input_shape)),
            "logits": (np.float32, (-1, self.classes)),
        }
        file = self._bundle.manifest.engine_file
        self._opened = _Opened.of(self._bundle, file, _engine_settings(self.input_shape), signature)

    def deactivate_impl(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()  # climbers first: they are of its plan
        self._climbers.clear()

    def infer_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        execution = _active(self._opened).execution
        logits: NDArray[np.float32] = execution.run({"image": as_codes(images)}, ["logits"])[0]
        self.device_ms = execution.device_ms
        return logits

    def climber(self, gradient: Gradient) -> DevicePgd | None:
        """Climbs on the device along an active attack graph of this back end; None along another gradient, and where no
        CUDA compiler is found, which the log tells. Raises HardbitError where the device has not enough memory."""
        opened = _active(self._opened)
        if not isinstance(gradient, TensorRTGradient) or not gradient.is_active:
            return None
        guide = gradient.plan
        if guide not in self._climbers:
            self._climbers[guide] = opened.climber(guide, ClimbSizes(self.input_shape, self.classes))
        return self._climbers[guide]


class TensorRTGradient(Gradient):
    """Attack graph.

    Inputs `image` int8 = byte - 128, `onehot`, `engine_logits`, `own_logits`, `loss_weights`, `seed`; outputs
    `gradient`, `logits`, `loss`.
    """

    def __init__(self, bundle: Bundle, file: str) -> None:
        super().__init__(bundle.manifest.input_shape, bundle.manifest.classes)
        self._bundle, self._file = bundle, file
        self._opened: _Opened | None = None
        self._onehot = np.eye(self.classes, dtype=np.float32)

    @property
    def plan(self) -> LoadedPlan:
        """What an active one runs."""
        return _active(self._opened).plan

    def activate_impl(self) -> None:
        per_class = np.float32, (-1, self.classes)
        signature: Signature = {
            "image": (np.int8, (-1, *self.input_shape)),
            "onehot": per_class,
            "engine_logits": per_class,
            "own_logits": (np.bool_, ()),
            "loss_weights": (np.float32, (len(LOSSES),)),
            "seed": per_class,
            "gradient": (np.float32, (-1, *self.input_shape)),
            "logits": per_class,
        }
        largest = _largest_batch(self.input_shape)
        self._opened = _Opened.of(self._bundle, self._file, BuildSettings(batches=((1, largest, largest),)), signature)

    def deactivate_impl(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def gradient_impl(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        engine_logits: NDArray[np.float32],
        loss: str,
    ) -> NDArray[np.float32]:
        return self._run(["gradient"], images, loss=loss, onehot=self._onehot[labels], logits=engine_logits)[0]

    def pullback_impl(self, images: NDArray[np.uint8], seeds: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._run(["gradient"], images, seeds=seeds)[0]

    def ascend_impl(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], loss: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        outputs = ["logits", "gradient"]
        logits, gradient = self._run(outputs, images, loss=loss, onehot=self._onehot[labels], own_logits=True)
        return logits, gradient

    def logits_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run(["logits"], images)[0]

    def _run(
        self,
        outputs: list[str],
        images: NDArray[np.uint8],
        *,
        loss: str | None = None,
        onehot: NDArray[np.float32] | None = None,
        logits: NDArray[np.float32] | None = None,
        own_logits: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> list[NDArray[np.float32]]:
        """`logits` are the engine's; what is left out is zero."""
        if loss is not None and loss not in LOSSES:
            raise ValueError(f"loss {loss!r} is not one of {', '.join(LOSSES)}")
        nothing = np.zeros((len(images), self.classes), np.float32)
        feeds: dict[str, NDArray[Any]] = {
            "image": as_codes(images),
            "onehot": nothing if onehot is None else onehot,
            "engine_logits": nothing if logits is None else logits,
            "own_logits": np.asarray(own_logits),
            "loss_weights": np.array([name == loss for name in LOSSES], np.float32),
            "seed": nothing if seeds is None else seeds,
        }
        return _active(self._opened).execution.run(feeds, outputs)


class _Opened:
    """A plan that is loaded and can run."""

    def __init__(self, device: CudaDevice, plan: LoadedPlan, graphs: GraphDriver, plan_sha256: str) -> None:
        self.device, self.plan, self.plan_sha256 = device, plan, plan_sha256
        self._graphs = graphs
        self.execution = PlanExecution(plan, graphs)
        plan.on_close(self.execution.close)

    @classmethod
    def of(cls, bundle: Bundle, file: str, settings: BuildSettings, signature: Signature) -> _Opened:
        device, graphs = open_device(), load_graph_driver()
        stored = _stored_plan(bundle, file, device, settings)
        with device.current(), ExitStack() as stack:
            plan = LoadedPlan(device, bundle.manifest.target, stored.plan, file)
            stack.callback(plan.close)
            require_tensors(plan, signature)
            opened = cls(device, plan, graphs, stored.plan_sha256)
            stack.pop_all()
        return opened

    def climber(self, guide: LoadedPlan, sizes: ClimbSizes) -> DevicePgd | None:
        nvcc = find_nvcc()
        if nvcc is None:
            _LOG.warning("no nvcc was found: steps of PGD pass through the host, which is slower")
            return None
        with self.device.current():
            climber = DevicePgd(self.plan, guide, self._graphs, sizes, nvcc)
        # It holds contexts of both plans, and goes with the first of them.
        self.plan.on_close(climber.close)
        guide.on_close(climber.close)
        return climber

    def close(self) -> None:
        with self.device.current():
            self.plan.close()


def _stored_plan(bundle: Bundle, file: str, device: CudaDevice, settings: BuildSettings) -> StoredPlan:
    """The plan of a graph of the bundle, built on this machine where it is not yet kept; raises HardbitError for a GPU
    that the target's runtime does not serve."""
    target, path = bundle.manifest.target, bundle.file(file)
    on_jetson = describe_jetson() is not None
    refuse_unsupported_gpu(target, Gpu(device.name, device.compute_capability, on_jetson=on_jetson))
    key = PlanKey(
        device=device.name,
        compute_capability=".".join(map(str, device.compute_capability)),
        driver=device.driver_text,
        versions=runtime_versions(target),
        settings=settings.to_document(),
        digests={"graph": bundle.manifest.files[file].sha256},
    )
    return plan_for(default_folder(), key, lambda: build_plan(path.read_bytes(), settings, target))


def _engine_settings(input_shape: tuple[int, int, int]) -> BuildSettings:
    return BuildSettings(batches=((1, 1, _largest_batch(input_shape)),))


def _largest_batch(input_shape: tuple[int, int, int]) -> int:
    """The power of two that keeps a batch's pixels at or below four million, between 1 and 256."""
    fitting = max(1, _BATCH_VALUES // math.prod(input_shape))
    return min(_LARGEST_BATCH, 1 << (fitting.bit_length() - 1))


def _active(opened: _Opened | None) -> _Opened:
    """What was opened, also while another thread deactivates: a call either runs to its end or is refused."""
    if opened is None:
        raise RuntimeError("the engine has been closed")
    return opened
