"""At one and two bits twin, graphs and engine compute the same bits; in integers, or for a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradient_reference import relative_error
from gradient_reference import run as run_attack
from hardbit import nets
from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.quantize import Bits, calibrate, freeze, quantize
from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit.train.adversary import centred
from kernels.integer_interpreter import run_engine
from lowering_examples import executed, run
from quantized_examples import random_images

NETWORKS = {
    "lenet W1A4": ("lenet", Bits(1, 4)),
    "lenet W1A1": ("lenet", Bits(1, 1)),
    "lenet W2A2": ("lenet", Bits(2, 2)),
    "lenet W2A4": ("lenet", Bits(2, 4)),
    "lenet one bit everywhere": ("lenet", Bits(1, 1, 1, 1)),
    "resnet8 W1A4": ("resnet8", Bits(1, 4)),
    "resnet8 W1A1": ("resnet8", Bits(1, 1)),
}


def frozen(architecture, bits):
    """Random weights, BatchNorm that matters, calibrated on random images."""
    torch.manual_seed(0)
    network = nets.build(architecture)
    module = quantize(network, "onnxruntime", bits)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
    images = centred(torch.from_numpy(random_images(64, network.input_shape)))
    calibrate(module, images.split(32))
    module.train()
    with torch.no_grad():
        for _ in range(10):
            module(images)
    return freeze(module.eval()).eval(), network.input_shape


@pytest.fixture(scope="module", params=list(NETWORKS))
def example(request):
    twin, shape = frozen(*NETWORKS[request.param])
    images = random_images(100, shape, seed=2)
    with torch.no_grad():
        logits = twin(centred(torch.from_numpy(images))).numpy()
    return request.param, twin, export_canonical(twin, shape), images, logits


def test_all_of_them_have_the_bits_of_the_twin(example):
    _, _, canonical, images, expected = example
    check_canonical(canonical)
    engine = lower(canonical, "onnxruntime")
    for logits in (
        run(canonical, images),
        run(canonical, images, optimised=True),
        run(engine, images, optimised=True),
        run_attack(build_attack_graph(canonical), feeds(images, expected))["logits"],
    ):
        np.testing.assert_array_equal(logits, expected)
    assert len(np.unique(expected, axis=0)) > 10


def test_every_layer_runs_in_integers_or_says_why_not(example):
    name, _, canonical, images, expected = example
    engine = lower(canonical, "onnxruntime")
    ran, declared = executed(engine), integer_nodes(canonical)
    assert {ran[node["name"]] for node in declared} == {"QLinearConv", "QGemm"}
    layers = {node.name for node in canonical.graph.node if node.op_type in ("Conv", "Gemm")}
    reasons = {node["name"]: node["reason"] for node in float_nodes(canonical)}
    assert layers == {node["name"] for node in declared} | (layers & reasons.keys())
    if name != "resnet8 W1A1":
        assert reasons == {}
        np.testing.assert_array_equal(run_engine(engine, images[:4]), expected[:4])
    else:  # the two branches of its sums are -1 and +1
        in_float = {name for name in layers & reasons.keys() if "between -1 and +1" in reasons[name]}
        branches = {f"stages.{stage}.conv2" for stage in range(3)} | {f"stages.{stage}.shortcut.0" for stage in (1, 2)}
        assert in_float == branches


def test_the_gradient_is_that_of_the_twin(example):
    _, twin, canonical, images, expected = example
    found = run_attack(build_attack_graph(canonical, masks="exact"), feeds(images, expected))["gradient"]
    x = centred(torch.from_numpy(images)).requires_grad_()
    onehot = torch.eye(10)[torch.arange(len(images)) % 10]
    logits = twin(x)
    seed = torch.softmax(logits.detach() - 1e9 * onehot, 1) - onehot
    (gradient,) = torch.autograd.grad(logits, x, seed)
    errors = [relative_error(a, b) for a, b in zip(found, gradient.numpy(), strict=True)]
    assert max(errors) < 1e-4
    assert np.abs(gradient.numpy()).max() > 0


def feeds(images, logits):
    return {
        "image": images,
        "onehot": np.eye(10, dtype=np.float32)[np.arange(len(images)) % 10],
        "engine_logits": logits,
        "own_logits": np.array(False),
        "loss_weights": np.array([1, 0], np.float32),
        "seed": np.zeros_like(logits),
    }
