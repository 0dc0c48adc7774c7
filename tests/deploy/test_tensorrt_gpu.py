"""TensorRT on the GPU of this machine: what a recording one cannot show. Skipped, with the reason, without a GPU."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import canonical_examples
from bundle_examples import build_bundle
from hardbit.graph.gradient import build_attack_graph
from hardbit.targets import lower
from hardbit_deploy.attacks import ThreatModel, pgd
from hardbit_deploy.engines import base, executed_precision, open_engine, open_target
from hardbit_deploy.engines.cuda_context import open_device
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.latency import SHORT, measure
from linear_examples import linear_target

pytestmark = pytest.mark.gpu
COUNT = 300
MODELS = [ThreatModel("linf", 2.0), ThreatModel("l2", 40.0)]
# One query and climbs in both norms, in a process that a tool can watch.
_EXERCISE = """
import sys, numpy as np
from hardbit_deploy.attacks import ThreatModel, pgd
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.engines import open_target
bundle = load_bundle(sys.argv[1])
images, labels = np.array(bundle.images[:20]), np.array(bundle.labels[:20])
with open_target(bundle) as target:
    assert target.engine.climber(target.gradient) is not None
    for norm, eps in (("linf", 2.0), ("l2", 40.0)):
        for _ in range(3):
            pgd(target.engine, target.gradient, images, labels, ThreatModel(norm, eps), steps=4)
"""


@pytest.fixture(scope="module")
def target_name() -> str:
    try:
        open_device()
    except HardbitError as error:
        pytest.skip(str(error))
    for module in ("tensorrt", "tensorrt_rtx"):
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        return module
    pytest.skip("neither tensorrt nor tensorrt_rtx is installed")


@pytest.fixture(scope="module")
def bundle(target_name, tmp_path_factory):
    canonical = canonical_examples.plain_cnn(bits=4)
    graphs = {
        "engine": lower(canonical, target_name),
        "attack_graph": build_attack_graph(canonical, target=target_name),
    }
    folder = tmp_path_factory.mktemp("gpu")
    return build_bundle(folder / "bundle", canonical, count=COUNT, **graphs, target=target_name)


def test_every_declared_layer_runs_in_integers(bundle):
    report = executed_precision(bundle)
    assert (report.status, report.problems) == ("integer", ())


def test_engine_and_attack_graph_agree_with_the_recorded_twin(bundle):
    images = np.array(bundle.images)
    with open_target(bundle) as target:
        for logits in (target.engine.infer(images), target.gradient.logits(images)):
            assert np.count_nonzero(logits.argmax(1) != bundle.twin_clean_logits.argmax(1)) <= 1
            np.testing.assert_allclose(logits, bundle.twin_clean_logits, atol=0.05 * np.abs(logits).max())


def test_neither_the_batch_nor_a_replay_changes_logits(bundle):
    images = np.array(bundle.images)
    with open_engine(bundle) as engine:
        whole = engine.infer(images)
        for _ in range(3):
            np.testing.assert_array_equal(engine.infer(images), whole)
        single = np.concatenate([engine.infer(images[row : row + 1]) for row in range(40)])
        assert np.count_nonzero(single.argmax(1) != whole[:40].argmax(1)) == 0


def test_launches_are_captured(bundle):
    with open_engine(bundle) as engine:
        for _ in range(3):
            engine.infer(np.array(bundle.images[:1]))
        replayed = engine._opened.execution._launches[1].replayed
        assert replayed.refusal is None


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.norm)
def test_climbs_on_the_device_find_what_single_steps_find(bundle, monkeypatch, model):
    images, labels = np.array(bundle.images), np.array(bundle.labels)
    with open_target(bundle) as target:
        assert target.engine.climber(target.gradient) is not None, "nvcc is missing"
        device = pgd(target.engine, target.gradient, images, labels, model, steps=10, restarts=2)
        np.testing.assert_array_equal(target.engine.infer(device.adversarial).argmax(1), device.logits.argmax(1))
        monkeypatch.setattr(type(target.engine), "climber", base.Engine.climber)
        host = pgd(target.engine, target.gradient, images, labels, model, steps=10, restarts=2)
    assert np.count_nonzero(device.survived != host.survived) <= 0.01 * COUNT
    moved = device.adversarial.astype(int) - images
    lengths = np.abs(moved) if model.norm == "linf" else np.sqrt((moved.reshape(COUNT, -1) ** 2).sum(axis=1))
    assert lengths.max() <= model.eps_255


def test_opening_and_closing_gives_all_memory_back(bundle):
    device, free = open_device(), []
    images, labels = np.array(bundle.images[:8]), np.array(bundle.labels[:8])
    for _ in range(4):
        with open_target(bundle) as target:
            pgd(target.engine, target.gradient, images, labels, MODELS[0], steps=2)
        with device.current():
            free.append(device.driver.mem_get_info()[0])
    assert free[1] - free[-1] < 1 << 20, f"bytes left after each round: {free}"


def test_a_gradient_of_another_back_end_is_followed_from_the_host(bundle):
    with open_engine(bundle) as engine:
        assert engine.climber(linear_target().gradient) is None


def test_queries_are_timed_by_host_and_device(bundle):
    report = measure(bundle.path, SHORT)
    assert report.device_ms is not None
    assert 0 < np.median(report.device_ms) < np.median(report.query_ms)


def test_device_time_is_about_that_of_trtexec(bundle, target_name):
    tool = shutil.which("trtexec") or shutil.which("/usr/src/tensorrt/bin/trtexec")
    if tool is None or target_name != "tensorrt":
        pytest.skip("trtexec is not installed, or tensorrt is not")
    shape = "x".join(map(str, (1, *bundle.manifest.input_shape)))
    command = [tool, f"--onnx={bundle.file('engine.onnx')}", f"--shapes=image:{shape}", "--useCudaGraph"]
    said = subprocess.run([*command, "--stronglyTyped"], capture_output=True, text=True, check=True).stdout
    theirs = float(re.search(r"GPU Compute Time:.*?median = ([\d.]+) ms", said).group(1))
    ours = float(np.median(measure(bundle.path, SHORT).device_ms))
    assert theirs / 2 < ours < 2 * theirs + 0.02, f"trtexec {theirs} ms, here {ours} ms"


def test_compute_sanitizer_finds_nothing(bundle):
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    watched = [tool, "--tool=memcheck", "--error-exitcode=9", sys.executable, "-c", _EXERCISE, str(bundle.path)]
    finished = subprocess.run(watched, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
