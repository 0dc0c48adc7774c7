"""The process that a plan is built in: `python -m hardbit_deploy.engines.tensorrt_build_worker MODULE FOLDER`.

Reads `graph.onnx`, `settings.json` and `timing.cache` from the folder; writes `log.jsonl` as it goes, then `plan`,
`timing.cache`, `versions.json` and, where the log lists no layers, `layers.json`; or `refusal.json` with the reason.
Started by `tensorrt_build`, never by hand.

Everything is asked for by name: numbers of flags differ between releases. Of names that not every release has, each
use is guarded, and nothing is used that TensorRT 11 removed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from hardbit_deploy.engines.tensorrt_build import runtime_versions
from hardbit_deploy.engines.tensorrt_layers import lists_layers
from hardbit_deploy.errors import HardbitError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Build as told by the command line; 0 where a plan was written, 1 where a reason was."""
    module, name = sys.argv[1:] if argv is None else argv
    folder = Path(name)
    errors: list[str] = []
    with (folder / "log.jsonl").open("w", encoding="utf-8") as log:
        try:
            versions = runtime_versions(module)
            settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            _build(sys.modules[module], folder, settings, log, errors)
        except HardbitError as error:
            return _refuse(folder, error)
        except Exception as error:  # what the bindings make of a runtime that does not start, as without a driver
            said = _last(errors) or repr(error)
            return _refuse(folder, HardbitError(f"gives up: {said}", f"{module} builder", "see hardbit-deploy doctor"))
    (folder / "versions.json").write_text(json.dumps(versions), encoding="utf-8")
    return 0


def _refuse(folder: Path, error: HardbitError) -> int:
    reason = {"message": error.message, "where": error.where, "remedy": error.remedy}
    (folder / "refusal.json").write_text(json.dumps(reason), encoding="utf-8")
    return 1


def _last(errors: list[str]) -> str:
    return " | ".join(message.splitlines()[0] for message in errors[-3:] if message)


def _build(trt: Any, folder: Path, settings: Mapping[str, Any], log: TextIO, errors: list[str]) -> None:
    listings: list[str] = []
    logger = _logger(trt, log, errors, listings)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse((folder / "graph.onnx").read_bytes()):
        raise _refused_graph(parser)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings["workspace_bytes"])
    if settings["optimization_level"] is not None:
        config.builder_optimization_level = settings["optimization_level"]
    if not settings["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    for name in settings["flags"]:
        config.set_flag(_flag(trt, name))
    _set_compute_capabilities(trt, config, settings["compute_capabilities"])
    _add_profiles(builder, network, config, settings["batches"])
    timings = _timing_cache(trt, config, (folder / "timing.cache").read_bytes())
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise HardbitError(
            f"gives no plan: {_last(errors) or 'it does not say why'}",
            f"{trt.__name__} builder",
            "see the log for the layer",
        )
    (folder / "plan").write_bytes(bytes(plan))
    (folder / "timing.cache").write_bytes(b"" if timings is None else bytes(timings.serialize()))
    if not listings:
        _inspect(trt, logger, bytes(plan), folder / "layers.json")


def _inspect(trt: Any, logger: Any, plan: bytes, destination: Path) -> None:
    """What the inspector tells of a plan's layers; nothing is written where this machine cannot load the plan."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is not None:
        information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        destination.write_text(information, encoding="utf-8")


def _logger(trt: Any, log: TextIO, errors: list[str], listings: list[str]) -> Any:
    """Writes every message to `log` at once, so that it is there when the process dies; keeps errors and listings."""

    class _Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.write(json.dumps(f"{severity.name}: {message}") + "\n")
            log.flush()
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                errors.append(message)
            elif lists_layers(message):
                listings.append(message)

    return _Log()


def _refused_graph(parser: Any) -> HardbitError:
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    if not errors:
        return HardbitError("the parser refuses the graph and does not say why", "engine graph", "build it anew")
    first = errors[0]
    description = first.desc().splitlines()[0] if first.desc() else "no reason is given"
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return HardbitError(
        f"the parser refuses {first.node_operator() or 'the graph'}: {description}{more}",
        first.node_name() or "engine graph",
        "lower the network for this target",
    )


def _flag(trt: Any, name: str) -> Any:
    try:
        return getattr(trt.BuilderFlag, name)
    except AttributeError:
        raise HardbitError(
            f"{trt.__name__} {trt.__version__} has no builder flag {name!r}",
            "flags",
            "precisions stand in the graph and need no flag; leave out what this release does not have",
        ) from None


def _set_compute_capabilities(trt: Any, config: Any, wanted: list[str]) -> None:
    if not wanted:
        return
    known = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise HardbitError(
            f"{trt.__name__} builds for the GPU at hand only",
            "compute_capabilities",
            "leave it out, or use tensorrt_rtx",
        )
    config.num_compute_capabilities = len(wanted)
    for place, name in enumerate(wanted):
        if not hasattr(known, name):
            choices = ", ".join(known.__members__)
            raise HardbitError(f"{name!r} is not known", "compute_capabilities", f"it may be one of {choices}")
        config.set_compute_capability(getattr(known, name), place)


def _add_profiles(builder: Any, network: Any, config: Any, batches: list[list[int]]) -> None:
    """One optimization profile for each of `batches`, where inputs have a free first dimension."""
    free = {}
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise HardbitError(f"has the shape {shape}: only the batch may be free", tensor.name, "fix its other sizes")
        if shape[:1] == (-1,):
            free[tensor.name] = shape[1:]
    if free and not batches:
        raise HardbitError(f"{', '.join(free)} have a free batch", "batches", "say how many images there may be")
    for batch in batches if free else ():
        profile = builder.create_optimization_profile()
        for name, image in free.items():
            profile.set_shape(name, *((size, *image) for size in batch))
        if config.add_optimization_profile(profile) < 0:
            raise HardbitError(f"{batch} is refused as optimization profile", "batches", "see the log")


def _timing_cache(trt: Any, config: Any, earlier: bytes) -> Any:
    """The cache that the build will fill; None for TensorRT for RTX, which times nothing when it builds."""
    if hasattr(trt, "ComputeCapability"):
        return None
    cache = config.create_timing_cache(earlier)
    if cache is None or not config.set_timing_cache(cache, False):
        raise HardbitError("is not of this device and version", "timing cache", "remove it: layers are timed anew")
    return cache


if __name__ == "__main__":
    sys.exit(main())
