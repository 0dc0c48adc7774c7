"""float64, float16 and mixed networks become float32 networks of the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from hardbit.importing import import_network
from hardbit_deploy.errors import HardbitError
from importing_examples import convolutional, logits_of, node, pixels, run, saved


def cast(model: onnx.ModelProto, kind: int, dtype: type[np.generic]) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    return model


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"), [(TensorProto.DOUBLE, np.float64, 1e-5), (TensorProto.FLOAT16, np.float16, 5e-3)]
)
def test_other_floats_become_float32(kind: int, dtype: type[np.generic], tolerance: float, tmp_path: Path) -> None:
    model, images = cast(convolutional(), kind, dtype), pixels()
    network = import_network(saved(model, tmp_path))
    assert f"converted from {np.dtype(dtype).name} to float32" in network.notes
    (expected,) = ReferenceEvaluator(model).run(None, {"x": (images / 255).astype(dtype)})
    np.testing.assert_allclose(logits_of(network, images), expected, atol=tolerance)


def test_casts_between_floats_go(tmp_path: Path) -> None:
    """As mixed precision exporters write it: float32 at both ends, float16 between."""
    model = cast(convolutional(), TensorProto.FLOAT16, np.float16)
    model.graph.node[0].input[0] = "half"
    model.graph.node.insert(0, node("Cast", ["x"], "half", to=TensorProto.FLOAT16))
    model.graph.node[-1].output[0] = "half_y"
    model.graph.node.append(node("Cast", ["half_y"], "y", to=TensorProto.FLOAT))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    images = pixels()
    network = import_network(saved(model, tmp_path))
    assert "Cast" not in [each.op_type for each in network.model.graph.node]
    expected = run(model, {"x": (images / 255).astype(np.float32)})[0]
    np.testing.assert_allclose(logits_of(network, images), expected, atol=5e-3)


def test_a_number_that_float32_cannot_hold(tmp_path: Path) -> None:
    model = cast(convolutional(), TensorProto.DOUBLE, np.float64)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full(6, 1e300), "b"))
    with pytest.raises(HardbitError, match="too large for float32") as caught:
        import_network(saved(model, tmp_path))
    assert caught.value.where == "b"
