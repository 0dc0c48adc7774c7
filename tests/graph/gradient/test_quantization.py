"""Quantizers pass the gradient straight through exactly where nothing saturates."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from canonical_examples import CanonicalBuilder, plain_cnn, residual_net
from gradient_reference import evaluate, one_operator, relative_error, run
from hardbit.graph.gradient import build_attack_graph, differentiate

SCALE = 2.0**-4


def quantizer(dtype, zero_point, low=None, high=None, relu=False):
    """x -> [Relu] -> QuantizeLinear -> [Clip] -> DequantizeLinear, and its constants."""
    constants = {"s": np.float32(SCALE), "z": dtype(zero_point)}
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="relu")] if relu else []
    nodes.append(helper.make_node("QuantizeLinear", ["r" if relu else "x", "s", "z"], ["q"], name="quantize"))
    if low is not None:
        constants |= {"low": dtype(low), "high": dtype(high)}
        nodes.append(helper.make_node("Clip", ["q", "low", "high"], ["c"], name="clip"))
    nodes.append(helper.make_node("DequantizeLinear", ["c" if low is not None else "q", "s", "z"], ["y"], name="dq"))
    return nodes, constants


CASES = [
    pytest.param(np.int8, 0, None, None, id="8 bits signed"),
    pytest.param(np.uint8, 0, None, None, id="8 bits unsigned"),
    pytest.param(np.uint8, 128, None, None, id="8 bits, zero point 128"),
    pytest.param(np.int8, -3, None, None, id="8 bits, odd zero point"),
    pytest.param(np.uint8, 0, 0, 127, id="7 bits unsigned"),
    pytest.param(np.int8, 0, -8, 7, id="4 bits signed"),
    pytest.param(np.int8, 0, -7, 7, id="4 bits narrow"),
    pytest.param(np.uint8, 0, 0, 15, id="4 bits unsigned"),
    pytest.param(np.int8, 0, -1, 1, id="ternary"),
    pytest.param(np.uint8, 0, 0, 3, id="2 bits unsigned"),
]


@pytest.mark.parametrize(("dtype", "zero_point", "low", "high"), CASES)
@pytest.mark.parametrize("relu", [False, True])
def test_the_gradient_passes_where_the_rounded_code_is_in_range(dtype, zero_point, low, high, relu):
    """On and around every half step, where rounding half to even decides on which side an edge falls."""
    steps = np.arange(-600, 600) / 2
    x = (np.concatenate([steps - 2**-10, steps, steps + 2**-10]) * SCALE).astype(np.float32)[None]
    limits = (np.iinfo(dtype).min, np.iinfo(dtype).max) if low is None else (low, high)
    codes = np.round(x.astype(np.float64) / SCALE) + zero_point
    expected = (codes >= limits[0]) & (codes <= limits[1])
    if relu:
        codes = np.round(np.maximum(x, 0).astype(np.float64) / SCALE) + zero_point
        expected = (x > 0) & (codes >= limits[0]) & (codes <= limits[1])
    nodes, constants = quantizer(dtype, zero_point, low, high, relu)
    model = one_operator(nodes, x, x.shape, constants)
    result = run(differentiate(model, "y", "x"), {"x": x, "grad_output": np.full_like(x, 3)})
    np.testing.assert_array_equal(result["gradient"], np.where(expected, 3, 0))
    np.testing.assert_array_equal(result["y"], (np.clip(codes, *limits) - zero_point) * SCALE)


@pytest.mark.parametrize("relu", [False, True])
def test_masks_from_codes_differ_on_the_outermost_codes_only(relu):
    x = (np.arange(-600, 600) / 2 * SCALE).astype(np.float32)[None]
    nodes, constants = quantizer(np.uint8 if relu else np.int8, 0, relu=relu)
    model = one_operator(nodes, x, x.shape, constants)
    feeds = {"x": x, "grad_output": np.ones_like(x)}
    exact = run(differentiate(model, "y", "x"), feeds)["gradient"]
    coarse = run(differentiate(model, "y", "x", masks="auto"), feeds)["gradient"]
    codes = np.clip(np.round(x / SCALE), 0 if relu else -128, 255 if relu else 127)
    outermost = (codes == codes.min()) | (codes == codes.max())
    np.testing.assert_array_equal(coarse[~outermost], exact[~outermost])
    np.testing.assert_array_equal(coarse[outermost], 0)


def test_codes_with_zero_in_their_middle_do_not_carry_the_mask_of_a_relu():
    x = (np.arange(-600, 600) / 2 * SCALE).astype(np.float32)[None]
    nodes, constants = quantizer(np.int8, 0, relu=True)
    model = one_operator(nodes, x, x.shape, constants)
    result = run(differentiate(model, "y", "x", masks="auto"), {"x": x, "grad_output": np.ones_like(x)})
    np.testing.assert_array_equal(result["gradient"], (x > 0) & (np.round(x / SCALE) < 127))


@pytest.mark.parametrize("edge", [127.5, -128.5])
def test_values_that_end_exactly_on_an_edge(edge):
    """Rounding half to even takes 127.5 out of the range of int8, and -128.5 into it."""
    x = (np.arange(-600, 600) / 4 * SCALE).astype(np.float32)[None]
    nodes, constants = quantizer(np.int8, 0)
    nodes[0].input[0] = "clipped"
    bounds = ["x", "", "edge"] if edge > 0 else ["x", "edge", ""]
    nodes.insert(0, helper.make_node("Clip", bounds, ["clipped"], name="clip"))
    model = one_operator(nodes, x, x.shape, constants | {"edge": np.float32(edge * SCALE)})
    inside = x / SCALE <= edge if edge > 0 else x / SCALE >= edge
    codes = np.round(np.minimum(x / SCALE, edge) if edge > 0 else np.maximum(x / SCALE, edge))
    result = run(differentiate(model, "y", "x"), {"x": x, "grad_output": np.ones_like(x)})
    np.testing.assert_array_equal(result["gradient"], inside & (codes >= -128) & (codes <= 127))


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_averages_of_both_signs_still_saturate(pads):
    """What is known of a pool's output comes from its input: here nothing, so both edges need their mask."""
    x = (np.random.default_rng(0).standard_normal((4, 2, 8, 8)) * 200 * SCALE).astype(np.float32)
    nodes, constants = quantizer(np.int8, 0)
    nodes[0].input[0] = "pooled"
    options = {"kernel_shape": (2, 2), "strides": (2, 2), "pads": pads}
    nodes.insert(0, helper.make_node("AveragePool", ["x"], ["pooled"], name="pool", **options))
    image = torch.from_numpy(x).double().requires_grad_()
    size = 4 if pads[0] == 0 else 5
    model = one_operator(nodes, x, (4, 2, size, size), constants)
    y = evaluate(model, {"x": image})["y"]
    (expected,) = torch.autograd.grad(y.sum(), image)
    result = run(differentiate(model, "y", "x"), {"x": x, "grad_output": np.ones(y.shape, np.float32)})
    assert 0 < (expected == 0).double().mean() < 1
    assert relative_error(result["gradient"], expected.numpy()) < 1e-6


