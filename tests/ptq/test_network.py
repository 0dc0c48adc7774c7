"""A float ONNX classifier becomes a canonical graph whose layers run in integers, and which computes what it did."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from executed_precision import executed_precision_of
from float_networks import NETWORKS, FloatBuilder, plain_network, residual_network, token_network
from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.graph.onnx_graph import OnnxGraph, bits_of
from hardbit.graph.quantized_layers import bias_is_on_grid, quantized_layers
from hardbit.ptq import quantize_network
from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit_deploy.errors import HardbitError
from lowering_examples import constants, images_for, run, with_constants

LAYERS = {
    "plain": ["conv1", "conv2", "fc1", "fc2"],
    "residual": ["stem", "one.conv1", "one.conv2", "two.conv1", "two.conv2", "fc"],
    "tokens": ["patches", "query", "key", "value", "out", "fc"],
    "binary": ["fc"],
}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - theirs.mean(0)))


@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    def test_every_layer_that_can_be_is_executed_in_integers(self, name: str) -> None:
        model = NETWORKS[name]()
        images = images_for(model)
        for bits in (8, 4):
            canonical = quantize_network(model, images, bits=bits)
            report = executed_precision_of(canonical, images)
            assert sorted(row["name"] for row in integer_nodes(canonical)) == sorted(LAYERS[name])
            assert (report.status, report.problems) == ("integer", ())

    def test_the_engine_agrees_with_the_canonical_graph(self, name: str) -> None:
        model = NETWORKS[name]()
        images = images_for(model, 128)
        canonical = quantize_network(model, images)
        engine = run(lower(canonical, "onnxruntime"), images, optimised=True)
        own = run(canonical, images)
        assert relative_error(engine, own) < 0.01
        assert np.mean(engine.argmax(1) == own.argmax(1)) >= 0.98

    def test_the_attack_graph_computes_the_network(self, name: str) -> None:
        model = NETWORKS[name]()
        images = images_for(model, 8)
        canonical = quantize_network(model, images)
        attack = build_attack_graph(canonical, masks="exact")
        feed = attack_inputs(attack, images, run(canonical, images))
        gradient, logits = run_outputs(attack, feed, ["gradient", "logits"])
        assert relative_error(logits, run(canonical, images)) < 0.01
        assert np.isfinite(gradient).all()
        assert np.any(gradient, axis=(1, 2, 3)).all()


def attack_inputs(attack: onnx.ModelProto, images: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    onehot = np.eye(10, dtype=np.float32)[np.arange(len(images)) % 10]
    given = {
        "image": images,
        "onehot": onehot,
        "engine_logits": logits,
        "own_logits": np.array(True),
        "loss_weights": np.array([0, 1], np.float32),
        "seed": np.zeros_like(onehot),
    }
    return {value.name: given[value.name] for value in attack.graph.input}


def run_outputs(model: onnx.ModelProto, feed: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, feed)


@pytest.mark.parametrize(
    ("name", "calibration"),
    [
        *(
            (name, calibration)
            for name in ("plain", "residual", "tokens")
            for calibration in ("max", "percentile", "mse")
        ),
        ("plain", "entropy"),
    ],
)
def test_eight_bits_are_near_the_float_network(name: str, calibration: str) -> None:
    model = NETWORKS[name]()
    images = images_for(model, 64)
    canonical = quantize_network(model, images, calibration=calibration)
    assert relative_error(run(canonical, images), run(model, images)) < (0.2 if calibration == "entropy" else 0.06)


def test_the_straight_through_gradient_is_near_the_float_networks_own() -> None:
    model = residual_network()
    images = images_for(model, 16)
    gradients = []
    for network in (model, quantize_network(model, images)):
        attack = build_attack_graph(network, masks="exact")
        gradients.append(run_outputs(attack, attack_inputs(attack, images, run(network, images)), ["gradient"])[0])
    ours, theirs = (gradient.reshape(len(images), -1) for gradient in gradients)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert np.median(cosine) > 0.9


@pytest.mark.parametrize("activation", ["HardSwish", "LeakyRelu", "Sigmoid", "Tanh"])
def test_layers_before_a_smooth_function_are_integer_and_the_function_is_declared(activation: str) -> None:
    model = plain_network(activation)
    images = images_for(model)
    canonical = quantize_network(model, images)
    assert executed_precision_of(canonical, images).status == "integer"
    declared = {row["name"] for row in float_nodes(canonical)}
    assert declared == {"front.mul", "front.add", "act1", "act2", "act3"}
    assert relative_error(run(canonical, images), run(model, images)) < 0.15  # a sigmoid leaves little contrast


def test_what_stays_in_float_says_why() -> None:
    model = token_network()
    canonical = quantize_network(model, images_for(model))
    reasons = {row["name"]: row["reason"] for row in float_nodes(canonical)}
    assert set(reasons) == {"front.mul", "front.add", "norm", "scores", "scaled", "shares", "mixed", "sum", "mean"}
    assert reasons["front.mul"].startswith("preprocessing")
    assert reasons["scores"] == "a product of two activations"


def test_a_relu6_is_left_to_the_quantizer_behind_it() -> None:
    model = residual_network()
    bright = with_constants(model, {"stem.b": constants(model)["stem.b"] + 20})  # nearly all are cut at 6
    canonical = quantize_network(bright, images_for(model), calibration="max")
    assert "Clip" not in {each.op_type for each in canonical.graph.node}
    assert node(canonical, "stem.act").op_type == "Relu"
    assert constants(canonical)["stem.act.result.scale"] == np.float32(6 / 255)


def test_sums_take_codes_and_picked_values_keep_their_scale() -> None:
    canonical = quantize_network(residual_network(), images_for(residual_network()))
    graph = OnnxGraph(canonical)
    for name in ("one.add", "two.add"):
        producers = [graph.producer(tensor) for tensor in node(canonical, name).input]
        assert [producer.op_type for producer in producers if producer is not None] == ["DequantizeLinear"] * 2
    values = constants(canonical)
    assert values["two.pad.result.scale"] == values["one.relu2.result.scale"]


@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
def test_widths(bits: int) -> None:
    model = plain_network()
    canonical = quantize_network(model, images_for(model), bits=bits)
    check_canonical(canonical)
    values = constants(canonical)
    widths = {name: np.abs(values[f"{name}.weight.codes"].astype(int)).max() for name in LAYERS["plain"]}
    largest = 2 ** (bits - 1) - 1
    assert widths == {"conv1": 127, "conv2": largest, "fc1": largest, "fc2": 127}
    assert bits_of(node(canonical, "act1.result.quantize")) == bits
    assert bits_of(node(canonical, "front.add.result.quantize")) == 8
    if bits < 8:
        assert values["act1.result.high"] == 2**bits - 1


def test_biases_are_counts_of_their_accumulator() -> None:
    model = residual_network()
    graph = OnnxGraph(quantize_network(model, images_for(model)))
    layers = quantized_layers(graph)
    assert len(layers) == 6
    for layer in layers:
        assert layer.node.input[2]
        assert bias_is_on_grid(graph, layer)


def test_one_scale_for_all_channels_on_request() -> None:
    model = plain_network()
    canonical = quantize_network(model, images_for(model), per_channel=False)
    assert len(np.unique(constants(canonical)["conv2.weight.scale"])) == 1
    assert executed_precision_of(canonical, images_for(model)).status == "integer"


def test_no_image_is_cut_off_by_its_quantizer() -> None:
    model = plain_network()
    grey = np.full((4, 3, 16, 16), 120, np.uint8)
    canonical = quantize_network(model, grey, calibration="percentile")
    values = constants(canonical)
    scale, zero_point = values["front.add.result.scale"], int(values["front.add.result.zero_point"])
    extremes = [-0.5 * 4.4 + 0.1, 127 / 256 * 4.4 + 0.4]
    assert -zero_point * scale <= extremes[0] + scale / 2
    assert (255 - zero_point) * scale >= extremes[1] - scale / 2


def test_a_network_without_preprocessing_reads_bytes_as_they_are() -> None:
    b = FloatBuilder()
    x = b.node("Relu", [b.conv("image", "conv", (4, 3, 3, 3))], "relu")
    model = b.model(b.gemm(b.node("Flatten", [x], "flatten", axis=1), "fc", 784, 10))
    canonical = quantize_network(model, np.full((2, 3, 16, 16), 90, np.uint8))
    values = constants(canonical)
    assert (values["image.scale"], values["image.zero_point"]) == (np.float32(1 / 256), 128)


def test_signs_and_binary_weights_are_exact() -> None:
    model = NETWORKS["binary"]()
    images = images_for(model)
    canonical = quantize_network(model, images)
    np.testing.assert_allclose(run(canonical, images), run(model, images), atol=1e-4)
    values = constants(canonical)
    assert set(np.unique(values["fc.weight.codes"])) == {-1, 1}
    reasons = {row["name"]: row["reason"] for row in float_nodes(canonical)}
    assert reasons["conv2"] == "its exact sum decides between -1 and +1"
    assert "straight through" in reasons["sign1"]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"calibration": "best"}, "there is no calibration 'best'; known: max, percentile, entropy, mse"),
        ({"bits": 1}, "1 bits; give a width from 2 to 8"),
        ({"images": np.zeros((0, 3, 16, 16), np.uint8)}, "no images to calibrate with"),
    ],
)
def test_wrong_requests_are_refused(changes: dict, refusal: str) -> None:
    arguments = {"images": images_for(plain_network()), **changes}
    with pytest.raises(HardbitError, match=refusal):
        quantize_network(plain_network(), **arguments)


def test_a_network_that_computes_no_numbers_is_refused_by_the_tensor() -> None:
    model = with_constants(plain_network(), {"conv1.b": np.full(12, np.inf, np.float32)})
    with pytest.raises(HardbitError, match=r"^act1\.out: the network computes what is no finite number"):
        quantize_network(model, images_for(model))


def test_no_training_framework_is_imported() -> None:
    script = "import sys, hardbit.ptq, hardbit.targets; sys.exit('torch' in sys.modules or 'brevitas' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_dead_channel_and_a_dead_tensor_are_taken() -> None:
    model = plain_network()
    values = constants(model)
    weight, bias = values["conv1.w"].copy(), np.full(12, -100, np.float32)  # behind the Relu all is 0
    weight[3] = 0
    dead = with_constants(model, {"conv1.w": weight, "conv1.b": bias})
    images = images_for(model)
    canonical = quantize_network(dead, images)
    np.testing.assert_allclose(run(canonical, images), run(dead, images), atol=0.05)
