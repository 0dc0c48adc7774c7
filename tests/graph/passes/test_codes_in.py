"""The graph reads pixel - 128 as int8, and computes what it computed from the numbers that they stood for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from canonical_examples import INPUT_SCALE, CanonicalBuilder, plain_cnn
from hardbit.graph.passes import CodesIn, ValuePreserving, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import run, run_on, with_constants
from tensorrt_examples import run_engine

EVERY_BYTE = np.resize(np.arange(256, dtype=np.uint8), (16, 1, 12, 12))


def test_values_are_preserved_on_bytes() -> None:
    assert CodesIn.value_preserving is ValuePreserving.ON_BYTES
    after = run_passes(plain_cnn(4), [CodesIn()], check_each=True)
    assert after.graph.input[0].type.tensor_type.elem_type == TensorProto.INT8
    np.testing.assert_array_equal(run_engine(after, EVERY_BYTE), run(plain_cnn(4), EVERY_BYTE))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(2.0**-12, 8, width=32))
def test_every_code_survives_any_scale(scale: float) -> None:
    before = with_constants(plain_cnn(4), {"input.scale": np.float32(scale)})
    numbers = (EVERY_BYTE.astype(np.float32) - 128) * np.float32(scale)
    np.testing.assert_array_equal(run_engine(run_passes(before, [CodesIn()]), EVERY_BYTE), run_on(before, numbers))


def test_an_image_with_other_codes_or_readers_is_refused() -> None:
    unsigned = with_constants(plain_cnn(4), {"input.zero_point": np.uint8(128)})
    with pytest.raises(HardbitError, match=r"'input.quantize' does not write int8 with zero point 0"):
        CodesIn().apply(unsigned)
    b = CanonicalBuilder()
    x = b.node("Relu", ["image"], "image.relu", "relu")
    x = b.node("Flatten", [b.quantize(x, "input", INPUT_SCALE, 8, signed=True)], "flat", "flatten", axis=1)
    with pytest.raises(HardbitError, match=r"'relu' \(Relu\) reads the input, not a QuantizeLinear"):
        CodesIn().apply(b.model(b.gemm(x, "fc", (3, 36), INPUT_SCALE, 8), (1, 6, 6), 3))
