"""The losses start from the engine's logits, and their direction is right at every scale of those."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from canonical_examples import plain_cnn, residual_net
from gradient_reference import evaluate, relative_error, run
from hardbit.graph.gradient import build_attack_graph
from hardbit.graph.gradient.losses import weighted_losses
from hardbit.graph.gradient.primal import index_graph
from hardbit.graph.gradient.tape import Tape

BATCH, CLASSES = 64, 10
CROSS_ENTROPY, MARGIN = np.array([1, 0], np.float32), np.array([0, 1], np.float32)


def losses(logits, onehot, weights):
    """`loss` and `seed` at given logits, from a model that holds nothing but the losses."""
    rows = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    opset = [helper.make_opsetid("", 18)]
    empty = helper.make_model(helper.make_graph([], "empty", [rows], [rows]), opset_imports=opset)
    tape = Tape(index_graph(empty))
    names = weighted_losses(tape, "logits", "onehot", "weights")
    inputs = [
        rows,
        helper.make_tensor_value_info("onehot", TensorProto.FLOAT, ["batch", CLASSES]),
        helper.make_tensor_value_info("weights", TensorProto.FLOAT, [2]),
    ]
    outputs = [
        helper.make_tensor_value_info(names.loss, TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info(names.seed, TensorProto.FLOAT, ["batch", CLASSES]),
    ]
    graph = helper.make_graph(tape.nodes, "losses", inputs, outputs, list(tape.initializers.values()))
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    result = run(model, {"logits": logits, "onehot": onehot, "weights": weights})
    return result[names.loss], result[names.seed]


def examples(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((BATCH, CLASSES)) * 3 * scale).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    labels[: BATCH // 2] = logits.argmax(1)[: BATCH // 2]  # right and wrong answers
    return logits, labels, np.eye(CLASSES, dtype=np.float32)[labels]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1000.0])
def test_the_cross_entropy_seed_has_the_direction_of_the_true_gradient(scale):
    logits, labels, onehot = examples(scale)
    z = torch.from_numpy(logits).double().requires_grad_()
    # The true gradient, divided by its positive factor 1 - p_y; in log space, or float64 too would round it to 0.
    others = z.detach().clone()
    others[torch.arange(BATCH), torch.from_numpy(labels)] = -torch.inf
    expected = torch.softmax(others, 1).numpy() - onehot
    loss, seed = losses(logits, onehot, CROSS_ENTROPY)
    assert relative_error(seed, expected) < 1e-6
    true = torch.nn.functional.cross_entropy(z, torch.from_numpy(labels), reduction="none")
    np.testing.assert_allclose(loss, true.detach().numpy(), rtol=1e-5, atol=2e-6 * max(scale, 1))
    (gradient,) = torch.autograd.grad(true.sum(), z)
    factor = np.linalg.norm(gradient.numpy(), axis=1)
    informative = factor > 1e-8
    assert informative.any()
    direction = gradient.numpy()[informative] / factor[informative, None]
    np.testing.assert_allclose(direction, (seed / np.linalg.norm(seed, axis=1, keepdims=True))[informative], atol=1e-5)


def test_no_image_is_without_a_seed_however_confident_the_network():
    logits, _, onehot = examples(1000.0)
    _, seed = losses(logits, onehot, CROSS_ENTROPY)
    assert (np.abs(seed).max(axis=1) >= 1).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
def test_the_margin_is_the_best_wrong_logit_minus_the_right_one(scale):
    logits, labels, onehot = examples(scale)
    loss, seed = losses(logits, onehot, MARGIN)
    for row in range(BATCH):
        wrong = [k for k in range(CLASSES) if k != labels[row]]
        rival = max(wrong, key=lambda k: logits[row, k])
        np.testing.assert_allclose(loss[row], logits[row, rival] - logits[row, labels[row]], rtol=1e-6)
        expected = np.zeros(CLASSES)
        expected[rival], expected[labels[row]] = 1, -1
        np.testing.assert_array_equal(seed[row], expected)


def test_among_equal_rivals_the_first_is_taken():
    logits = np.zeros((1, CLASSES), np.float32)
    _, seed = losses(logits, np.eye(CLASSES, dtype=np.float32)[[0]], MARGIN)
    np.testing.assert_array_equal(seed, [[-1, 1, *[0] * 8]])


def test_weights_mix_the_losses_linearly():
    logits, _, onehot = examples()
    parts = [losses(logits, onehot, weights) for weights in (CROSS_ENTROPY, MARGIN)]
    mixed = losses(logits, onehot, np.array([0.25, 2.0], np.float32))
    for one, other, both in zip(*parts, mixed, strict=True):
        np.testing.assert_allclose(both, 0.25 * one + 2.0 * other, rtol=1e-5, atol=1e-6)


def test_a_seed_is_added_to_the_derivative_of_the_losses_and_alone_it_is_the_gradient():
    model = residual_net(4)
    rng = np.random.default_rng(0)
    feeds = {
        "image": rng.integers(0, 256, (8, 3, 16, 16)).astype(np.uint8),
        "onehot": np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, 8)],
        "engine_logits": 1e4 * rng.standard_normal((8, CLASSES)).astype(np.float32),
        "own_logits": np.array(False),
    }
    graph, outside = build_attack_graph(model), rng.standard_normal((8, CLASSES)).astype(np.float32)
    none, nothing = np.zeros(2, np.float32), np.zeros_like(outside)
    alone, of_losses, both = (
        run(graph, feeds | {"loss_weights": weights, "seed": seed})
        for weights, seed in ((none, outside), (CROSS_ENTROPY, nothing), (CROSS_ENTROPY, outside))
    )
    x = ((torch.from_numpy(feeds["image"]).double() - 128) / 256).requires_grad_()
    (expected,) = torch.autograd.grad(evaluate(model, {"image": x})["logits"], x, torch.from_numpy(outside).double())
    assert relative_error(alone["gradient"], expected.numpy()) < 1e-6
    assert relative_error(both["gradient"], of_losses["gradient"] + alone["gradient"]) < 1e-5
    np.testing.assert_array_equal(both["loss"], of_losses["loss"])
    np.testing.assert_array_equal(alone["loss"], np.zeros(8))


@pytest.mark.parametrize("weights", [CROSS_ENTROPY, MARGIN])
def test_the_gradient_follows_logits_from_outside_not_its_own(weights):
    model = plain_cnn(4)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 1, 12, 12)).astype(np.uint8)
    onehot = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, 8)]
    graph = build_attack_graph(model)
    x = ((torch.from_numpy(pixels).double() - 128) / 256).requires_grad_()
    own = evaluate(model, {"image": x})["logits"]
    gradients = []
    for seed in range(2):
        outside = np.random.default_rng(seed).standard_normal((8, CLASSES)).astype(np.float32)
        feeds = {
            "image": pixels,
            "onehot": onehot,
            "engine_logits": outside,
            "own_logits": np.array(False),
            "loss_weights": weights,
            "seed": np.zeros_like(outside),
        }
        result = run(graph, feeds)
        z = torch.from_numpy(outside).double()
        others = z.masked_fill(torch.from_numpy(onehot) > 0, -torch.inf)
        rival = torch.softmax(others, 1) if weights[0] else torch.eye(CLASSES).double()[others.argmax(1)]
        (expected,) = torch.autograd.grad(own, x, rival - torch.from_numpy(onehot).double(), retain_graph=True)
        assert relative_error(result["gradient"], expected.numpy()) < 1e-6
        np.testing.assert_array_equal(result["logits"], own.detach().numpy())
        gradients.append(result["gradient"])
    assert not np.array_equal(*gradients)
