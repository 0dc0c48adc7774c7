"""What happens to bytes before the network stands in the graph, and is what the flags say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from hardbit.importing import Preprocessing, import_network
from hardbit_deploy.errors import HardbitError
from importing_examples import convolutional, logits_of, model_of, node, operators, pixels, run, saved, weights

IMAGES = pixels()
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def column(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values).reshape(1, -1, 1, 1)


def test_scale_mean_and_std_of_every_channel(tmp_path: Path) -> None:
    model = convolutional()
    network = import_network(saved(model, tmp_path), preprocessing=Preprocessing(scale=1 / 255, mean=MEAN, std=STD))
    expected = run(model, {"x": ((IMAGES / 255 - column(MEAN)) / column(STD)).astype(np.float32)})[0]
    np.testing.assert_allclose(logits_of(network, IMAGES), expected, atol=2e-5)
    assert operators(network)[:3] == ["Mul", "Add", "Conv"]


def test_raw_bytes_and_colours_the_other_way_round(tmp_path: Path) -> None:
    model = convolutional()
    given = Preprocessing(scale=1.0, mean=(104.0, 117.0, 123.0), channels="bgr")
    network = import_network(saved(model, tmp_path), preprocessing=given)
    expected = run(model, {"x": (IMAGES[:, ::-1] - column((104, 117, 123))).astype(np.float32)})[0]
    np.testing.assert_allclose(logits_of(network, IMAGES), expected, rtol=1e-4, atol=1e-3)


def channels_last(first: list, constants: dict, kind: int = TensorProto.FLOAT) -> object:
    """A network of Keras' kind: channels last, a Transpose before its convolution."""
    nodes = [
        *first,
        node("Transpose", ["t"], "c", perm=[0, 3, 1, 2]),
        node("Conv", ["c", "w"], "h"),
        node("Transpose", ["h"], "l", perm=[0, 2, 3, 1]),
        node("Flatten", ["l"], "f"),
        node("MatMul", ["f", "v"], "y"),
    ]
    own = {"w": weights(6, 3, 3, 3), "v": weights(6 * 4 * 4, 4)}
    return model_of(nodes, own | constants, {"x": ["n", 6, 6, 3]}, kind=kind)


def test_channels_last_cost_nothing_where_the_network_turns_them(tmp_path: Path) -> None:
    images = pixels(5, (3, 6, 6))
    model = channels_last([node("Identity", ["x"], "t")], {})
    network = import_network(saved(model, tmp_path))
    expected = run(model, {"x": (images.transpose(0, 2, 3, 1) / 255).astype(np.float32)})[0]
    np.testing.assert_allclose(logits_of(network, images), expected, atol=1e-5)
    assert operators(network) == ["Mul", "Add", "Conv", "Transpose", "Flatten", "MatMul"]


def test_preprocessing_inside_the_network_moves_into_the_front(tmp_path: Path) -> None:
    images = pixels(5, (3, 6, 6))
    first = [
        node("Cast", ["x"], "n", to=TensorProto.FLOAT),
        node("Div", ["n", "all"], "s"),
        node("Sub", ["s", "mean"], "m"),
        node("Div", ["m", "std"], "t"),
    ]
    constants = {
        "all": np.float32(255),
        "mean": np.array(MEAN, np.float32),
        "std": np.array(STD, np.float32).reshape(1, 1, 1, 3),
    }
    model = channels_last(first, constants, TensorProto.UINT8)
    network = import_network(saved(model, tmp_path))
    expected = run(model, {"x": images.transpose(0, 2, 3, 1)})[0]
    np.testing.assert_allclose(logits_of(network, images), expected, atol=2e-5)
    assert operators(network) == ["Mul", "Add", "Conv", "Transpose", "Flatten", "MatMul"]
    assert any("reads bytes itself" in note for note in network.notes)
    with pytest.raises(HardbitError, match="whole numbers"):
        import_network(tmp_path / "net.onnx", preprocessing=Preprocessing(scale=1 / 255))


def test_a_network_that_computes_with_bytes_before_it_casts_them(tmp_path: Path) -> None:
    model = channels_last([node("Identity", ["x"], "t")], {}, TensorProto.UINT8)
    model.graph.node.insert(1, node("Cast", ["t"], "s", to=TensorProto.FLOAT))
    model.graph.node[2].input[0] = "s"
    model.graph.node[0].CopyFrom(node("Max", ["x", "zero"], "t", "/first"))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "zero"))
    with pytest.raises(HardbitError, match="whole numbers") as caught:
        import_network(saved(model, tmp_path))
    assert caught.value.where == "/first"


def test_a_row_of_pixels(tmp_path: Path) -> None:
    images = pixels(5, (1, 6, 6))
    nodes = [node("Flatten", ["x"], "f"), node("Gemm", ["f", "v"], "y", transB=1)]
    model = model_of(nodes, {"v": weights(4, 36)}, {"x": [1, 36, 1]}, opset=11)
    network = import_network(saved(model, tmp_path), image_shape=(1, 6, 6))
    expected = [run(model, {"x": (image / 255).astype(np.float32).reshape(1, 36, 1)})[0][0] for image in images]
    np.testing.assert_allclose(logits_of(network, images), expected, atol=1e-5)


def test_a_row_of_colours_with_channels_last(tmp_path: Path) -> None:
    images = pixels(5, (3, 4, 4))
    model = model_of([node("Gemm", ["x", "v"], "y", transB=1)], {"v": weights(4, 48)}, {"x": ["n", 48]})
    network = import_network(saved(model, tmp_path), preprocessing=Preprocessing(layout="nhwc"), image_shape=(3, 4, 4))
    rows = (images / 255).transpose(0, 2, 3, 1).reshape(5, 48).astype(np.float32)
    np.testing.assert_allclose(logits_of(network, images), run(model, {"x": rows})[0], atol=1e-5)


def test_a_network_in_our_own_convention_has_no_arithmetic_in_front(tmp_path: Path) -> None:
    given = Preprocessing(scale=1 / 256, mean=(0.5,))
    network = import_network(saved(convolutional(), tmp_path), preprocessing=given)
    assert operators(network)[0] in ("Conv", "Identity")


def test_names_that_we_want_may_be_taken(tmp_path: Path) -> None:
    """The source calls a feature map `image` and its input `logits`."""
    model = convolutional()
    names = {"x": "logits", "h": "image", "y": "x"}
    for each in model.graph.node:
        each.input[:] = [names.get(name, name) for name in each.input]
        each.output[:] = [names.get(name, name) for name in each.output]
    model.graph.input[0].name, model.graph.output[0].name = "logits", "x"
    network = import_network(saved(model, tmp_path))
    expected = run(model, {"logits": (IMAGES / 255).astype(np.float32)})[0]
    np.testing.assert_allclose(logits_of(network, IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 0.0}, {"std": (0.2, 0.0, 0.1)}, {"mean": (float("nan"),)}, {"layout": "chw"}, {"channels": "gray"}],
)
def test_values_that_cannot_be_meant(wrong: dict) -> None:
    with pytest.raises(HardbitError):
        Preprocessing(**wrong)


def test_as_many_means_as_channels(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match="2 values of mean for 3 channels"):
        import_network(saved(convolutional(), tmp_path), preprocessing=Preprocessing(mean=(0.1, 0.2)))
