"""Plans from the real builder of TensorRT for RTX, which needs no GPU to build; errors of every kind."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

import tensorrt_patterns as patterns
from hardbit.targets.tensorrt import lower
from hardbit_deploy.engines.fixed_addresses import fixed_addresses
from hardbit_deploy.engines.tensorrt_build import BuildSettings, build_plan, changed_numbers, runtime_versions
from hardbit_deploy.errors import HardbitError
from tensorrt_examples import symmetric_cnn

RTX = "tensorrt_rtx"


@pytest.fixture
def rtx() -> str:
    pytest.importorskip(RTX)
    return RTX


@pytest.mark.tensorrt
def test_a_plan_comes_with_its_evidence(rtx: str) -> None:
    graph = patterns.int8_convolutions().SerializeToString()
    built = build_plan(graph, module=rtx)
    assert len(built.plan) > 10_000
    assert built.digests == {
        "graph": hashlib.sha256(graph).hexdigest(),
        "plan": hashlib.sha256(built.plan).hexdigest(),
    }
    assert built.versions["module"] == rtx
    assert built.versions["runtime"][:1].isdigit()
    assert built.seconds > 0
    assert built.timing_cache == b""  # it times nothing when it builds
    assert any(line.startswith("INFO: ") for line in built.log)
    assert {node for layer in built.layers for node in layer.onnx_nodes} >= {"conv1", "conv2"}


@pytest.mark.tensorrt
def test_the_same_graph_is_built_into_the_same_bytes(rtx: str) -> None:
    with fixed_addresses() as fixed:
        if not fixed:
            pytest.skip("this system does not let processes have fixed addresses")
    graph = lower(symmetric_cnn(4)).SerializeToString()
    assert len({build_plan(graph, module=rtx).plan for _ in range(4)}) == 1


@pytest.mark.tensorrt
def test_a_free_batch_gets_a_profile_for_each_range(rtx: str) -> None:
    graph = patterns.any_batch().SerializeToString()
    built = build_plan(graph, BuildSettings(batches=((1, 1, 1), (2, 8, 64))), rtx)
    listing = next(line for line in built.log if "Layers:" in line and "I/O Tensors" in line)
    for shape in ("[1,16,16,16]", "[2,16,16,16]", "[8,16,16,16]", "[64,16,16,16]"):
        assert f"Shape: {shape}" in listing


@pytest.mark.tensorrt
def test_plans_are_built_for_gpus_that_are_not_here(rtx: str) -> None:
    graph = patterns.any_batch().SerializeToString()
    ada = build_plan(graph, BuildSettings(compute_capabilities=("SM89",)), rtx)
    blackwell = build_plan(graph, BuildSettings(compute_capabilities=("SM120",)), rtx)
    assert ada.plan != blackwell.plan


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (BuildSettings(flags=("INT8",)), "has no builder flag 'INT8'"),
        (BuildSettings(compute_capabilities=("SM90",)), "'SM90' is not known; it may be one of"),
        (BuildSettings(batches=()), "x have a free batch"),
    ],
)
def test_settings_that_the_runtime_has_not_are_refused(rtx: str, settings: BuildSettings, words: str) -> None:
    with pytest.raises(HardbitError) as caught:
        build_plan(patterns.any_batch().SerializeToString(), settings, rtx)
    assert words in str(caught.value)


@pytest.mark.tensorrt
@pytest.mark.parametrize("pattern", patterns.REFUSED, ids=lambda pattern: pattern.__name__)
def test_a_graph_that_is_refused_is_refused_by_the_node_s_name(rtx: str, pattern: patterns.Pattern) -> None:
    with pytest.raises(HardbitError) as caught:
        build_plan(pattern().SerializeToString(), module=rtx)
    assert caught.value.where == patterns.REFUSED[pattern]


@pytest.mark.tensorrt
@pytest.mark.parametrize("pattern", patterns.BUILDER_FAILS, ids=lambda pattern: pattern.__name__)
def test_a_builder_that_fails_or_dies_is_an_error_message(rtx: str, pattern: patterns.Pattern) -> None:
    with pytest.raises(HardbitError) as caught:
        build_plan(pattern().SerializeToString(), module=rtx)
    assert patterns.BUILDER_FAILS[pattern] in caught.value.message
    assert caught.value.where == "tensorrt_rtx builder"


@pytest.mark.tensorrt
@pytest.mark.parametrize("pattern", patterns.OTHER_NUMBERS, ids=lambda pattern: pattern.__name__)
def test_other_numbers_than_the_graph_s_are_an_error(rtx: str, pattern: patterns.Pattern) -> None:
    with pytest.raises(HardbitError, match=r"half of their range is lost \(.*Defaulting to INT8"):
        build_plan(pattern().SerializeToString(), module=rtx)


@pytest.mark.tensorrt
def test_bytes_that_are_no_graph_are_refused(rtx: str) -> None:
    with pytest.raises(HardbitError, match="the parser refuses the graph"):
        build_plan(b"no graph", module=rtx)


@pytest.mark.tensorrt
def test_a_build_that_takes_too_long_is_ended(rtx: str) -> None:
    with pytest.raises(HardbitError, match=r"took longer than 0.01 s"):
        build_plan(patterns.int8_convolutions().SerializeToString(), module=rtx, timeout_s=0.01)


FAKE_RUNTIME = '''
"""Stands for a runtime: what a test wants of the builder, it reads from the graph's bytes."""
import os
__version__ = "0.1"


