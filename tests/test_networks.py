"""Every network at 8, 4 and 2 bits, from quantizers to engine and attack: what it says is the same everywhere, what is
integer is declared and runs as integer, what is float has a reason, and gradients are those of the twin."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gradient_reference import relative_error
from gradient_reference import run as run_graph
from hardbit import nets
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit.train.adversary import centred
from hardbit_deploy.engines.executed_kernels import judge_kernels, profiled_kernels
from hardbit_deploy.manifest import FloatNode, IntegerNode
from lowering_examples import run
from network_examples import OPTIONS, WITH_FLOAT_PARTS, input_shape, tiny_twin
from quantized_examples import random_images

IMAGES = 32
LAYERS = {"Conv", "Gemm", "MatMul"}
EVERY = [
    pytest.param(architecture, bits, id=f"{architecture}-{bits}") for architecture in OPTIONS for bits in (8, 4, 2)
]


def test_every_network_is_here():
    assert sorted(OPTIONS) == nets.names()


@functools.cache
def images(architecture: str) -> np.ndarray:
    return random_images(IMAGES, input_shape(architecture), seed=1)


@functools.cache
def canonical(architecture: str, bits: int) -> onnx.ModelProto:
    return export_canonical(tiny_twin(architecture, bits), input_shape(architecture))


@functools.cache
def twin_logits(architecture: str, bits: int) -> np.ndarray:
    with torch.no_grad():
        return tiny_twin(architecture, bits)(centred(torch.from_numpy(images(architecture)))).numpy()


def assert_same_network(logits: np.ndarray, expected: np.ndarray, architecture: str) -> None:
    """To the bit; where float parts round a value to this or that side of a border of codes, on nearly all images."""
    if architecture not in WITH_FLOAT_PARTS:
        np.testing.assert_array_equal(logits, expected)
        return
    assert np.mean(logits.argmax(1) == expected.argmax(1)) >= 1 - 2 / IMAGES
    assert np.median(np.abs(logits - expected).max(1)) <= 1e-4


@pytest.mark.parametrize(("architecture", "bits"), EVERY)
def test_canonical_graph_and_engine_say_what_the_twin_says(architecture, bits):
    expected = twin_logits(architecture, bits)
    assert len(np.unique(expected, axis=0)) > IMAGES / 4, "a dead network agrees with anything"
    changes: list[str] = []
    engine = lower(canonical(architecture, bits), "onnxruntime", changes.append)
    assert changes == []
    assert_same_network(run(canonical(architecture, bits), images(architecture)), expected, architecture)
    assert_same_network(run(engine, images(architecture), optimised=True), expected, architecture)


@pytest.mark.parametrize(("architecture", "bits"), EVERY)
def test_what_is_declared_integer_runs_in_integers_and_the_rest_has_a_reason(architecture, bits, tmp_path):
    graph = canonical(architecture, bits)
    integer, in_float = integer_nodes(graph), float_nodes(graph)
    declared = [node["name"] for node in (*integer, *in_float)]
    assert len(declared) == len(set(declared))
    assert {node.name for node in graph.graph.node if node.op_type in LAYERS} <= set(declared)
    assert all(node["reason"] for node in in_float)
    assert bool(in_float) == (architecture in WITH_FLOAT_PARTS)

    path = Path(tmp_path) / "engine.onnx"
    path.write_bytes(lower(graph, "onnxruntime").SerializeToString())
    kernels = profiled_kernels(path, images(architecture)[:1], classes=10)
    report = judge_kernels(kernels, [IntegerNode(**node) for node in integer], [FloatNode(**node) for node in in_float])
    assert report.problems == ()
    assert report.status == "integer"
    assert len(report.declared_float) == sum(
        node.op_type in LAYERS for node in graph.graph.node if node.name not in {n["name"] for n in integer}
    )


def test_in_a_vision_transformer_weights_meet_integers_and_activations_alone_meet_floats():
    graph = canonical("vit", 4)
    assert {node["op"] for node in integer_nodes(graph)} == {"Conv", "Gemm"}
    operators = {node.name: node.op_type for node in graph.graph.node}
    assert {operators[node["name"]] for node in float_nodes(graph)} == {
        "Add",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "ReduceMean",
        "Softmax",
    }


@pytest.mark.parametrize(("architecture", "bits"), EVERY)
def test_the_attack_graph_has_the_gradient_of_the_twin(architecture, bits):
    expected = twin_logits(architecture, bits)
    onehot = np.eye(10, dtype=np.float32)[np.arange(IMAGES) % 10]
    feeds = {
        "image": images(architecture),
        "onehot": onehot,
        "engine_logits": expected,
        "own_logits": np.array(False),
        "loss_weights": np.array([1, 0], np.float32),
        "seed": np.zeros_like(expected),
    }
    result = run_graph(build_attack_graph(canonical(architecture, bits), masks="exact"), feeds)
    assert_same_network(result["logits"], expected, architecture)

    pixels = centred(torch.from_numpy(images(architecture))).requires_grad_()
    z, y = torch.from_numpy(expected).double(), torch.from_numpy(onehot).double()
    seed = (torch.softmax(z - 1e9 * y, 1) - y).float()
    (gradient,) = torch.autograd.grad(tiny_twin(architecture, bits)(pixels), pixels, seed)
    errors = [relative_error(*pair) for pair in zip(result["gradient"], gradient.numpy(), strict=True)]
    assert np.median(np.abs(gradient.numpy()).max((1, 2, 3))) > 0
    if architecture in WITH_FLOAT_PARTS:  # a code on the other side of a border is another path of the gradient
        assert np.median(errors) < 1e-4
    else:
        assert max(errors) < 1e-4
