"""What TensorRT would run in float without a word, read otherwise than it is written, or die of, is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from canonical_examples import INPUT_SCALE, CanonicalBuilder, plain_cnn
from hardbit.graph.onnx_graph import mark_float
from hardbit.targets import lower
from hardbit_deploy.errors import HardbitError
from lowering_examples import copy_of, images_for, lively, run, with_constants
from tensorrt_examples import run_engine, symmetric_cnn


def block(middle: Callable[[CanonicalBuilder, str], str]) -> onnx.ModelProto:
    """Codes, `middle`, a convolution that reads what it gives, codes, a Gemm; on (1, 6, 6)."""
    b = CanonicalBuilder()
    x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    x = middle(b, b.conv(x, "conv1", (4, 1, 3, 3), INPUT_SCALE, 8, pads=[1, 1, 1, 1]))
    x = b.node("Relu", [b.conv(x, "conv2", (4, 4, 3, 3), 2.0**-4, 4, pads=[1, 1, 1, 1])], "relu2.out", "relu2")
    x = b.node("Flatten", [b.quantize(x, "act2", 2.0**-4, 4, signed=False)], "flatten.out", "flatten", axis=1)
    return b.model(b.gemm(x, "fc", (3, 4 * 36), 2.0**-4, 8), (1, 6, 6), 3)


def codes(b: CanonicalBuilder, x: str, name: str = "act1", scale: float = 2.0**-4) -> str:
    return b.quantize(x, name, scale, 4, signed=True)


def declared(b: CanonicalBuilder, operator: str, inputs: list[str], name: str, **attributes: object) -> str:
    """A node of an operator that hardbit itself does not write, declared float."""
    output = b.node(operator, inputs, f"{name}.out", name, **attributes)
    mark_float(b.nodes[-1], "to see what becomes of it")
    return output


def image_of_floats(b: CanonicalBuilder, x: str) -> str:
    return x


def averaged(b: CanonicalBuilder, x: str) -> str:
    window = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
    return b.node("AveragePool", [codes(b, x)], "average.out", "average", **window)


def added(b: CanonicalBuilder, x: str) -> str:
    return b.node("Add", [x, codes(b, x)], "add.out", "add")


def joined(b: CanonicalBuilder, x: str) -> str:
    """Two halves of unlike scales."""
    shape = b.constant("half", np.array([0], np.int64)), b.constant("ends", np.array([2], np.int64))
    axis, end = b.constant("axis", np.array([1], np.int64)), b.constant("last", np.array([4], np.int64))
    low = declared(b, "Slice", [x, shape[0], shape[1], axis], "low")
    high = declared(b, "Slice", [x, shape[1], end, axis], "high")
    parts = [codes(b, low, "act.low", 2.0**-4), codes(b, high, "act.high", 2.0**-3)]
    return declared(b, "Concat", parts, "concat", axis=1)


def enlarged(b: CanonicalBuilder, x: str) -> str:
    """Nearest neighbours, twice the size, and every second of them again."""
    scales = b.constant("sizes", np.float32([1, 1, 1, 1]))
    return declared(b, "Resize", [codes(b, x), "", scales], "resize", mode="nearest")


@pytest.mark.parametrize(
    ("middle", "read"),
    [
        (image_of_floats, r"'conv1' \(Conv\)"),
        (averaged, r"'average' \(AveragePool\)"),
        (added, r"'add' \(Add\)"),
        (joined, r"'concat' \(Concat\)"),
        (enlarged, r"'resize' \(Resize\)"),
    ],
)
def test_a_layer_that_reads_no_codes_is_refused_and_a_fresh_quantizer_is_the_remedy(middle, read: str) -> None:
    with pytest.raises(
        HardbitError, match=rf"^conv2: Conv would run in float: its activations are the numbers of {read}"
    ):
        lower(block(middle), "tensorrt")
    canonical = lively(block(lambda b, x: codes(b, middle(b, x), "fresh")))
    images = images_for(canonical)
    np.testing.assert_array_equal(run_engine(lower(canonical, "tensorrt"), images), run(canonical, images))


def float_weights() -> onnx.ModelProto:
    canonical = copy_of(symmetric_cnn(4))
    next(node for node in canonical.graph.node if node.name == "fc2").input[1] = "fc2.float"
    canonical.graph.initializer.append(numpy_helper.from_array(np.ones((10, 16), np.float32), "fc2.float"))
    return canonical


def matrix_product(axis: int | None) -> onnx.ModelProto:
    """Codes @ int8 weights (in, out), with scales along an axis or one for all."""
    b = CanonicalBuilder()
    x = b.node("Flatten", [b.quantize("image", "input", INPUT_SCALE, 8, signed=True)], "flat", "flatten", axis=1)
    shape = () if axis is None else (36,)
    inputs = [
        b.constant("w.codes", b.rng.integers(-7, 8, (36, 36)).astype(np.int8)),
        b.constant("w.scale", np.full(shape, 2.0**-4, np.float32)),
        b.constant("w.zero_point", np.zeros(shape, np.int8)),
    ]
    attributes = {} if axis is None else {"axis": axis}
    weights = b.node("DequantizeLinear", inputs, "w", "w.dequantize", **attributes)
    return b.model(b.node("MatMul", [x, weights], "product", "matmul"), (1, 6, 6), 36)


def with_operator(operator: str, **attributes: object) -> onnx.ModelProto:
    return block(lambda b, x: codes(b, declared(b, operator, [x], "odd", **attributes)))


def unsigned_weights() -> onnx.ModelProto:
    changed = {
        "fc2.weight.codes": np.full((10, 16), 200, np.uint8),
        "fc2.weight.zero_point": np.full(10, 128, np.uint8),
    }
    canonical = with_constants(symmetric_cnn(4), changed)
    node = next(node for node in canonical.graph.node if node.name == "fc2.weight.dequantize")
    del node.metadata_props[:]
    return canonical


def image_read_by_arithmetic() -> onnx.ModelProto:
    b = CanonicalBuilder()
    x = b.quantize(b.node("Relu", ["image"], "image.relu", "relu"), "input", INPUT_SCALE, 4, signed=False)
    x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    return b.model(b.gemm(x, "fc", (3, 36), INPUT_SCALE, 8), (1, 6, 6), 3)


def scale_at_run_time() -> onnx.ModelProto:
    canonical = copy_of(symmetric_cnn(4))
    index, quantize = next((i, n) for i, n in enumerate(canonical.graph.node) if n.name == "act1.quantize")
    scale = helper.make_node("ReduceMax", ["relu1.out"], ["measured"], name="measure", keepdims=0)
    mark_float(scale, "to see what becomes of it")
    canonical.graph.node.insert(index, scale)
    quantize = next(node for node in canonical.graph.node if node.name == "act1.quantize")
    quantize.input[1] = "measured"
    return canonical


def transposed_convolution() -> onnx.ModelProto:
    def middle(b: CanonicalBuilder, x: str) -> str:
        inputs = [
            b.constant("t.codes", b.rng.integers(-7, 8, (4, 4, 1, 1)).astype(np.int8)),
            b.constant("t.scale", np.full(4, 2.0**-4, np.float32)),
            b.constant("t.zero_point", np.zeros(4, np.int8)),
        ]
        weights = b.node("DequantizeLinear", inputs, "t", "t.dequantize", axis=0)
        return codes(b, b.node("ConvTranspose", [codes(b, x), weights], "up.out", "up"), "fresh")

    return block(middle)


def changed(**constants: object) -> onnx.ModelProto:
    return with_constants(symmetric_cnn(4), {name.replace("_of_", "."): value for name, value in constants.items()})


def with_scale(value: float) -> onnx.ModelProto:
    scale = np.full(12, 0.5, np.float32)
    scale[3] = value
    return with_constants(symmetric_cnn(4), {"conv2.weight.scale": scale})


@pytest.mark.parametrize(
    ("canonical", "refusal"),
    [
        (float_weights(), r"^fc2: Gemm would run in float: its weights are not quantized"),
        (plain_cnn(8), r"^act1.quantize: 8-bit unsigned codes: TensorRT would read them as INT8"),
        (matrix_product(0), r"^matmul: MatMul is computed in float, and nothing says why"),
        (matrix_product(1), r"^w.dequantize: the scale runs along axis 1"),
        (with_operator("Shrink"), r"^odd: TensorRT has no Shrink"),
        (with_operator("Hardmax"), r"^odd: TensorRT has no Hardmax"),
        (unsigned_weights(), r"^fc2.weight.dequantize: the weights are uint8: TensorRT takes int8"),
        (image_read_by_arithmetic(), r"^image: the input is read by 'relu' \(Relu\)"),
        (scale_at_run_time(), r"^act1.quantize: the scale is computed at run time"),
        (transposed_convolution(), r"^up: operator ConvTranspose is not known"),
        (
            changed(act1_of_zero_point=np.uint8(9)),
            r"^act1.quantize: the uint8 zero point is 9: TensorRT takes symmetric",
        ),
        (changed(input_of_zero_point=np.int8(-128)), r"^input.quantize: the int8 zero point is -128"),
        (
            changed(act1_of_scale=np.full(8, 0.25, np.float32)),
            r"^act1.quantize: an activation has one scale per channel",
        ),
        (changed(act1_of_zero_point=np.int16(0)), r"^act1.quantize: the zero point is int16"),
        (with_scale(0), r"^conv2.weight.dequantize: the scale 0 is not a positive, finite, normal number"),
        (with_scale(-0.01), r"^conv2.weight.dequantize: the scale -0.01"),
        (with_scale(np.inf), r"^conv2.weight.dequantize: the scale inf"),
        (with_scale(np.nan), r"^conv2.weight.dequantize: the scale nan"),
        (with_scale(1e-41), r"^conv2.weight.dequantize: the scale 9.99967e-42"),
    ],
)
def test_it_is_refused_by_the_nodes_name(canonical: onnx.ModelProto, refusal: str) -> None:
    for target in ("tensorrt", "tensorrt_rtx"):
        with pytest.raises(HardbitError, match=refusal):
            lower(canonical, target)


def test_a_scale_of_one_element_is_written_without_axes() -> None:
    """TensorRT takes it for a scale per channel and runs the layer in float, silently."""
    one = {name: np.full(1, 2.0**-4, np.float32) for name in ("act1.scale",)}
    canonical = with_constants(symmetric_cnn(4), {**one, "act1.zero_point": np.zeros(1, np.uint8)})
    engine = lower(canonical, "tensorrt")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in engine.graph.initializer if "act1.scale" in tensor.name}
    assert set(shapes.values()) == {()}
    images = images_for(canonical)
    np.testing.assert_array_equal(run_engine(engine, images), run(canonical, images))


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt_rtx"])
def test_a_layer_that_declares_itself_float_is_taken_and_computed_as_asked(target: str) -> None:
    canonical = float_weights()
    mark_float(next(node for node in canonical.graph.node if node.name == "fc2"), "its weights are float")
    images, changes = images_for(canonical), []
    plain = lower(canonical, target, changes.append)
    assert changes == []
    np.testing.assert_array_equal(run_engine(plain, images), run(canonical, images))
    half = lower(canonical, target, changes.append, float16=True)
    assert changes == ["computed in float16, not in float32: fc2"]
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in half.graph.initializer}
    assert "hardbit.changes" in {entry.key for entry in half.metadata_props}


def test_onnxruntime_has_no_float16() -> None:
    with pytest.raises(HardbitError, match=r"^target: target 'onnxruntime' has no float16"):
        lower(plain_cnn(4), "onnxruntime", float16=True)
