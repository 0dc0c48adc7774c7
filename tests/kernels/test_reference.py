"""The integer reference against the kernels of ONNX Runtime, one operation at a time, on scales that are not round."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hardbit_kernels import reference

SEEDS = st.integers(0, 2**32 - 1)
ZERO_POINTS = st.sampled_from([0, 128])
SETTINGS = settings(max_examples=40, deadline=None)


def run_operator(
    op_type: str,
    inputs: dict[str, NDArray],
    constants: dict[str, object],
    order: list[str],
    output_type: int,
    **attributes: object,
) -> NDArray:
    """One node, executed by ONNX Runtime; `order` lists its operands ("" for an absent one)."""
    domain = "" if op_type in {"QLinearConv", "QuantizeLinear", "DequantizeLinear", "MaxPool"} else "com.microsoft"
    node = helper.make_node(op_type, order, ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        op_type,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ],
        [helper.make_tensor_value_info("y", output_type, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def random_scale(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> NDArray[np.float32]:
    return np.exp(rng.uniform(np.log(low), np.log(high), size)).astype(np.float32)


def random_codes(rng: np.random.Generator, shape: tuple[int, ...], dtype: type = np.uint8) -> NDArray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def random_weights(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """7-bit weights: a CPU without VNNI adds two products in 16 bits, and 2 * 255 * 64 fits."""
    return rng.integers(-64, 64, shape).astype(np.int8)


@SETTINGS
@given(
    seed=SEEDS,
    zero_points=st.tuples(ZERO_POINTS, ZERO_POINTS),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    strides=st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    pads=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1)]),
    groups=st.sampled_from([1, 2, 4]),
    with_bias=st.booleans(),
)
def test_convolution_has_the_codes_of_qlinearconv(
    seed: int,
    zero_points: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    groups: int,
    with_bias: bool,
) -> None:
    rng = np.random.default_rng(seed)
    x, w = random_codes(rng, (2, 4, 7, 6)), random_weights(rng, (8, 4 // groups, *kernel))
    bias = rng.integers(-5000, 5000, 8).astype(np.int32) if with_bias else None
    s_x, s_w, s_y = random_scale(rng, 1e-3, 1), random_scale(rng, 1e-3, 1, 8), random_scale(rng, 1e-2, 10)
    constants = {
        "s_x": s_x,
        "z_x": np.uint8(zero_points[0]),
        "w": w,
        "s_w": s_w,
        "z_w": np.zeros(8, np.int8),
        "s_y": s_y,
        "z_y": np.uint8(zero_points[1]),
        **({"b": bias} if bias is not None else {}),
    }
    order = ["x", "s_x", "z_x", "w", "s_w", "z_w", "s_y", "z_y", *(["b"] if bias is not None else [])]
    engine = run_operator(
        "QLinearConv", {"x": x}, constants, order, TensorProto.UINT8, strides=strides, pads=pads, group=groups
    )

    accumulator = reference.conv2d(x, w, bias, zero_point=zero_points[0], strides=strides, pads=pads, groups=groups)
    codes = reference.requantize(accumulator, reference.output_multiplier(s_x, s_w, s_y), zero_points[1], np.uint8)

    np.testing.assert_array_equal(codes, engine)


@SETTINGS
@given(seed=SEEDS, zero_point=ZERO_POINTS, quantized_output=st.booleans())
def test_linear_has_the_numbers_of_qgemm(seed: int, zero_point: int, quantized_output: bool) -> None:
    rng = np.random.default_rng(seed)
    x, w = random_codes(rng, (3, 17)), random_weights(rng, (9, 17))
    bias = rng.integers(-5000, 5000, 9).astype(np.int32)
    s_x, s_w, s_y = random_scale(rng, 1e-3, 1), random_scale(rng, 1e-3, 1, 9), random_scale(rng, 1e-2, 10)
    constants = {
        "s_x": s_x,
        "z_x": np.uint8(zero_point),
        "w": w,
        "s_w": s_w,
        "z_w": np.zeros(9, np.int8),
        "b": bias,
        **({"s_y": s_y, "z_y": np.uint8(3)} if quantized_output else {}),
    }
    order = ["x", "s_x", "z_x", "w", "s_w", "z_w", "b", *(["s_y", "z_y"] if quantized_output else [])]
    output = TensorProto.UINT8 if quantized_output else TensorProto.FLOAT
    engine = run_operator("QGemm", {"x": x}, constants, order, output, transB=1)

    accumulator = reference.linear(x, w, bias, zero_point=zero_point)
    if quantized_output:
        ours = reference.requantize(accumulator, reference.output_multiplier(s_x, s_w, s_y), 3, np.uint8)
    else:
        ours = reference.dequantize(accumulator, reference.output_multiplier(s_x, s_w))

    np.testing.assert_array_equal(ours, engine)


@SETTINGS
@given(seed=SEEDS, zero_points=st.tuples(*[st.integers(0, 255)] * 3), size=st.sampled_from([5, 32, 77]))
def test_addition_has_the_codes_of_qlinearadd(seed: int, zero_points: tuple[int, int, int], size: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_codes(rng, (2, size)), random_codes(rng, (2, size))
    scales = (random_scale(rng, 0.1, 1), random_scale(rng, 0.1, 1), random_scale(rng, 0.1, 2))
    names = ["s_a", "z_a", "s_b", "z_b", "s_c", "z_c"]
    values = [value for scale, zero in zip(scales, zero_points, strict=True) for value in (scale, np.uint8(zero))]
    order = ["a", "s_a", "z_a", "b", "s_b", "z_b", "s_c", "z_c"]
    engine = run_operator(
        "QLinearAdd", {"a": a, "b": b}, dict(zip(names, values, strict=True)), order, TensorProto.UINT8
    )

    np.testing.assert_array_equal(reference.add(a, b, scales=scales, zero_points=zero_points), engine)


def test_addition_rounds_after_the_zero_point_and_quantization_before_it() -> None:
    half = np.array([[1]], np.uint8)  # 1 * 0.5 + 0 * 0.5 = 0.5 in units of the result
    zero = np.array([[0]], np.uint8)
    scales = (np.float32(0.5), np.float32(0.5), np.float32(1))
    assert reference.add(half, zero, scales=scales, zero_points=(0, 0, 7)) == 8
    assert reference.quantize(np.float32([[0.5]]), np.float32(1), 7, np.uint8) == 7


@SETTINGS
@given(seed=SEEDS, zero_points=st.tuples(ZERO_POINTS, ZERO_POINTS), side=st.integers(1, 9))
def test_global_average_has_the_codes_of_qlinearglobalaveragepool(
    seed: int, zero_points: tuple[int, int], side: int
) -> None:
    rng = np.random.default_rng(seed)
    x = random_codes(rng, (2, 5, side, side + 1))
    scales = (random_scale(rng, 0.1, 1), random_scale(rng, 0.01, 1))
    constants = {
        "s_x": scales[0],
        "z_x": np.uint8(zero_points[0]),
        "s_y": scales[1],
        "z_y": np.uint8(zero_points[1]),
    }
    engine = run_operator(
        "QLinearGlobalAveragePool",
        {"x": x},
        constants,
        ["x", "s_x", "z_x", "s_y", "z_y"],
        TensorProto.UINT8,
        channels_last=0,
    )

    ours = reference.average_pool_global(x, scales=scales, zero_points=zero_points, dtype=np.uint8)

    np.testing.assert_array_equal(ours, engine)


@SETTINGS
@given(
    seed=SEEDS,
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.sampled_from([(2, 2), (3, 3), (3, 2)]),
    strides=st.sampled_from([(1, 1), (2, 2), (3, 2)]),
    pads=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1)]),
    dtype=st.sampled_from([np.uint8, np.int8]),
    ceil_mode=st.booleans(),
)
def test_max_pool_has_the_codes_of_the_engine(
    seed: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dtype: type,
    ceil_mode: bool,
) -> None:
    x = random_codes(np.random.default_rng(seed), (2, 3, *size), dtype)
    engine = run_operator(
        "MaxPool",
        {"x": x},
        {},
        ["x"],
        helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        ceil_mode=int(ceil_mode),
    )
    ours = reference.max_pool(x, kernel=kernel, strides=strides, pads=pads, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(ours, engine)


@SETTINGS
@given(seed=SEEDS, dtype=st.sampled_from([np.uint8, np.int8]), zero_point=st.integers(-128, 127))
def test_quantization_has_the_codes_and_numbers_of_the_engine(seed: int, dtype: type, zero_point: int) -> None:
    rng = np.random.default_rng(seed)
    zero = zero_point + (128 if dtype is np.uint8 else 0)
    values, scale = rng.normal(0, 20, (4, 50)).astype(np.float32), random_scale(rng, 0.05, 1)
    constants = {"s": scale, "z": np.asarray(zero, dtype)}
    code_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    engine = run_operator("QuantizeLinear", {"x": values}, constants, ["x", "s", "z"], code_type)
    np.testing.assert_array_equal(reference.quantize(values, scale, zero, dtype), engine)

    numbers = run_operator("DequantizeLinear", {"x": engine}, constants, ["x", "s", "z"], TensorProto.FLOAT)
    np.testing.assert_array_equal(reference.dequantize(engine, scale, zero), numbers)


def test_saturation_at_zero_is_the_relu() -> None:
    accumulator = np.arange(-40, 40, dtype=np.int32).reshape(1, 1, 8, 10)
    multiplier = np.asarray(np.float32(0.3))
    of_relu = reference.quantize(np.maximum(accumulator, 0).astype(np.float32) * multiplier, np.float32(1), 0, np.uint8)
    np.testing.assert_array_equal(reference.requantize(accumulator, multiplier, 0, np.uint8), of_relu)

    signed = reference.requantize(accumulator, multiplier, 128, np.uint8)
    np.testing.assert_array_equal(reference.relu_floor(signed, 128), of_relu + np.uint8(128))


def test_rounding_is_half_to_even_and_saturates() -> None:
    accumulator = np.array([[1, 3, 5, -1, -3, 1000, -1000]], np.int32)
    half = np.asarray(np.float32(0.5))
    assert reference.requantize(accumulator, half, 128, np.uint8).tolist() == [[128, 130, 130, 128, 126, 255, 0]]
    assert reference.clip(np.array([0, 9, 15, 16], np.uint8), 1, 15).tolist() == [1, 9, 15, 15]


def test_convolution_is_a_sum_over_windows_written_out() -> None:
    rng = np.random.default_rng(0)
    x, w = random_codes(rng, (1, 2, 5, 5)), random_weights(rng, (3, 2, 3, 3))
    ours = reference.conv2d(x, w, zero_point=7, strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1))
    for output in range(3):
        for row in range(3):
            for column in range(3):
                total = 0
                for channel, i, j in np.ndindex(2, 3, 3):
                    r, c = 2 * row + i - 1, 2 * column + j - 1
                    if 0 <= r < 5 and 0 <= c < 5:
                        total += (int(x[0, channel, r, c]) - 7) * int(w[output, channel, i, j])
                assert ours[0, output, row, column] == total


def test_an_accumulator_beyond_32_bits_is_refused() -> None:
    codes, weight = np.full((1, 70_000), 255, np.uint8), np.full((1, 70_000), 127, np.int8)
    with pytest.raises(OverflowError, match="32 bits"):
        reference.linear(codes, weight)
