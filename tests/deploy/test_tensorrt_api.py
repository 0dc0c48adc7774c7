"""Every name of TensorRT that the engines use exists in every release that they run on.

The releases are recorded (see tensorrt_names/README.md); of TensorRT for RTX, the installed package is asked. In the
sources of `hardbit_deploy.engines.tensorrt*`, the runtime's module is `trt` or `_trt`: what hangs on it is looked up as
written. What is asked of objects is looked up in their class where the variable's name tells it, else in all
classes: one of them must have the name in every release, unless no release knows it, as it is then not TensorRT's.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.tensorrt_names.record import public_names

RECORDS = Path(__file__).parent / "tensorrt_names"
ENGINES = Path(__file__).parents[2] / "deploy" / "hardbit_deploy" / "engines"
SOURCES = sorted(ENGINES.glob("tensorrt*.py"))
# Variables and attributes that hold one thing only, and its class.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
}
CLASSES_IN = {
    "tensorrt_plan.py": {"_engine": "ICudaEngine", "_runtime": "Runtime", "context": "IExecutionContext"},
}
# Members of Python's classes and ours, with names that one of TensorRT's has in some releases only.
NOT_TENSORRT = {"itemsize", "tactic", "write"}
# Asked for where they are: each use is guarded, and these releases have it.
RTX_ONLY = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
GONE_IN_11 = {
    "IBuilderConfig.int8_calibrator",
    "IBuilderConfig.algorithm_selector",
    "ITensor.set_dynamic_range",
    "ILayer.precision",
    "BuilderFlag.INT8",
    "BuilderFlag.FP16",
}


def recorded(release: str) -> set[str]:
    return set(json.loads((RECORDS / f"tensorrt-{release}.json").read_text(encoding="utf-8"))["names"])


RELEASES = {release: recorded(release) for release in ("10.3", "10.13", "11.4")}


@pytest.fixture(scope="module")
def rtx_names() -> set[str]:
    pytest.importorskip("tensorrt_rtx")
    return set(public_names(importlib.import_module("tensorrt_rtx")))


def attribute_chains(source: str) -> Iterator[tuple[str, ...]]:
    """`("trt", "BuilderFlag", "TF32")` for every chain of attributes; "" stands for what is no plain name."""
    tree = ast.parse(source)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        chain: list[str] = []
        place: ast.expr = node
        while isinstance(place, ast.Attribute):
            chain.insert(0, place.attr)
            place = place.value
        yield (place.id if isinstance(place, ast.Name) else "", *chain)


def unknown_names(source: str, releases: dict[str, set[str]], classes: dict[str, str] = CLASSES) -> set[str]:
    """What the source asks of TensorRT and some release does not have."""
    everywhere = set.intersection(*releases.values()) | RTX_ONLY
    anywhere = {name.partition(".")[2] for names in releases.values() for name in names}
    in_one_class = {name.partition(".")[2] for name in everywhere} | NOT_TENSORRT
    unknown = set()
    for chain in attribute_chains(source):
        for place, (holder, name) in enumerate(itertools.pairwise(chain)):
            if name.startswith("__"):
                continue
            if holder in ("trt", "_trt"):
                full = ".".join(member for member in chain[place + 1 : place + 3] if not member.startswith("__"))
                unknown |= {full} - everywhere
            elif holder in classes:
                unknown |= {f"{classes[holder]}.{name}"} - everywhere
            elif name in anywhere - in_one_class:
                unknown.add(f"*.{name}")
    return unknown


def unknown_in(path: Path, releases: dict[str, set[str]]) -> set[str]:
    classes = {**CLASSES, **CLASSES_IN.get(path.name, {})}
    return unknown_names(path.read_text(encoding="utf-8"), releases, classes)


def test_there_is_something_to_look_at() -> None:
    assert {"tensorrt_build_worker.py"} <= {path.name for path in SOURCES}
    assert all(len(names) > 2000 for names in RELEASES.values())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_name_that_is_used_exists_in_every_release(path: Path) -> None:
    assert unknown_in(path, RELEASES) == set()


@pytest.mark.tensorrt
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_name_that_is_used_exists_in_tensorrt_for_rtx(path: Path, rtx_names: set[str]) -> None:
    assert unknown_in(path, {**RELEASES, "rtx": rtx_names}) == set()


@pytest.mark.tensorrt
def test_what_only_tensorrt_for_rtx_has_tells_it_from_tensorrt(rtx_names: set[str]) -> None:
    assert rtx_names >= RTX_ONLY
    for names in RELEASES.values():
        assert not names & RTX_ONLY


@pytest.mark.parametrize(
    ("source", "unknown"),
    [
        ("trt.BuilderFlag.TF32", set()),
        ("trt.BuilderFlag.INT8", {"BuilderFlag.INT8"}),  # removed in 11
        ("trt.BuilderFlag.TF33", {"BuilderFlag.TF33"}),
        ("trt.__version__", set()),
        ("config.int8_calibrator", {"IBuilderConfig.int8_calibrator"}),
        ("config.bild_optimisation", {"IBuilderConfig.bild_optimisation"}),
        ("self.context.execute_async_v3(stream)", set()),
        ("engine.device_memory_size", {"*.device_memory_size"}),
        ("self._trt.Logger(self._trt.Logger.FATAL)", {"Logger.FATAL"}),
        ("trt.ILogger.__init__(self)", set()),
        ("layer.set_dynamic_range(0, 1)", {"*.set_dynamic_range"}),  # removed in 11
        ("path.read_bytes().hex()", set()),
    ],
)
def test_the_check_itself(source: str, unknown: set[str]) -> None:
    assert unknown_names(source, RELEASES) == unknown


def test_the_records_tell_the_releases_apart() -> None:
    assert RELEASES["10.3"] >= GONE_IN_11 <= RELEASES["10.13"]
    assert not RELEASES["11.4"] & GONE_IN_11