@pytest.mark.parametrize("bits", [7, 4, 2])
def test_masks_from_codes_are_not_taken_below_eight_bits(bits):
    nodes, constants = quantizer(np.uint8, 0, 0, 2**bits - 1, relu=True)
    model = one_operator(nodes, np.zeros((1, 4), np.float32), (1, 4), constants)
    assert differentiate(model, "y", "x", masks="auto") == differentiate(model, "y", "x", masks="exact")


NETWORKS = [(plain_cnn, bits) for bits in (8, 7, 4, 3)] + [(residual_net, bits) for bits in (8, 7, 4, 3, 2)]


def attack(model: onnx.ModelProto, masks: str, seed: int = 0, batch: int = 32):
    """The attack graph's outputs on random bytes, and what the float64 reference says of the same."""
    rng = np.random.default_rng(seed)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    pixels = rng.integers(0, 256, (batch, *shape)).astype(np.uint8)
    onehot = np.eye(10, dtype=np.float32)[rng.integers(0, 10, batch)]
    engine_logits = rng.standard_normal((batch, 10)).astype(np.float32)
    feeds = {"image": pixels, "onehot": onehot, "engine_logits": engine_logits, "own_logits": np.array(False)}
    feeds |= {"loss_weights": np.array([1, 0], np.float32), "seed": np.zeros_like(engine_logits)}
    result = run(build_attack_graph(model, masks=masks), feeds)

    x = ((torch.from_numpy(pixels).double() - 128) / 256).requires_grad_()
    values = evaluate(model, {"image": x}, masks_from_codes=masks == "auto")
    z, y = torch.from_numpy(engine_logits).double(), torch.from_numpy(onehot).double()
    seed_by_torch = torch.softmax(z - 1e9 * y, 1) - y
    (gradient,) = torch.autograd.grad(values["logits"], x, seed_by_torch)
    return result, gradient.numpy(), values


@pytest.mark.parametrize(
    ("example", "bits"), [(plain_cnn, k) for k in (8, 7, 4, 3)] + [(residual_net, k) for k in (8, 7, 4, 3, 2)]
)
@pytest.mark.parametrize("masks", ["exact", "auto"])
def test_quantized_networks_against_float64_with_straight_through_rounding(example, bits, masks):
    result, gradient, values = attack(example(bits), masks)
    np.testing.assert_array_equal(result["logits"], values["logits"].detach().numpy())
    assert np.abs(gradient).max() > 0
    assert relative_error(result["gradient"], gradient) < 1e-6
    saturated = [
        int((values[f"{name}"] == values[f"{name}"].max()).sum()) for name in values if name.endswith(".clipped")
    ]
    assert bits == 8 or sum(saturated) > 100, "the example must exercise saturation"