class Named(int):
    name = ""


def named(name, value=0):
    made = Named(value)
    made.name = name
    return made


class ILogger:
    pass


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class ProfilingVerbosity:
    DETAILED = 2


class MemoryPoolType:
    WORKSPACE = 0


class BuilderFlag:
    TF32 = 7


class Cache:
    def __init__(self, earlier):
        self.earlier = earlier

    def serialize(self):
        return self.earlier + b"+timings"


class Config:
    def __getattr__(self, name):
        return lambda *values: True

    def create_timing_cache(self, earlier):
        self.cache = Cache(earlier)
        return None if earlier == b"foreign" else self.cache


class Network:
    num_inputs = 0


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network, self.logger = network, logger

    def parse(self, graph):
        if graph == b"raises":
            self.logger.log(named("ERROR"), "CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")
        self.network.graph = graph
        return graph != b"refused"


class LayerInformationFormat:
    JSON = "JSON"


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return self if plan == b"plan of inspected" else None

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, format):
        return '{"Layers": [{"Name": "seen by the inspector"}]}' if format == "JSON" else ""


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == 1 << 1, "the flag's number is to be asked for by name"
        return Network()

    def create_builder_config(self):
        return Config()

    def build_serialized_network(self, network, config):
        self.logger.log(named("INFO"), "about to build")
        if network.graph == b"exits":
            os._exit(3)
        if network.graph == b"nothing":
            self.logger.log(named("ERROR"), "no kernel for conv7")
            return None
        if network.graph == b"clamps":
            self.logger.log(named("WARNING"), "weights outside the range of INT32 were clamped")
        if network.graph not in (b"silent", b"inspected"):
            self.logger.log(named("VERBOSE"), "Layers:\\nName: fc, LayerType: gemm, Inputs: []")
        return b"plan of " + network.graph
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fake_tensorrt.py").write_text(FAKE_RUNTIME)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the builder's process
    monkeypatch.syspath_prepend(tmp_path)
    yield "fake_tensorrt"
    sys.modules.pop("fake_tensorrt", None)


def test_timings_go_in_and_come_out(fake: str) -> None:
    built = build_plan(b"graph", module=fake, timing_cache=b"earlier")
    assert built.plan == b"plan of graph"
    assert built.timing_cache == b"earlier+timings"
    assert [layer.name for layer in built.layers] == ["fc"]


def test_where_the_log_lists_no_layers_the_inspector_is_asked(fake: str) -> None:
    assert [layer.name for layer in build_plan(b"inspected", module=fake).layers] == ["seen by the inspector"]


@pytest.mark.parametrize(
    ("graph", "timings", "words"),
    [
        (b"exits", b"", "its process died (exit status 3); the last it said: INFO: about to build"),
        (b"raises", b"", "fake_tensorrt builder: gives up: CUDA initialization failure with error: 35"),
        (b"nothing", b"", "fake_tensorrt builder: gives no plan: no kernel for conv7"),
        (b"clamps", b"", "values do not fit their type and are clamped"),
        (b"silent", b"", "lists no layers"),
        (b"refused", b"", "refuses the graph and does not say why"),
        (b"graph", b"foreign", "timing cache: is not of this device and version"),
    ],
)
def test_whatever_a_builder_does_is_one_error(fake: str, graph: bytes, timings: bytes, words: str) -> None:
    with pytest.raises(HardbitError) as caught:
        build_plan(graph, module=fake, timing_cache=timings)
    assert words in str(caught.value)


def test_only_tensorrt_for_rtx_builds_for_other_gpus(fake: str) -> None:
    with pytest.raises(HardbitError, match="builds for the GPU at hand only"):
        build_plan(b"graph", BuildSettings(compute_capabilities=("SM89",)), fake)


def test_a_runtime_that_is_missing_is_said_before_anything_is_started() -> None:
    with pytest.raises(HardbitError, match="the Python module no_such_runtime: cannot be imported"):
        runtime_versions("no_such_runtime")


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 4), (1, 8, 4), (1, 2)])
def test_batches_are_least_likely_and_largest(batch: tuple[int, ...]) -> None:
    with pytest.raises(HardbitError, match="is not a least, likely and largest batch"):
        BuildSettings(batches=(batch,))  # type: ignore[arg-type]


def test_details_of_a_verbose_log_are_no_warnings() -> None:
    assert changed_numbers(["VERBOSE: importer: Defaulting to INT8", "WARNING: nothing of note"]) == ()
    assert len(changed_numbers(["WARNING: x: Defaulting to INT8 instead"] * 3)) == 1
