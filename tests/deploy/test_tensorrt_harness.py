"""The whole harness on a TensorRT bundle, on a recording GPU whose plans are the bundle's own graphs in ONNX Runtime.

The graphs are those that TensorRT would be given, with int8 images in and an attack graph of its own. So all but
TensorRT itself is real, the kernels of the PGD step among it, and the results must be those of the CPU's engine.
"""

from __future__ import annotations

import hashlib
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import canonical_examples
from bundle_examples import build_bundle
from hardbit.graph.gradient import build_attack_graph
from hardbit.targets import lower
from hardbit_deploy.attacks import ThreatModel, pgd
from hardbit_deploy.engines import cuda_context, open_engine, open_target, tensorrt
from hardbit_deploy.engines.tensorrt_build import BuildSettings
from hardbit_deploy.evaluate import evaluate
from recording_gpu import Machine, Network, install, tensorrt_of

SUITE = {"name": "custom", "steps": 4, "restarts": 1, "losses": ["cross_entropy", "margin"], "seed": 0}
COUNT = 40
_TYPES = {"tensor(float)": "FLOAT", "tensor(int8)": "INT8", "tensor(bool)": "BOOL"}


class PlansInOnnxRuntime(dict[bytes, Network]):
    """A plan is its graph: unoptimised, as the canonical graph is compared with."""

    def build(self, graph: bytes, settings: BuildSettings, module: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        outputs = [value.name for value in session.get_outputs()]
        tensors = {}
        for values, is_input in ((session.get_inputs(), True), (session.get_outputs(), False)):
            for value in values:
                shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
                tensors[value.name] = _TYPES[value.type], shape, is_input
        self[graph] = Network(
            tensors, lambda given: dict(zip(outputs, session.run(outputs, given), strict=True)), largest=16
        )
        digests = {"plan": hashlib.sha256(graph).hexdigest()}
        built = {"plan": graph, "layers": (), "log": (), "digests": digests}
        return SimpleNamespace(**built, seconds=0.0, settings=settings, timing_cache=b"")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The same network for both targets."""
    folder, canonical = tmp_path_factory.mktemp("bundles"), canonical_examples.plain_cnn(bits=4)
    settings = {"count": COUNT, "suite": SUITE, "threat_model": {"norm": "linf", "eps_255": 1.0}}
    on_cpu = build_bundle(folder / "cpu", canonical, **settings)
    graphs = {
        "engine": lower(canonical, "tensorrt"),
        "attack_graph": build_attack_graph(canonical, target="tensorrt"),
    }
    return on_cpu, build_bundle(folder / "gpu", canonical, **graphs, target="tensorrt", **settings)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    machine, plans = Machine(), PlansInOnnxRuntime()
    install(monkeypatch, machine)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_of(machine, plans))
    monkeypatch.setattr(tensorrt, "build_plan", plans.build)
    monkeypatch.setattr(tensorrt, "default_folder", lambda: tmp_path / "plans")
    yield machine
    cuda_context.open_device.cache_clear()


def test_logits_are_those_of_the_other_engine_to_the_bit(bundles, machine):
    on_cpu, on_gpu = bundles
    with open_engine(on_gpu) as engine, open_engine(on_cpu) as reference:
        images = np.array(on_gpu.images)
        np.testing.assert_array_equal(engine.infer(images), reference.infer(images))


@pytest.mark.parametrize("model", [ThreatModel("linf", 1.0), ThreatModel("l2", 12.0)], ids=lambda model: model.norm)
def test_climbs_on_the_device_find_what_climbs_on_the_host_find(bundles, machine, model):
    on_cpu, on_gpu = bundles
    images, labels = np.array(on_gpu.images), np.array(on_gpu.labels)
    with open_target(on_gpu) as device, open_target(on_cpu) as host:
        found, expected = (
            pgd(target.engine, target.gradient, images, labels, model, steps=5, restarts=2) for target in (device, host)
        )
        np.testing.assert_array_equal(device.engine.infer(found.adversarial), found.logits)
    assert "judge" in machine.names()
    assert 0 < expected.survived.sum() < COUNT
    # Gradients next to zero may point elsewhere in a graph that sums in another order.
    assert np.count_nonzero(found.survived != expected.survived) <= 1


def test_an_evaluation_says_the_same_and_leaves_nothing_behind(bundles, machine):
    on_cpu, on_gpu = bundles
    device, host = evaluate(on_gpu, workers=2), evaluate(on_cpu, workers=1)
    rows = [{row["name"]: row for row in evaluation.attacks} for evaluation in (device, host)]
    assert list(rows[0]) == list(rows[1])
    assert rows[0]["clean"]["survivors"] == rows[1]["clean"]["survivors"] == COUNT
    for name in rows[0]:
        assert abs(rows[0][name]["survivors"] - rows[1][name]["survivors"]) <= 2, name
    assert {row["name"]: row["label_flips"] for row in device.agreement} == dict.fromkeys(
        ("twin_clean", "twin_adversarial", "attack_graph_clean", "attack_graph_adversarial"), 0
    )
    assert not machine.allocations
    assert not any(machine.live.values()), machine.live
