"""int32 biases become the float numbers that they stand for, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from canonical_examples import plain_cnn
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import FloatBiases, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import images_for, run, with_constants
from tensorrt_examples import symmetric_residual_net


def biases(model: onnx.ModelProto) -> dict[str, np.ndarray | None]:
    graph = OnnxGraph(model)
    return {n.name: graph.operand(n, 2) for n in graph.nodes if n.op_type in ("Conv", "Gemm")}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_values_are_preserved(bits: int) -> None:
    for before in (plain_cnn(bits), symmetric_residual_net(bits)):
        after = run_passes(before, [FloatBiases()], check_each=True)
        assert {bias.dtype for bias in biases(after).values()} == {np.dtype(np.float32)}
        images = images_for(before)
        np.testing.assert_array_equal(run(after, images), run(before, images))


def test_codes_that_float32_does_not_hold_are_rounded_as_the_node_rounded_them() -> None:
    rng = np.random.default_rng(0)
    values = {
        "fc2.bias.codes": rng.integers(-(2**31), 2**31, 10).astype(np.int32),
        "fc2.bias.scale": rng.uniform(1e-9, 1e-3, 10).astype(np.float32),
    }
    before = with_constants(plain_cnn(4), values)
    images = images_for(before)
    np.testing.assert_array_equal(run(run_passes(before, [FloatBiases()]), images), run(before, images))


def test_one_scale_for_all_channels_is_taken() -> None:
    scale, zero = np.float32([2.0**-9]), np.zeros(1, np.int32)
    before = with_constants(plain_cnn(4), {"fc2.bias.scale": scale, "fc2.bias.zero_point": zero})
    codes = OnnxGraph(before).constant("fc2.bias.codes")
    np.testing.assert_array_equal(biases(FloatBiases().apply(before))["fc2"], codes * scale)


def test_a_zero_point_is_refused() -> None:
    before = with_constants(plain_cnn(4), {"fc2.bias.zero_point": np.ones(10, np.int32)})
    with pytest.raises(HardbitError, match=r"the zero point of 'fc2.bias.dequantize' is not 0"):
        FloatBiases().apply(before)
