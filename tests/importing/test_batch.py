"""Networks for one image become networks for any number; every image counts for itself. Else the node is named."""

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


def one_by_one(model: onnx.ModelProto, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.concatenate([run(model, {"x": (image[None] / 255).astype(np.float32)})[0] for image in images])


@pytest.mark.parametrize("flat", [[1, 384], [1, -1], [-1, 384], [0, -1], [1, 384, 1]])
def test_reshapes_of_one_image(flat: list[int], tmp_path: Path) -> None:
    model = convolutional(1, flat=flat[:2])
    if len(flat) == 3:  # rewritten twice: once into the extra axis, once out of it
        model.graph.initializer.extend(
            [numpy_helper.from_array(np.array(flat), "long"), numpy_helper.from_array(np.array([1, 384]), "short")]
        )
        model.graph.node[2].CopyFrom(node("Reshape", ["r", "long"], "g"))
        model.graph.node.insert(3, node("Reshape", ["g", "short"], "f"))
    network = import_network(saved(model, tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), one_by_one(model), atol=1e-5)


def test_a_reshape_that_moves_the_batch_behind_other_axes(tmp_path: Path) -> None:
    """Sequence first, heads merged with the batch: as torch writes its MultiheadAttention for one image."""
    constants = {"w": weights(8, 3, 4, 4), "heads": np.array([4, 2, 4]), "rows": np.array([1, 32])}
    nodes = [
        node("Conv", ["x", "w"], "h", strides=[4, 4]),  # 1, 8, 2, 2
        node("Reshape", ["h", "map"], "m"),  # 1, 8, 4
        node("Transpose", ["m"], "s", perm=[2, 0, 1]),  # 4, 1, 8
        node("Reshape", ["s", "heads"], "k"),  # 4, batch x 2, 4
        node("Softmax", ["k"], "a", axis=-1),
        node("Transpose", ["a"], "b", perm=[1, 0, 2]),  # batch x 2, 4, 4
        node("Reshape", ["b", "rows"], "r"),
        node("Gemm", ["r", "v"], "y", transB=1),
    ]
    constants |= {"map": np.array([1, 8, 4]), "v": weights(4, 32)}
    model = model_of(nodes, constants, {"x": [1, 3, 8, 8]})
    network = import_network(saved(model, tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), one_by_one(model), atol=1e-5)
    assert any("one image at a time" in note for note in network.notes)


def with_token(batch: int | str, token: list[onnx.NodeProto], constants: dict) -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], "h", strides=[4, 4]),
        node("Reshape", ["h", "map"], "m"),
        node("Transpose", ["m"], "s", perm=[0, 2, 1]),
        *token,
        node("Concat", ["t", "s"], "c", axis=1),  # batch, 5, 8
        node("Softmax", ["c"], "a", axis=1),
        node("ReduceMean", ["a"], "r", axes=[1], keepdims=0),
        node("Gemm", ["r", "v"], "y", transB=1),
    ]
    own = {"w": weights(8, 3, 4, 4), "v": weights(4, 8), "token": weights(1, 1, 8, seed=5), **constants}
    return model_of(nodes, own, {"x": [batch, 3, 8, 8]})


def test_a_class_token_of_one_image_is_repeated(tmp_path: Path) -> None:
    model = with_token(1, [node("Identity", ["token"], "t")], {"map": np.array([1, 8, 4])})
    network = import_network(saved(model, tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), one_by_one(model), atol=1e-5)
    assert "Expand" in operators(network)


def test_a_class_token_that_is_expanded_by_arithmetic_on_shapes(tmp_path: Path) -> None:
    token = [
        node("Shape", ["x"], "size"),
        node("Gather", ["size", "zero"], "n", axis=0),
        node("Unsqueeze", ["n", "first"], "batch"),
        node("Concat", ["batch", "minus"], "target", axis=0),
        node("Expand", ["token", "target"], "t"),
    ]
    constants = {
        "map": np.array([0, 8, -1]),
        "zero": np.array(0),
        "first": np.array([0]),
        "minus": np.array([1, 8]),
    }
    model = with_token("n", token, constants)
    network = import_network(saved(model, tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), one_by_one(model), atol=1e-5)
    assert [name for name in operators(network) if name in ("Gather", "Unsqueeze")] == []


def test_arithmetic_on_shapes_becomes_numbers(tmp_path: Path) -> None:
    """As torch exports view(x.size(0), -1): Shape, Gather, Unsqueeze, Concat, Reshape; and a mask of zeros besides."""
    model = convolutional(flat=[0, 0])
    del model.graph.initializer[-1]
    shape = [
        node("Shape", ["r"], "size"),
        node("Gather", ["size", "zero"], "n", axis=0),
        node("Unsqueeze", ["n", "zeros"], "batch"),
        node("Constant", [], "rest", value=numpy_helper.from_array(np.array([-1]))),
        node("Concat", ["batch", "rest"], "flat", axis=0),
        node("Slice", ["size", "zeros", "ones"], "many"),
        node("ConstantOfShape", ["many"], "nothing", value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("Unsqueeze", ["nothing", "ones"], "column"),
    ]
    for each in reversed(shape):
        model.graph.node.insert(2, each)
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(node("Add", ["z", "column"], "y"))
    for name, value in (("zero", np.array(0)), ("zeros", np.array([0])), ("ones", np.array([1]))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    network = import_network(saved(model, tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), one_by_one(model), atol=1e-5)
    assert set(operators(network)) <= {"Mul", "Add", "Conv", "Relu", "Reshape", "Gemm", "Shape", "Concat", "Expand"}
    (reshape,) = [each for each in network.model.graph.node if each.op_type == "Reshape"]
    (sizes,) = [t for t in network.model.graph.initializer if t.name == reshape.input[1]]
    assert numpy_helper.to_array(sizes).tolist() == [-1, 384]


def test_resize_to_sizes_of_one_image(tmp_path: Path) -> None:
    nodes = [
        node("Resize", ["x", "", "", "sizes"], "u", mode="nearest", coordinate_transformation_mode="asymmetric"),
        node("Conv", ["u", "w"], "h"),
        node("GlobalAveragePool", ["h"], "p"),
        node("Flatten", ["p"], "y"),
    ]
    constants = {"sizes": np.array([1, 3, 16, 16]), "w": weights(4, 3, 3, 3)}
    model = model_of(nodes, constants, {"x": [1, 3, 8, 8]})
    network = import_network(saved(model, tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), one_by_one(model), atol=1e-5)


def test_a_batch_of_four_without_a_shape_in_the_way(tmp_path: Path) -> None:
    network = import_network(saved(convolutional(4), tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), one_by_one(convolutional()), atol=1e-5)


def test_a_batch_of_four_that_is_baked_in_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match="made for 4 images") as caught:
        import_network(saved(convolutional(4, flat=[4, 384]), tmp_path))
    assert caught.value.where == "/f/Reshape"


def test_what_mixes_the_axes_of_one_image_is_refused_by_name(tmp_path: Path) -> None:
    """Columns of the product are the image's own: a batch has no place there."""
    model = convolutional(1, flat=[384, 1])
    model.graph.node[3].CopyFrom(node("MatMul", ["v", "f"], "column"))
    model.graph.node.append(node("Transpose", ["column"], "y", perm=[1, 0]))
    with pytest.raises(HardbitError, match="made for one image at a time") as caught:
        import_network(saved(model, tmp_path))
    assert caught.value.where == "/column/MatMul"
    assert "dynamic batch" in caught.value.remedy
