"""Build a TensorRT plan from an ONNX graph, in a process of its own.

A builder is native code that may crash (a scale that is computed at run time is enough), so it runs in a child process:
one that dies is an error message with the last lines of its log. TensorRT for RTX builds the same bytes every time in a
fresh process at fixed addresses; TensorRT times kernels and so chooses others from one build to the next.

The module is an argument: `tensorrt` from 10.3 to 11.4, or `tensorrt_rtx`. Networks are strongly typed: what runs in
int8 is what the graph's QuantizeLinear nodes say. Where the builder warns that it takes other numbers than the graph
has, the build fails.

Boundary: builds and returns what was built; `plan_cache` keeps it, `tensorrt_precision` judges it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hardbit_deploy.engines.fixed_addresses import fixed_addresses
from hardbit_deploy.engines.tensorrt_layers import LayerRow, layers_from_build_log, layers_from_inspector
from hardbit_deploy.errors import HardbitError

__all__ = ["BuildSettings", "BuiltPlan", "build_plan", "changed_numbers", "runtime_versions"]

_TIMES_NOTHING = "tensorrt_rtx"
_LAST_LINES = 5
# What a builder says when it goes on with other numbers than the graph's, and what that means.
_CHANGED_NUMBERS = (
    (r"Defaulting to INT8", "unsigned 8-bit codes are read as signed ones: half of their range is lost"),
    (r"will use INT8 instead", "a zero point of another type is read as int8"),
    (r"was clamped|were clamped|outside the range of", "values do not fit their type and are clamped"),
    (r"converting weights between types", "weights are rounded to another type"),
    (r"[Mm]issing scale and zero-point", "a tensor has no scale, so that its type is the builder's choice"),
)


@dataclass(frozen=True)
class BuildSettings:
    """How a plan is built; all of it is part of a plan's identity.

    `batches` are the least, the most likely and the largest number of images, one triple for each optimization profile;
    they fill the free first dimension of every input. `compute_capabilities` such as `SM89` are for TensorRT for RTX,
    which builds for other GPUs than the one at hand. `flags` are names of BuilderFlag. TF32, which shortens the
    factors of float layers to 10 bits, is off unless asked for. Raises HardbitError for batches that are no triples.
    """

    batches: tuple[tuple[int, int, int], ...] = ((1, 1, 32),)
    workspace_bytes: int = 1 << 30
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    tf32: bool = False

    def __post_init__(self) -> None:
        for batch in self.batches:
            if len(batch) != 3 or not 1 <= batch[0] <= batch[1] <= batch[2]:
                raise HardbitError(f"{batch} is not a least, likely and largest batch", "batches", "(1, 8, 32) is one")

    def to_document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "batches": [list(batch) for batch in self.batches]}


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and the evidence of its build. `log` has every message, with its severity before a colon; `digests` are
    SHA-256 of `graph` and `plan`. `timing_cache` is empty where the runtime has none.
    """

    plan: bytes
    layers: tuple[LayerRow, ...]
    log: tuple[str, ...]
    digests: Mapping[str, str]
    versions: Mapping[str, str]
    settings: BuildSettings
    seconds: float
    timing_cache: bytes = b""