@pytest.mark.parametrize("example", [plain_cnn, residual_net])
def test_at_eight_bits_masks_from_codes_leave_the_signs_almost_everywhere(example):
    exact, _, _ = attack(example(8), "exact")
    coarse, _, _ = attack(example(8), "auto")
    moving = exact["gradient"] != 0
    assert (np.sign(coarse["gradient"]) == np.sign(exact["gradient"]))[moving].mean() > 0.95


ZERO_POINTS = [(np.uint8, 117), (np.uint8, 3), (np.int8, -77), (np.uint8, 255)]


@pytest.mark.parametrize(("dtype", "zero_point"), ZERO_POINTS)
@pytest.mark.parametrize("masks", ["exact", "auto"])
def test_zero_points_of_calibrated_networks(dtype, zero_point, masks):
    """Any scale, any zero point: what post-training quantization makes of activations of both signs."""
    scale, x = np.float32(0.0371), np.random.default_rng(0).uniform(-12, 12, (2, 3, 8, 8)).astype(np.float32)
    nodes, constants = quantizer(dtype, zero_point)
    constants |= {"s": scale}
    model = one_operator(nodes, x, x.shape, constants)
    v = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    result = run(differentiate(model, "y", "x", masks=masks), {"x": x, "grad_output": v})
    limits = np.iinfo(dtype)
    codes = np.round(x.astype(np.float64) / scale) + zero_point
    inside = (codes >= limits.min) & (codes <= limits.max)
    if masks == "auto":
        inside = (codes > limits.min) & (codes < limits.max)
    np.testing.assert_array_equal(result["gradient"], np.where(inside, v, 0))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("clipped", [False, True])
def test_a_scale_and_a_zero_point_for_each_channel(axis, clipped):
    """On and around every half step, at zero points of both parities."""
    scales, zeros = np.array([0.5, 0.25, 1.0], np.float32), np.array([0, 3, -4], np.int8)
    steps = np.arange(-540, 541) / 2
    values = np.concatenate([steps - 2**-9, steps, steps + 2**-9])
    x = (values[None, None, :] * scales[None, :, None]).astype(np.float32)
    codes = np.round(values)[None, None, :] + zeros[None, :, None]
    low, high = (-8, 7) if clipped else (-128, 127)
    expected = (codes >= low) & (codes <= high)
    if axis == -1:
        x, expected = x.transpose(0, 2, 1), expected.transpose(0, 2, 1)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize", axis=axis),
        helper.make_node("Clip", ["q", "l", "h"], ["c"], name="clip"),
        helper.make_node("DequantizeLinear", ["c" if clipped else "q", "s", "z"], ["y"], name="dq", axis=axis),
    ]
    constants = {"s": scales, "z": zeros, "l": np.int8(-8), "h": np.int8(7)}
    model = one_operator(nodes if clipped else [nodes[0], nodes[2]], x, x.shape, constants)
    for masks in ("exact", "auto"):
        result = run(differentiate(model, "y", "x", masks=masks), {"x": x, "grad_output": np.ones_like(x)})
        np.testing.assert_array_equal(result["gradient"], expected)


def test_codes_that_are_read_by_another_scale_scale_the_gradient():
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(2, 6)
    nodes, constants = quantizer(np.int8, 0)
    nodes[-1].input[1] = "other"
    model = one_operator(nodes, x, x.shape, constants | {"other": np.float32(3 * SCALE)})
    result = run(differentiate(model, "y", "x"), {"x": x, "grad_output": np.ones_like(x)})
    np.testing.assert_array_equal(result["gradient"], np.full_like(x, 3))
    np.testing.assert_allclose(result["y"], 3 * np.round(x / SCALE) * SCALE)


def test_codes_of_channels_are_moved_in_front_of_their_scales():
    """A scale for each channel belongs to an axis: DequantizeLinear must not be put off behind a Transpose."""
    builder = CanonicalBuilder(0)
    scales, zeros = np.array([2**-7, 2**-6, 2**-8], np.float32), np.array([128, 100, 7], np.uint8)
    names = [builder.constant("s", scales), builder.constant("z", zeros)]
    codes = builder.node("QuantizeLinear", ["image", *names], "q", "quantize", axis=1)
    x = builder.node("DequantizeLinear", [codes, *names], "x", "dequantize", axis=1)
    x = builder.node("Transpose", [x], "t", "transpose", perm=[0, 2, 3, 1])
    x = builder.node("Flatten", [x], "flat", "flatten", axis=1)
    model = builder.model(builder.gemm(x, "fc", (10, 48), 0.01, 8), (3, 4, 4), 10)
    result, gradient, values = attack(model, "exact")
    assert relative_error(result["logits"], values["logits"].detach().numpy()) < 1e-6
    assert relative_error(result["gradient"], gradient) < 1e-6
