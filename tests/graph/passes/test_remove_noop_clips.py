"""Clips to the whole range of the type go; every other Clip stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from canonical_examples import INPUT_SCALE, CanonicalBuilder, plain_cnn
from hardbit.graph.passes import RemoveNoopClips, run_passes
from lowering_examples import images_for, run


def with_clip(low: int, high: int, dtype: type) -> onnx.ModelProto:
    b = CanonicalBuilder()
    scale, zero = b.constant("s", np.float32(INPUT_SCALE)), b.constant("z", dtype(0 if dtype is np.int8 else 128))
    x = b.node("QuantizeLinear", ["image", scale, zero], "codes", "input.quantize")
    x = b.node("Clip", [x, b.constant("low", dtype(low)), b.constant("high", dtype(high))], "clipped", "input.clip")
    x = b.node("DequantizeLinear", [x, scale, zero], "x", "input.dequantize")
    x = b.node("Flatten", [x], "flat", "flatten", axis=1)
    return b.model(b.gemm(x, "fc", (3, 36), INPUT_SCALE, 8), (1, 6, 6), 3)


def clips(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "Clip"]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "stays"),
    [
        (0, 255, np.uint8, False),
        (0, 254, np.uint8, True),
        (1, 255, np.uint8, True),
        (-128, 127, np.int8, False),
        (-127, 127, np.int8, True),  # narrow range, as Brevitas clips
    ],
)
def test_only_a_clip_that_does_nothing_goes(low: int, high: int, dtype: type, stays: bool) -> None:
    before = with_clip(low, high, dtype)
    after = run_passes(before, [RemoveNoopClips()], check_each=True)
    assert clips(after) == (["input.clip"] if stays else [])
    images = images_for(before, 16)
    np.testing.assert_array_equal(run(after, images), run(before, images))


def test_clips_of_low_bit_codes_stay() -> None:
    assert clips(RemoveNoopClips().apply(plain_cnn(4))) == clips(plain_cnn(4))
