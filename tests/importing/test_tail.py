"""What only turns logits into probabilities or labels is left out; a softmax elsewhere stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from hardbit.importing import import_network
from importing_examples import convolutional, logits_of, model_of, node, operators, pixels, run, saved, weights

IMAGES = pixels()
FEED = {"x": IMAGES.astype(np.float32) / 255}
LOGITS = run(convolutional(), FEED)[0]
TAILS = {
    "softmax": [node("Softmax", ["z"], "y")],
    "log softmax": [node("LogSoftmax", ["z"], "y", axis=1)],
    "label": [node("ArgMax", ["z"], "y", axis=1)],
    "label as a number": [node("ArgMax", ["z"], "a", axis=-1), node("Cast", ["a"], "y", to=TensorProto.FLOAT)],
    "label of a softmax": [node("Softmax", ["z"], "s"), node("ArgMax", ["s"], "y", axis=1)],
    "softmax and a flatten": [node("Softmax", ["z"], "s"), node("Flatten", ["s"], "y")],
    "softmax and an identity": [node("Softmax", ["z"], "s"), node("Identity", ["s"], "y")],
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_the_end_goes(tail: list, tmp_path: Path) -> None:
    model = convolutional(tail=tail, logits="z")
    if any(each.op_type == "ArgMax" for each in tail) and tail[-1].op_type != "Cast":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    network = import_network(saved(model, tmp_path))
    np.testing.assert_allclose(logits_of(network, IMAGES), LOGITS, atol=1e-5)
    assert sum("is left out" in note for note in network.notes) == len(
        [t for t in tail if "Max" in t.op_type or "max" in t.op_type]
    )


def test_what_follows_a_softmax_keeps_it(tmp_path: Path) -> None:
    tail = [node("Softmax", ["z"], "s"), node("Gemm", ["s", "u"], "y")]
    model = convolutional(tail=tail, logits="z")
    model.graph.initializer.append(__import__("onnx").numpy_helper.from_array(weights(4, 4), "u"))
    network = import_network(saved(model, tmp_path))
    assert "Softmax" in operators(network)
    np.testing.assert_allclose(logits_of(network, IMAGES), run(model, FEED)[0], atol=1e-5)


def test_a_softmax_over_images_is_no_tail(tmp_path: Path) -> None:
    """It would mix the images of a batch, which the comparison with one image at a time finds."""
    model = convolutional(tail=[node("Softmax", ["z"], "y", axis=0)], logits="z")
    with pytest.raises(Exception, match="not its source"):
        import_network(saved(model, tmp_path))


def test_maps_of_one_pixel_become_rows(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], "h"),
        node("GlobalAveragePool", ["h"], "p"),
        node("Conv", ["p", "v"], "z"),
        node("Softmax", ["z"], "y", axis=1),
    ]
    model = model_of(nodes, {"w": weights(6, 3, 3, 3), "v": weights(4, 6, 1, 1)}, {"x": ["n", 3, 8, 8]})
    network = import_network(saved(model, tmp_path))
    logits = np.exp(logits_of(network, IMAGES).astype(np.float64))
    np.testing.assert_allclose(logits / logits.sum(1, keepdims=True), run(model, FEED)[0][:, :, 0, 0], atol=1e-5)
