"""BatchNormalization, padding and signs: fewer operators, the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hardbit.importing import import_network
from hardbit_deploy.errors import HardbitError
from importing_examples import convolutional, logits_of, model_of, node, operators, pixels, run, saved, weights

IMAGES = pixels()
FEED = {"x": (IMAGES / 255).astype(np.float32)}


def same(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The operators of the import, behind the front, whose values are those of the source."""
    network = import_network(saved(model, folder))
    np.testing.assert_allclose(logits_of(network, IMAGES), run(model, FEED)[0], atol=2e-5)
    assert operators(network)[:2] == ["Mul", "Add"]
    return operators(network)[2:]


def statistics(channels: int, prefix: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(channels)
    drawn = {name: generator.normal(size=channels) for name in ("scale", "bias", "mean")}
    drawn["variance"] = generator.uniform(0.3, 2, channels)
    return {f"{prefix}{name}": value.astype(np.float32) for name, value in drawn.items()}


def normalization(source: str, target: str, prefix: str) -> onnx.NodeProto:
    words = ("scale", "bias", "mean", "variance")
    return node("BatchNormalization", [source, *(f"{prefix}{word}" for word in words)], target, epsilon=1e-3)


def test_batch_normalization_goes_into_the_layer_before_it(tmp_path: Path) -> None:
    """Into a convolution without and with a bias, and into a product with weights either way round."""
    nodes = [
        node("Conv", ["x", "w"], "h"),
        normalization("h", "i", "p"),
        node("Relu", ["i"], "r"),
        node("Conv", ["r", "u", "b"], "j"),
        normalization("j", "k", "p"),
        node("Flatten", ["k"], "f"),
        node("Gemm", ["f", "v", "c"], "g", transB=1),
        normalization("g", "n", "q"),
        node("Gemm", ["n", "z"], "o"),
        normalization("o", "y", "q"),
    ]
    constants = {
        "w": weights(6, 3, 3, 3),
        "u": weights(6, 6, 3, 3),
        "b": weights(6),
        "v": weights(4, 96),
        "c": weights(4),
        "z": weights(4, 4, seed=9),
        **statistics(6, "p"),
        **statistics(4, "q"),
    }
    model = model_of(nodes, constants, {"x": ["n", 3, 8, 8]})
    assert same(model, tmp_path) == ["Conv", "Relu", "Conv", "Flatten", "Gemm", "Gemm"]


def test_batch_normalization_without_such_a_layer_is_a_factor_and_a_shift(tmp_path: Path) -> None:
    """Before a layer, and behind one that somebody else reads too."""
    nodes = [
        normalization("x", "i", "p"),
        node("Conv", ["i", "w"], "h"),
        normalization("h", "k", "q"),
        node("Add", ["h", "k"], "a"),
        node("Flatten", ["a"], "f"),
        node("Gemm", ["f", "v"], "y", transB=1),
    ]
    constants = {"w": weights(6, 3, 3, 3), "v": weights(4, 216), **statistics(3, "p"), **statistics(6, "q")}
    model = model_of(nodes, constants, {"x": ["n", 3, 8, 8]})
    assert same(model, tmp_path) == ["Mul", "Add", "Conv", "Mul", "Add", "Add", "Flatten", "Gemm"]


@pytest.mark.parametrize("operator", ["BatchNormalization", "Dropout"])
def test_training_mode_is_refused_by_name(operator: str, tmp_path: Path) -> None:
    model = convolutional(opset=15)
    if operator == "Dropout":
        model.graph.node[1].CopyFrom(node("Dropout", ["h", "", "yes"], "r", "/layer"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    else:
        words = ("scale", "bias", "mean", "variance")
        outputs = ["r", "m", "v2"]
        model.graph.node[1].CopyFrom(
            onnx.helper.make_node(operator, ["h", *words], outputs, name="/layer", training_mode=1)
        )
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in statistics(6, "").items())
    with pytest.raises(HardbitError, match="training mode") as caught:
        import_network(saved(model, tmp_path))
    assert caught.value.where == "/layer"


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_is_asked_for_by_a_word_is_written_in_numbers(mode: str, tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], "h", auto_pad=mode, strides=[2, 2], kernel_shape=[4, 4]),
        node("MaxPool", ["h"], "p", auto_pad=mode, strides=[2, 2], kernel_shape=[3, 3]),
        node("GlobalAveragePool", ["p"], "g"),
        node("Flatten", ["g"], "y"),
    ]
    model = model_of(nodes, {"w": weights(4, 3, 4, 4)}, {"x": ["n", 3, 8, 8]})
    network = import_network(saved(model, tmp_path))
    assert not [a for each in network.model.graph.node for a in each.attribute if a.name == "auto_pad"]
    np.testing.assert_allclose(logits_of(network, IMAGES), run(model, FEED)[0], atol=1e-5)


def padded(amounts: list[int], **attributes: object) -> onnx.ModelProto:
    model = convolutional(size=8)
    model.graph.node[0].input[0] = "p"
    del model.graph.node[0].attribute[:]
    model.graph.node.insert(0, node("Pad", ["x", "amounts"], "p", **attributes))
    model.graph.initializer.append(numpy_helper.from_array(np.array(amounts), "amounts"))
    return model


def test_zeros_around_the_image_become_the_convolution_s_own(tmp_path: Path) -> None:
    assert "Pad" not in same(padded([0, 0, 1, 2, 0, 0, 1, 0]), tmp_path)


def test_other_padding_stays(tmp_path: Path) -> None:
    assert "Pad" in same(padded([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"), tmp_path)


def test_two_signs_become_one(tmp_path: Path) -> None:
    """As Larq writes it; a sum that is exactly 0 counts as +1."""
    nodes = [
        node("Conv", ["x", "w"], "h"),
        node("Sign", ["h"], "s"),
        node("Add", ["s", "tenth"], "a"),
        node("Sign", ["a"], "t"),
        node("Flatten", ["t"], "f"),
        node("MatMul", ["f", "v"], "y"),
    ]
    signs = np.sign(weights(6, 3, 3, 3)).astype(np.float32)
    signs[0] = 0  # sums of 0
    model = model_of(
        nodes, {"w": signs, "tenth": np.float32(0.1), "v": np.sign(weights(216, 4))}, {"x": ["n", 3, 8, 8]}
    )
    assert same(model, tmp_path) == ["Conv", "Add", "Sign", "Flatten", "MatMul"]


def test_what_follows_from_constants_is_constant(tmp_path: Path) -> None:
    model = convolutional()
    model.graph.node[0].input[1] = "ww"
    halved = [
        node("Constant", [], "half", value=numpy_helper.from_array(np.float32(0.5))),
        node("Mul", ["w", "half"], "ww"),
    ]
    for each in reversed(halved):
        model.graph.node.insert(0, each)
    assert same(model, tmp_path) == ["Conv", "Relu", "Flatten", "Gemm"]


def test_noise_is_not_frozen(tmp_path: Path) -> None:
    """A node without inputs whose result is another every time is no constant."""
    model = convolutional()
    model.graph.node[3].output[0] = "z"
    model.graph.node.extend(
        [node("RandomNormal", [], "noise", shape=[1, 4], scale=1e-9), node("Add", ["z", "noise"], "y")]
    )
    assert "RandomNormal" in operators(import_network(saved(model, tmp_path)))
