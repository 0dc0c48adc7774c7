"""A layer with float weights between codes runs with those weights, and not with others that the runtime makes."""

import numpy as np
import pytest

from gradient_reference import run as run_graph
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.graph.passes import KeepFloatWeights, run_passes
from hardbit.quantize import Bits, freeze
from hardbit.targets import lower
from hardbit.targets.onnxruntime import PASSES, PREPARATION
from lowering_examples import executed, run
from quantized_examples import calibrated, random_images

SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32)}


@pytest.fixture(scope="module", params=list(SHAPES))
def activation_only(request):
    shape = SHAPES[request.param]
    return export_canonical(freeze(calibrated(request.param, Bits(32, 4))), shape), random_images(32, shape)


def equal_images(logits, expected):
    """The share of images with the same logits. Sums of floats may round across the border of an activation's code, and
    differently on every machine: single images may differ."""
    return np.isclose(logits, expected, rtol=0, atol=1e-6).all(axis=1).mean()


def test_without_the_pass_the_runtime_runs_another_network(activation_only):
    canonical, images = activation_only
    others = [step for step in (*PREPARATION, *PASSES) if step.name != "keep_float_weights"]
    assert equal_images(run(run_passes(canonical, others), images, optimised=True), run(canonical, images)) < 0.5


def test_with_it_the_engine_has_the_logits_of_the_canonical_graph(activation_only):
    canonical, images = activation_only
    engine = lower(canonical, "onnxruntime")
    assert equal_images(run(engine, images, optimised=True), run(canonical, images)) > 0.8
    assert "QLinearConv" in executed(engine).values()  # the first layer has 8 bits


def test_the_attack_graph_is_kept_from_it_too(activation_only):
    canonical, images = activation_only
    classes = 10
    feeds = {
        "image": images,
        "onehot": np.eye(classes, dtype=np.float32)[np.arange(len(images)) % classes],
        "engine_logits": np.zeros((len(images), classes), np.float32),
        "own_logits": np.array(True),
        "loss_weights": np.array([1, 0], np.float32),
        "seed": np.zeros((len(images), classes), np.float32),
    }
    logits = run_graph(build_attack_graph(canonical), feeds)["logits"]
    assert equal_images(logits, run(canonical, images)) > 0.8


def test_a_graph_without_float_weights_is_left_as_it_is(activation_only):
    canonical, _ = activation_only
    once = KeepFloatWeights().apply(canonical)
    assert KeepFloatWeights().apply(once) == once
    assert len(once.graph.node) > len(canonical.graph.node)
