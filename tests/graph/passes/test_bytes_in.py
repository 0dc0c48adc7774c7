"""The graph reads bytes, and computes what it computed from the numbers that they stood for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from canonical_examples import plain_cnn
from graph_strategies import small_graphs
from hardbit.graph.passes import BytesIn, UnsignedActivations, ValuePreserving, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import images_for, run, run_on, with_constants

PASSES = [UnsignedActivations(), BytesIn()]


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_values_are_preserved_on_bytes(model: onnx.ModelProto) -> None:
    assert BytesIn.value_preserving is ValuePreserving.ON_BYTES
    after = run_passes(model, PASSES, check_each=True)
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(model, images))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(2.0**-12, 8, width=32), zero_point=st.integers(0, 255))
def test_every_byte_survives_any_scale_and_zero_point(scale: float, zero_point: int) -> None:
    scale32 = np.float32(scale)
    before = with_constants(
        run_passes(plain_cnn(4), [UnsignedActivations()]),
        {"input.scale": scale32, "input.zero_point.unsigned": np.uint8(zero_point)},
    )
    after = run_passes(before, [BytesIn()])
    images = np.resize(np.arange(256, dtype=np.uint8), (16, 1, 12, 12))
    numbers = (images.astype(np.float32) - np.float32(zero_point)) * scale32
    np.testing.assert_array_equal(run(after, images), run_on(before, numbers))


def test_off_the_grid_of_bytes_the_quantizer_rounds() -> None:
    model = plain_cnn(4)
    images = images_for(model, 4)
    numbers = (images.astype(np.float32) - 128 + np.float32(0.4)) / 256
    np.testing.assert_array_equal(run_on(model, numbers), run(run_passes(model, PASSES), images))


def test_the_input_is_uint8_and_no_quantizer_reads_it() -> None:
    after = run_passes(plain_cnn(4), PASSES)
    assert after.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert "input.quantize" not in {node.name for node in after.graph.node}


def test_signed_codes_are_refused() -> None:
    with pytest.raises(HardbitError, match=r"pass bytes_in: 'input.quantize' does not write uint8"):
        BytesIn().apply(plain_cnn(4))


def test_a_second_reader_of_the_image_is_refused() -> None:
    model = run_passes(plain_cnn(4), [UnsignedActivations()])
    model.graph.node.insert(0, onnx.helper.make_node("Relu", ["image"], ["again"], name="again"))
    with pytest.raises(HardbitError, match="read by 2 nodes"):
        BytesIn().apply(model)


def test_it_cannot_be_applied_twice() -> None:
    with pytest.raises(HardbitError, match="is not float32"):
        BytesIn().apply(run_passes(plain_cnn(4), PASSES))
