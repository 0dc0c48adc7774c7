"""Networks as other tools write them: blocks of attention and of MobileNet, and published files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn import functional

from gradient_reference import check_rule, evaluate, relative_error, run
from hardbit.graph.gradient import build_attack_graph, coverage

TOKENS, WIDTH, HEADS = 5, 12, 3


def draws(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def node(operator, inputs, output, **options):
    return helper.make_node(operator, inputs.split(), output.split(), name=output.split()[0], **options)


def test_a_block_of_attention_as_pytorch_exports_it():
    """Queries, keys and values are made by one product, after which the batch is the second axis; GELU by its tanh."""
    depth = WIDTH // HEADS
    weights = {"wqkv": draws(WIDTH, 3 * WIDTH, seed=1, scale=0.3), "wout": draws(WIDTH, WIDTH, seed=2, scale=0.3)}
    weights |= {"w1": draws(WIDTH, 20, seed=3, scale=0.3), "w2": draws(20, WIDTH, seed=4, scale=0.3)}
    weights |= {"bqkv": draws(3 * WIDTH, seed=5), "scale": draws(WIDTH, seed=6), "shift": draws(WIDTH, seed=7)}
    numbers = {"root": math.sqrt(depth), "three": 3.0, "bend": 0.044715, "rate": math.sqrt(2 / math.pi), "one": 1.0}
    constants = weights | {name: np.float32(value) for name, value in (numbers | {"half": 0.5}).items()}
    constants |= {"apart": np.array([0, TOKENS, 3, HEADS, depth]), "joined": np.array([0, TOKENS, WIDTH])}
    constants |= {f"i{k}": np.array(k) for k in range(3)}
    nodes = [
        node("LayerNormalization", "x scale shift", "n1"),
        node("MatMul", "n1 wqkv", "m"),
        node("Add", "m bqkv", "qkv"),
        node("Reshape", "qkv apart", "parts"),
        node("Transpose", "parts", "moved", perm=[2, 0, 3, 1, 4]),
        *(node("Gather", f"moved i{k}", "qkv"[k] + "_", axis=0) for k in range(3)),
        node("Transpose", "k_", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "q_ kt", "products"),
        node("Div", "products root", "scores"),
        node("Softmax", "scores", "shares"),
        node("MatMul", "shares v_", "heads"),
        node("Transpose", "heads", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back joined", "together"),
        node("MatMul", "together wout", "out"),
        node("Add", "x out", "r1"),
        node("LayerNormalization", "r1 scale shift", "n2"),
        node("MatMul", "n2 w1", "h"),
        node("Pow", "h three", "cube"),
        node("Mul", "cube bend", "bent"),
        node("Add", "h bent", "inner"),
        node("Mul", "inner rate", "u"),
        node("Tanh", "u", "t"),
        node("Add", "t one", "p"),
        node("Mul", "h p", "hp"),
        node("Mul", "hp half", "g"),
        node("MatMul", "g w2", "m2"),
        node("Add", "r1 m2", "y"),
    ]
    w = {name: torch.from_numpy(value).double() for name, value in weights.items()}

    def by_torch(x):
        norm = lambda i: functional.layer_norm(i, (WIDTH,), w["scale"], w["shift"])  # noqa: E731
        projected = norm(x) @ w["wqkv"] + w["bqkv"]
        q, k, v = (p.unflatten(-1, (HEADS, depth)).transpose(1, 2) for p in projected.split(WIDTH, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + mixed @ w["wout"]
        return x + functional.gelu(norm(x) @ w["w1"], approximate="tanh") @ w["w2"]

    check_rule(nodes, draws(2, TOKENS, WIDTH), by_torch, constants, tolerance=1e-5)


def test_a_block_of_mobilenet_with_hard_swish_and_squeeze_and_excitation():
    shapes = {"expand": (16, 8, 1, 1), "depthwise": (16, 1, 3, 3), "squeeze": (4, 16, 1, 1)}
    shapes |= {"excite": (16, 4, 1, 1), "project": (8, 16, 1, 1)}
    constants = {name: draws(*shape, seed=k, scale=0.5) for k, (name, shape) in enumerate(shapes.items())}
    constants |= {name: np.random.default_rng(9).uniform(0.5, 1.5, 16).astype(np.float32) for name in "gbmv"}
    nodes = [
        node("Conv", "x expand", "e"),
        node("BatchNormalization", "e g b m v", "n"),
        node("HardSwish", "n", "a"),
        node("Conv", "a depthwise", "d", group=16, pads=[1, 1, 1, 1]),
        node("HardSwish", "d", "f"),
        node("GlobalAveragePool", "f", "s"),
        node("Conv", "s squeeze", "q"),
        node("Relu", "q", "r"),
        node("Conv", "r excite", "z"),
        node("HardSigmoid", "z", "gate", alpha=1 / 6),
        node("Mul", "f gate", "w"),
        node("Conv", "w project", "p"),
        node("Add", "p x", "y"),
    ]
    w = {name: torch.from_numpy(value).double() for name, value in constants.items()}

    def by_torch(x):
        a = functional.batch_norm(functional.conv2d(x, w["expand"]), w["m"], w["v"], w["g"], w["b"])
        f = functional.hardswish(functional.conv2d(functional.hardswish(a), w["depthwise"], padding=1, groups=16))
        r = torch.relu(functional.conv2d(f.mean((2, 3), keepdim=True), w["squeeze"]))
        return functional.conv2d(f * functional.hardsigmoid(functional.conv2d(r, w["excite"])), w["project"]) + x

    check_rule(nodes, draws(2, 8, 6, 5), by_torch, constants, tolerance=1e-5)


PUBLISHED = {
    "cifar_base_kw": (3, 32, 32),
    "gtsrb_bnn_30": (3, 30, 30),
    "kw_mnist": (1, 28, 28),
    "marabou_cifar10_medium": (3, 32, 32),
    "mnist-net_256x2": (1, 28, 28),
    "resnet32_akamaster": (3, 32, 32),
    "resnet_2b": (3, 32, 32),
}
BINARY_ON_BYTES = {"gtsrb_bnn_30"}  # so sums before a Sign are far from 1, and only the identity lets any gradient pass


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_networks_have_the_gradient_that_autograd_finds_in_float64(name):
    folder = os.environ.get("HARDBIT_THIRD_PARTY")
    if folder is None:
        pytest.skip("HARDBIT_THIRD_PARTY names no folder of published networks")
    from hardbit.importing.network import import_network
    from hardbit.importing.preprocessing import Preprocessing

    preprocessing = Preprocessing(scale=1.0) if name in BINARY_ON_BYTES else Preprocessing()
    path = Path(folder) / f"{name}.onnx"
    imported = import_network(path, preprocessing=preprocessing, image_shape=PUBLISHED[name])
    assert {row.status for row in coverage(imported.model)} <= {"covered", "not on the path"}
    rng = np.random.default_rng(0)
    shades = np.linspace(0, 255, math.prod(imported.input_shape)).reshape(
        imported.input_shape
    )  # noise alone kills ReLUs
    pixels = (shades * rng.random((4, *imported.input_shape)) ** 4).astype(np.uint8)
    seed = rng.standard_normal((4, imported.classes)).astype(np.float32)
    feeds = {"image": pixels, "onehot": np.eye(imported.classes, dtype=np.float32)[:4], "engine_logits": seed}
    feeds |= {"own_logits": np.array(False), "loss_weights": np.zeros(2, np.float32), "seed": seed}
    straight_through, reach = ("identity", math.inf) if name in BINARY_ON_BYTES else ("clipped", 1.0)
    result = run(build_attack_graph(imported.model, straight_through=straight_through), feeds)
    x = ((torch.from_numpy(pixels).double() - 128) / 256).requires_grad_()
    logits = evaluate(imported.model, {"image": x}, reach=reach)["logits"]
    (expected,) = torch.autograd.grad(logits, x, torch.from_numpy(seed).double())
    assert relative_error(result["logits"], logits.detach().numpy()) < 1e-5
    assert expected.abs().max() > 0
    assert relative_error(result["gradient"], expected.numpy()) < 1e-4
