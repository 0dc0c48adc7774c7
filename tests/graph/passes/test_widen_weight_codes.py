"""Low-bit weight codes fill the int8 range where the bias asks for a finer unit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from canonical_examples import plain_cnn, residual_net
from graph_strategies import small_graphs
from hardbit.graph.passes import WidenWeightCodes, run_passes
from lowering_examples import WIDTHS, constants, images_for, run, with_constants
from passes_examples import with_float_biases


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_values_are_preserved(model: onnx.ModelProto) -> None:
    before = with_float_biases(model)
    after = run_passes(before, [WidenWeightCodes()], check_each=True)
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(before, images))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("odd", [[-2, 1], [-1, 0], [0, 1], [-8, 5], [3, 3]])
def test_codes_fill_the_range_and_stand_for_the_same_weights(bits: int, odd: list[int]) -> None:
    low, high = odd
    codes = np.random.default_rng(0).integers(low, high + 1, (12, 8, 3, 3)).astype(np.int8)
    codes.flat[:2] = low, high
    before = with_float_biases(with_constants(plain_cnn(bits), {"conv2.weight.codes": codes}))
    node = next(n for n in WidenWeightCodes().apply(before).graph.node if n.name == "conv2.weight.dequantize")
    values = constants(WidenWeightCodes().apply(before))
    wide, scale = values[node.input[0]], values[node.input[1]]
    assert wide.dtype == np.int8
    assert wide.max() > 63 or wide.min() < -64
    old_scale = constants(before)["conv2.weight.scale"]
    np.testing.assert_array_equal(
        wide.astype(np.float32) * scale[:, None, None, None], codes.astype(np.float32) * old_scale[:, None, None, None]
    )


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_bias_that_is_on_the_grid_needs_no_shift(bits: int) -> None:
    before = residual_net(bits)
    assert constants(WidenWeightCodes().apply(before)).keys() == constants(before).keys()


def test_no_scale_becomes_denormal() -> None:
    scale = np.full(12, np.finfo(np.float32).tiny * 2, np.float32)
    before = with_float_biases(with_constants(plain_cnn(2), {"conv2.weight.scale": scale}))
    after = run_passes(before, [WidenWeightCodes()])
    for name, values in constants(after).items():
        if name.endswith("scale"):
            assert values.min() >= np.finfo(np.float32).tiny, name


def test_all_zero_weights_stay() -> None:
    before = with_float_biases(with_constants(plain_cnn(2), {"conv2.weight.codes": np.zeros((12, 8, 3, 3), np.int8)}))
    assert "conv2.weight.codes" in constants(WidenWeightCodes().apply(before))
