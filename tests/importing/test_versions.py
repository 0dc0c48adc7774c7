"""Opsets 7 and up become 18 with the same values; what cannot is refused by the operator's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from hardbit.importing import import_network
from hardbit.importing.versions import opset_of, to_opset
from hardbit_deploy.errors import HardbitError
from importing_examples import convolutional, logits_of, model_of, node, pixels, run, saved, weights

IMAGES = pixels()
FEED = {"x": IMAGES.astype(np.float32) / 255}


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 15, 17, 18, 19, 21])
def test_any_opset_is_the_same_network(opset: int, tmp_path: Path) -> None:
    model = convolutional(opset=opset)
    network = import_network(saved(model, tmp_path))
    assert opset_of(network.model) == 18
    np.testing.assert_allclose(logits_of(network, IMAGES), run(model, FEED)[0], atol=1e-5)


def test_operators_whose_form_changed_since_opset_7(tmp_path: Path) -> None:
    """Attributes became inputs (Clip, Pad, Upsample, Squeeze, ReduceMean, Dropout), a default changed its meaning."""
    nodes = [
        node("Pad", ["x"], "p", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Conv", ["p", "w"], "h"),
        node("BatchNormalization", ["h", "s", "b", "m", "v"], "n"),
        node("Clip", ["n"], "c", min=0.0, max=6.0),
        node("Upsample", ["c"], "u", scales=[1.0, 1.0, 2.0, 2.0]),
        node("Dropout", ["u"], "d", ratio=0.5),
        node("ReduceMean", ["d"], "r", axes=[2, 3], keepdims=1),
        node("Squeeze", ["r"], "q", axes=[2, 3]),
        node("Softmax", ["q"], "y"),
    ]
    statistics = {"s": np.ones(6), "b": np.zeros(6), "m": np.full(6, 0.1), "v": np.full(6, 2.0)}
    constants = {"w": weights(6, 3, 3, 3), **{name: value.astype(np.float32) for name, value in statistics.items()}}
    model = model_of(nodes, constants, {"x": ["n", 3, 8, 8]}, opset=7)
    network = import_network(saved(model, tmp_path))
    logits = logits_of(network, IMAGES).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(shares, run(model, FEED)[0], atol=1e-5)


def test_an_older_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match="opset 6"):
        import_network(saved(convolutional(opset=6), tmp_path))


def test_the_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    """Scan has subgraphs, which are refused before: so the step itself is asked."""
    body = helper.make_graph([node("Identity", ["a"], "b")], "body", [onnx.ValueInfoProto(name="a")], [])
    model = convolutional(opset=8)
    scan = helper.make_node("Scan", ["x"], ["scanned"], name="/scan", body=body, num_scan_inputs=1)
    model.graph.node.insert(0, scan)
    with pytest.raises(HardbitError, match="cannot bring Scan from opset 8 to 18") as caught:
        to_opset(model)
    assert caught.value.where == "/scan"


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_opset_20_is_written_out(approximate: str, tmp_path: Path) -> None:
    model = convolutional(opset=20)
    model.graph.node[1].CopyFrom(node("Gelu", ["h"], "r", approximate=approximate))
    network = import_network(saved(model, tmp_path))
    assert "Gelu" not in [each.op_type for each in network.model.graph.node]
    np.testing.assert_allclose(logits_of(network, IMAGES), run(model, FEED)[0], atol=1e-5)


def test_an_operator_that_opset_18_does_not_have_is_named(tmp_path: Path) -> None:
    model = convolutional(opset=23)
    model.graph.node[1].CopyFrom(node("RMSNormalization", ["h", "one"], "r", "/norm"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(8, np.float32), "one"))
    with pytest.raises(HardbitError, match="RMSNormalization of opset 23") as caught:
        import_network(saved(model, tmp_path))
    assert caught.value.where == "/norm"
