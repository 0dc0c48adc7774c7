"""Engines by target name. A back end's runtime is imported only when a bundle for that target is opened."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, cast

from hardbit_deploy.engines.base import Engine, Gradient, PrecisionReport, PrecisionRow, Target
from hardbit_deploy.errors import HardbitError

if TYPE_CHECKING:
    from hardbit_deploy.bundle import Bundle
    from hardbit_deploy.taps import LayerTaps

__all__ = [
    "Engine",
    "Gradient",
    "PrecisionReport",
    "PrecisionRow",
    "Target",
    "executed_precision",
    "open_engine",
    "open_taps",
    "open_target",
    "targets",
]

# target -> (module, how to install what it needs). A back end offers open_engine, open_gradient, open_smooth_gradient,
# open_taps, executed_precision.
_BACK_ENDS = {
    "onnxruntime": ("hardbit_deploy.engines.onnxruntime", "pip install onnxruntime"),
    "tensorrt": ("hardbit_deploy.engines.tensorrt", "use a JetPack with TensorRT, or pip install tensorrt pycuda"),
    "tensorrt_rtx": ("hardbit_deploy.engines.tensorrt", "pip install tensorrt-rtx pycuda"),
}


def targets() -> tuple[str, ...]:
    """Names of the targets that this version can open; their runtimes need not be installed."""
    return tuple(_BACK_ENDS)


def open_target(bundle: Bundle, threads: int = 1) -> Target:
    """Open the bundle's engine and attack graphs on `threads` threads each; active on return, close with deactivate().

    Raises HardbitError for a target that is not known, or whose runtime is missing or cannot load the bundle.
    """
    back_end = _back_end(bundle.manifest.target)
    smooth = back_end.open_smooth_gradient(bundle, threads) if bundle.manifest.smooth_attack_file else None
    target = Target(back_end.open_engine(bundle, threads), back_end.open_gradient(bundle, threads), smooth)
    return target.activate()


def open_engine(bundle: Bundle, threads: int = 1) -> Engine:
    """The engine alone, active on return: what latency is measured on. Raises as `open_target` does."""
    engine = cast(Engine, _back_end(bundle.manifest.target).open_engine(bundle, threads))
    return engine.activate()


def open_taps(bundle: Bundle) -> LayerTaps:
    """Engine and canonical graph with the codes of their layers. Raises as `open_target` does."""
    return cast("LayerTaps", _back_end(bundle.manifest.target).open_taps(bundle))


def executed_precision(bundle: Bundle) -> PrecisionReport:
    """Run one image and report which kernels were executed for the layers that must be integer."""
    return cast(PrecisionReport, _back_end(bundle.manifest.target).executed_precision(bundle))


def _back_end(target: str) -> ModuleType:
    if target not in _BACK_ENDS:
        raise HardbitError(
            f"target {target!r} is not known", remedy=f"this version runs bundles for {', '.join(_BACK_ENDS)}"
        )
    module, remedy = _BACK_ENDS[target]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HardbitError(f"target {target!r} cannot be used here ({error})", remedy=remedy) from error