def build_plan(
    graph: bytes,
    settings: BuildSettings | None = None,
    module: str = "tensorrt",
    timing_cache: bytes = b"",
    timeout_s: float = 3600.0,
) -> BuiltPlan:
    """Build `graph`, the bytes of an ONNX file, with the Python module of that name.

    `timing_cache` is what an earlier build returned: layers that it knows are not timed again and get the same kernels.

    Raises HardbitError, with the reason and the last lines of the log: the module is missing, the graph is refused by
    the parser (naming the node), the builder gives nothing, dies or takes longer than `timeout_s`, warns of changed
    numbers, or lists no layers.
    """
    settings = settings or BuildSettings()
    runtime_versions(module)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hardbit-build-") as name:
        folder = Path(name)
        (folder / "graph.onnx").write_bytes(graph)
        (folder / "timing.cache").write_bytes(timing_cache)
        (folder / "settings.json").write_text(json.dumps(settings.to_document()), encoding="utf-8")
        _run_builder(module, folder, timeout_s)
        plan, log = (folder / "plan").read_bytes(), _log(folder)
        kept_timings = (folder / "timing.cache").read_bytes()
        versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        inspected = folder / "layers.json"
        information = inspected.read_text(encoding="utf-8") if inspected.exists() else None
    if changes := changed_numbers(log):
        raise HardbitError("; ".join(changes), f"{module} builder", "lower the network for this target anew")
    return BuiltPlan(
        plan,
        layers_from_build_log(log) if information is None else layers_from_inspector(information),
        log,
        {"graph": hashlib.sha256(graph).hexdigest(), "plan": hashlib.sha256(plan).hexdigest()},
        versions,
        settings,
        time.perf_counter() - started,
        kept_timings,
    )


def changed_numbers(log: Iterable[str]) -> tuple[str, ...]:
    """What a builder's log says of numbers that it takes otherwise than the graph has them, each once."""
    found: dict[str, None] = {}
    for message in log:
        for pattern, meaning in _CHANGED_NUMBERS:
            if re.search(pattern, message) and not message.startswith("VERBOSE: "):
                found[f"{meaning} ({message.partition(': ')[2].splitlines()[0]})"] = None
    return tuple(found)


def runtime_versions(module: str) -> dict[str, str]:
    """Name and version of the runtime that the Python module of that name brings; raises HardbitError without it."""
    try:
        version = str(importlib.import_module(module).__version__)
    except Exception as error:  # a runtime whose libraries do not fit raises classes of its own
        raise HardbitError(
            f"cannot be imported ({error})",
            f"the Python module {module}",
            "hardbit-deploy doctor tells how to install it",
        ) from error
    return {"module": module, "runtime": version}


def _run_builder(module: str, folder: Path, timeout_s: float) -> None:
    """Start the worker in `folder`, so that nothing lying about can be imported, and wait for it."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in entries if entry)
    command = [sys.executable, "-m", "hardbit_deploy.engines.tensorrt_build_worker", module, str(folder)]
    with contextlib.ExitStack() as stack:
        empty = stack.enter_context(tempfile.TemporaryDirectory(prefix="hardbit-build-"))
        printed = stack.enter_context((folder / "printed").open("wb"))
        if module == _TIMES_NOTHING:
            stack.enter_context(fixed_addresses())
        try:
            status = subprocess.run(
                command,
                cwd=empty,
                env={**os.environ, "PYTHONPATH": path},
                stdout=printed,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise _failure(f"it took longer than {timeout_s:g} s and was ended", module, folder) from None
    refusal = folder / "refusal.json"
    if refusal.exists():
        document = json.loads(refusal.read_text(encoding="utf-8"))
        raise HardbitError(document["message"], document["where"], document["remedy"])
    if status != 0:
        raise _failure(f"its process died ({_name_of(status)})", module, folder)


def _failure(message: str, module: str, folder: Path) -> HardbitError:
    lines = [*_log(folder), *(folder / "printed").read_text(encoding="utf-8", errors="replace").splitlines()]
    last = " | ".join(line.splitlines()[0] for line in lines[-_LAST_LINES:] if line)
    remedy = "look at what the graph asks of it; `hardbit check` names what this target does not take"
    return HardbitError(f"{message}; the last it said: {last or 'nothing'}", f"{module} builder", remedy)


def _log(folder: Path) -> tuple[str, ...]:
    """What was logged, one JSON text a line; of a worker that died, the last line may be cut."""
    path = folder / "log.jsonl"
    messages = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            messages.append(str(json.loads(line)))
        except ValueError:
            messages.append(line)
    return tuple(messages)


def _name_of(status: int) -> str:
    try:
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
    except ValueError:
        return f"signal {-status}"
