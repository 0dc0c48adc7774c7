"""Lowered for ONNX Runtime, every declared layer runs in integers, bit-identical to the canonical graph; or refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, numpy_helper

from canonical_examples import INPUT_SCALE, CanonicalBuilder, plain_cnn, residual_net
from graph_strategies import small_graphs
from hardbit.graph.onnx_graph import mark_float
from hardbit.graph.passes import run_passes
from hardbit.targets import float_nodes, integer_nodes, lower, names
from hardbit.targets.onnxruntime import PASSES, PREPARATION
from hardbit_deploy.errors import HardbitError
from lowering_examples import WIDTHS, copy_of, executed, images_for, lively, run, with_constants
from passes_examples import with_float_biases

INTEGER_KERNELS = {"Conv": "QLinearConv", "Gemm": "QGemm"}


def floating_layers(canonical: onnx.ModelProto, engine: onnx.ModelProto) -> dict[str, str]:
    """Declared layers that the optimised graph runs as something else than an integer kernel."""
    ran = executed(engine)
    wanted = {node["name"]: INTEGER_KERNELS[node["op"]] for node in integer_nodes(canonical)}
    return {name: ran.get(name, "missing") for name, kernel in wanted.items() if ran.get(name) != kernel}


def lowered_unchecked(canonical: onnx.ModelProto, *without: str) -> onnx.ModelProto:
    """The lowering without its legality checks, and without some of its passes: what a fault would lead to."""
    return run_passes(canonical, [step for step in (*PREPARATION, *PASSES) if step.name not in without])


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("example", [plain_cnn, residual_net])
class TestExamples:
    def test_every_declared_layer_runs_in_integers(self, example, bits: int) -> None:
        canonical = example(bits)
        layers = [node.name for node in canonical.graph.node if node.op_type in INTEGER_KERNELS]
        assert [node["name"] for node in integer_nodes(canonical)] == layers
        ran = executed(lower(canonical, "onnxruntime"))
        assert {ran[node["name"]] for node in integer_nodes(canonical)} == {"QLinearConv", "QGemm"}
        others = {"Clip", "Flatten", "NhwcMaxPool", "QLinearAdd", "QLinearGlobalAveragePool", "Transpose"}
        assert set(ran.values()) <= {*INTEGER_KERNELS.values(), *others}

    def test_the_engine_has_the_bits_of_the_canonical_graph_in_float(self, example, bits: int) -> None:
        for canonical in (example(bits), lively(example(bits))):
            engine = lower(canonical, "onnxruntime")
            images = images_for(canonical, 64)
            np.testing.assert_array_equal(run(engine, images, optimised=True), run(canonical, images))

    def test_odd_ranges_of_weights_make_no_difference(self, example, bits: int) -> None:
        rng = np.random.default_rng(bits)
        low, high = -(2 ** (bits - 1)), max(2 ** (bits - 1) - 2, 0)
        canonical = lively(example(bits))
        codes = {
            tensor.name: rng.integers(low, high + 1, tensor.dims).astype(np.int8)
            for tensor in canonical.graph.initializer
            if tensor.name.endswith("weight.codes") and bits_declared(canonical, tensor.name) >= bits
        }
        canonical = with_constants(canonical, codes)
        engine = lower(canonical, "onnxruntime")
        images = images_for(canonical)
        assert floating_layers(canonical, engine) == {}
        np.testing.assert_array_equal(run(engine, images, optimised=True), run(canonical, images))

    def test_float_biases_are_rounded_reported_and_integer(self, example, bits: int) -> None:
        canonical = with_float_biases(lively(example(bits)))
        changes: list[str] = []
        engine = lower(canonical, "onnxruntime", changes.append)
        metadata = {entry.key: entry.value for entry in engine.metadata_props}
        assert json.loads(metadata["hardbit.changes"]) == changes != []
        assert floating_layers(canonical, engine) == {}
        images = images_for(canonical)
        np.testing.assert_array_equal(run(engine, images, optimised=True), run(engine, images))

    def test_bytes_in_logits_out_names_kept(self, example, bits: int) -> None:
        canonical = example(bits)
        before = canonical.SerializeToString(deterministic=True)
        engine = lower(canonical, "onnxruntime")
        assert canonical.SerializeToString(deterministic=True) == before
        assert [value.name for value in engine.graph.input] == ["image"]
        image, logits = engine.graph.input[0].type.tensor_type, engine.graph.output[0].type.tensor_type
        assert (image.elem_type, logits.elem_type) == (TensorProto.UINT8, TensorProto.FLOAT)
        assert image.shape.dim[0].dim_param == logits.shape.dim[0].dim_param == "batch"
        quantizers = {n.name for n in canonical.graph.node if n.op_type == "QuantizeLinear"} - {"input.quantize"}
        assert quantizers <= {n.name for n in engine.graph.node}
        assert all(n.metadata_props for n in engine.graph.node if n.name in quantizers)  # the bit widths


def bits_declared(model: onnx.ModelProto, codes: str) -> int:
    node = next(node for node in model.graph.node if node.input[0] == codes)
    return int(node.metadata_props[0].value)


@settings(max_examples=60, deadline=None)
@given(small_graphs())
def test_random_graphs_run_in_integers_with_the_same_bits(canonical: onnx.ModelProto) -> None:
    engine = lower(canonical, "onnxruntime")
    images = images_for(canonical, 8)
    assert floating_layers(canonical, engine) == {}
    np.testing.assert_array_equal(run(engine, images, optimised=True), run(canonical, images))


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    assert names() == ["onnxruntime", "tensorrt", "tensorrt_rtx"]
    with pytest.raises(HardbitError, match="there is no target 'openvino'; known: onnxruntime, tensorrt, tensorrt_rtx"):
        lower(plain_cnn(), "openvino")


def test_a_layer_without_quantized_operands_is_not_declared() -> None:
    canonical = copy_of(plain_cnn(4))
    conv = next(node for node in canonical.graph.node if node.name == "conv1")
    conv.input[0], conv.input[1] = "image", "conv1.float.weight"
    canonical.graph.initializer.append(numpy_helper.from_array(np.ones((8, 1, 3, 3), np.float32), "conv1.float.weight"))
    assert [node["name"] for node in integer_nodes(canonical)] == ["conv2", "fc1", "fc2"]


@pytest.mark.parametrize(
    ("example", "without", "floating"),
    [
        (plain_cnn, "dequantize_late", {"fc1": "FusedGemm"}),
        (residual_net, "dequantize_late", {"fc": "Gemm"}),
        (residual_net, "unsigned_activations", {"block0.conv2": "Conv"}),
    ],
)
def test_without_a_pass_a_declared_layer_falls_back_to_float(example, without: str, floating: dict) -> None:
    """So that the tests above can fail."""
    canonical = example(4)
    skipped = [without] if without != "unsigned_activations" else [without, "bytes_in"]
    found = floating_layers(canonical, lowered_unchecked(canonical, *skipped))
    assert floating.keys() <= found.keys()
    assert not set(found.values()) & {"QLinearConv", "QGemm", "missing"}


class Block:
    """A small residual block to plant faults in."""

    @staticmethod
    def start() -> tuple[CanonicalBuilder, str]:
        b = CanonicalBuilder()
        x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
        x = b.conv(x, "conv1", (4, 1, 3, 3), INPUT_SCALE, 8, strides=[1, 1], pads=[1, 1, 1, 1])
        return b, b.node("Relu", [x], "relu.out", "relu")

    @staticmethod
    def end(b: CanonicalBuilder, x: str) -> onnx.ModelProto:
        x = b.quantize(x, "act2", 2.0**-4, 4, signed=False)
        x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
        return b.model(b.gemm(x, "fc", (3, 4 * 36), 2.0**-4, 8), (1, 6, 6), 3)

    @staticmethod
    def second(b: CanonicalBuilder, x: str) -> str:
        return b.conv(x, "conv2", (4, 4, 3, 3), 2.0**-4, 4, strides=[1, 1], pads=[1, 1, 1, 1])


def skip_branch_without_quantizer() -> onnx.ModelProto:
    b, raw = Block.start()
    y = Block.second(b, b.quantize(raw, "act1", 2.0**-4, 4, signed=False))
    y = b.quantize(y, "branch", 2.0**-3, 4, signed=True)
    return Block.end(b, b.node("Relu", [b.node("Add", [y, raw], "sum", "add")], "sum.relu", "relu2"))


def conv_branch_without_quantizer() -> onnx.ModelProto:
    b, raw = Block.start()
    x = b.quantize(raw, "act1", 2.0**-4, 4, signed=False)
    y = Block.second(b, x)
    return Block.end(b, b.node("Relu", [b.node("Add", [y, x], "sum", "add")], "sum.relu", "relu2"))


def float_clip_before_quantizer() -> onnx.ModelProto:
    b, x = Block.start()
    bounds = [b.constant("low", np.float32(0)), b.constant("high", np.float32(0.75))]
    x = b.node("Clip", [x, *bounds], "clipped", "relu6")
    return Block.end(b, Block.second(b, b.quantize(x, "act1", 2.0**-4, 8, signed=False)))


def convolution_last() -> onnx.ModelProto:
    b, raw = Block.start()
    x = b.quantize(raw, "act1", 2.0**-4, 4, signed=False)
    x = b.conv(x, "conv2", (3, 4, 6, 6), 2.0**-4, 8)
    return b.model(b.node("Flatten", [x], "flat", "flatten", axis=1), (1, 6, 6), 3)


def product_rectified_in_float() -> onnx.ModelProto:
    b, raw = Block.start()
    x = b.quantize(raw, "act1", 2.0**-4, 4, signed=False)
    x = b.gemm(b.node("Flatten", [x], "flatten.out", "flatten", axis=1), "fc", (3, 4 * 36), 2.0**-4, 8)
    x = b.node("Mul", [b.node("Relu", [x], "relu2.out", "relu2"), b.constant("two", np.float32(2))], "doubled", "mul")
    mark_float(b.nodes[-1], "to see what becomes of the product")
    return b.model(x, (1, 6, 6), 3)


def pooled_without_fresh_quantizer() -> onnx.ModelProto:
    b, raw = Block.start()
    x = b.quantize(raw, "act1", 2.0**-4, 4, signed=False)
    x = b.node("AveragePool", [x], "pooled", "pool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    return Block.end(b, Block.second(b, x))


@pytest.mark.parametrize(
    ("canonical", "floating", "refusal"),
    [
        (skip_branch_without_quantizer(), {"conv1"}, r"^conv1: Conv would run in float: .*'add' \(Add\)"),
        (conv_branch_without_quantizer(), {"conv2"}, r"^conv2: Conv would run in float: .*'add' \(Add\)"),
        (
            float_clip_before_quantizer(),
            {"conv1"},
            r"^relu6: a Clip of float numbers keeps the layer before it in float",
        ),
        (convolution_last(), {"conv2"}, r"^conv2: Conv would run in float: .*flatten"),
        (
            product_rectified_in_float(),
            {"fc"},
            r"^fc: Gemm would run in float: its result is read by 'mul' \(Mul\)",
        ),
    ],
)
def test_a_graph_that_would_fall_back_is_refused_and_really_does(
    canonical: onnx.ModelProto, floating: set[str], refusal: str
) -> None:
    with pytest.raises(HardbitError, match=refusal):
        lower(canonical, "onnxruntime")
    assert floating_layers(canonical, lowered_unchecked(canonical)).keys() == floating


def test_a_layer_with_one_quantized_operand_is_refused_and_really_runs_in_float() -> None:
    canonical = pooled_without_fresh_quantizer()
    with pytest.raises(HardbitError, match=r"^conv2: Conv would run in float: its activations are not quantized"):
        lower(canonical, "onnxruntime")
    assert executed(lowered_unchecked(canonical))["conv2"] == "Conv"


def test_an_add_with_one_float_branch_is_refused_by_name() -> None:
    b, raw = Block.start()
    x = b.quantize(raw, "act1", 2.0**-4, 4, signed=False)
    mean = b.node("GlobalAveragePool", [x], "mean.out", "mean")
    canonical = Block.end(b, b.node("Relu", [b.node("Add", [x, mean], "sum", "add")], "sum.relu", "relu2"))
    with pytest.raises(HardbitError, match=r"^add: one branch of the Add is not quantized: 'mean'"):
        lower(canonical, "onnxruntime")


def test_a_relu_that_cannot_become_saturation_is_refused_and_really_runs_in_float() -> None:
    b, x = Block.start()
    canonical = Block.end(b, Block.second(b, b.quantize(x, "act1", 2.0**-4, 8, signed=False)))
    canonical = with_constants(canonical, {"act1.zero_point": np.uint8(9)})
    with pytest.raises(
        HardbitError, match=r"^conv1: Conv would run in float: .*'act1.quantize' has the uint8 zero point 9"
    ):
        lower(canonical, "onnxruntime")
    assert floating_layers(canonical, lowered_unchecked(canonical)) == {"conv1": "FusedConv"}


def test_a_clip_on_weights_is_refused_although_onnx_runtime_folds_it() -> None:
    canonical = plain_cnn(4)
    index, node = next((i, n) for i, n in enumerate(canonical.graph.node) if n.name == "conv2.weight.dequantize")
    clip = onnx.helper.make_node("Clip", [node.input[0], "w.low", "w.high"], ["w.clipped"], name="w.clip")
    canonical.graph.node.insert(index, clip)
    canonical.graph.node[index + 1].input[0] = "w.clipped"
    canonical = with_constants(canonical, {"w.low": np.int8(-7), "w.high": np.int8(7)})
    with pytest.raises(HardbitError, match=r"^w.clip: a constant is clipped at run time"):
        lower(canonical, "onnxruntime")
    assert executed(lowered_unchecked(canonical))["conv2"] == "QLinearConv"


def test_an_image_that_is_not_quantized_is_refused() -> None:
    b = CanonicalBuilder()
    x = b.node("Relu", ["image"], "image.relu", "relu")
    x = b.quantize(x, "input", INPUT_SCALE, 8, signed=False)
    x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    with pytest.raises(HardbitError, match=r"^image: the input is read by 'relu' \(Relu\)"):
        lower(b.model(b.gemm(x, "fc", (3, 36), INPUT_SCALE, 8), (1, 6, 6), 3), "onnxruntime")


def with_float_head() -> onnx.ModelProto:
    """The example with its last layer in float: weights without codes."""
    canonical = copy_of(plain_cnn(4))
    gemm = next(node for node in canonical.graph.node if node.name == "fc2")
    gemm.input[1] = "fc2.float"
    canonical.graph.initializer.append(numpy_helper.from_array(np.ones((10, 16), np.float32), "fc2.float"))
    return canonical


def test_a_layer_that_would_run_in_float_is_refused_unless_it_declares_why() -> None:
    canonical = with_float_head()
    with pytest.raises(HardbitError, match=r"^fc2: Gemm would run in float: its weights are not quantized"):
        lower(canonical, "onnxruntime")
    mark_float(next(node for node in canonical.graph.node if node.name == "fc2"), "to see what happens")
    engine = lower(canonical, "onnxruntime")
    assert float_nodes(canonical) == [{"name": "fc2", "reason": "to see what happens"}]
    assert [node["name"] for node in integer_nodes(canonical)] == ["conv1", "conv2", "fc1"]
    assert executed(engine)["fc2"] == "Gemm"
    images = images_for(canonical)
    np.testing.assert_allclose(run(engine, images, optimised=True), run(canonical, images), rtol=1e-6)


def test_every_layer_is_either_integer_or_float_with_a_reason() -> None:
    canonical = with_float_head()
    layers = [node.name for node in canonical.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node["name"] for node in (*integer_nodes(canonical), *float_nodes(canonical))] == layers
    assert float_nodes(canonical)[0]["reason"] == "its operands are not both codes"
    assert float_nodes(plain_cnn(4)) == []
