"""Executed precision: the proof against real builds of every pattern, and against what other releases print."""

from __future__ import annotations

import json

import onnx
import pytest

import tensorrt_patterns as patterns
from hardbit.graph.canonical_form import check_canonical
from hardbit_deploy.engines.base import PrecisionReport
from hardbit_deploy.engines.tensorrt_build import build_plan
from hardbit_deploy.engines.tensorrt_layers import LayerRow
from hardbit_deploy.engines.tensorrt_precision import judge_layers, layers_from_build_log, layers_from_inspector
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.manifest import FloatNode, IntegerNode

CONV, FC = IntegerNode("conv", "Conv"), IntegerNode("fc", "Gemm")


def judged(model: onnx.ModelProto) -> PrecisionReport:
    """Every heavy node of the graph is declared integer."""
    pytest.importorskip("tensorrt_rtx")
    declared = [IntegerNode(node.name, node.op_type) for node in patterns.heavy_nodes(model)]
    return judge_layers(build_plan(model.SerializeToString(), module="tensorrt_rtx").layers, declared)


@pytest.mark.tensorrt
@pytest.mark.parametrize("pattern", patterns.INTEGER, ids=lambda pattern: pattern.__name__)
def test_int8_is_proved_for_every_layer_of_what_stays_int8(pattern: patterns.Pattern) -> None:
    model = pattern()
    report = judged(model)
    assert report.problems == ()
    assert report.status == "integer"
    assert {row.name for row in report.nodes} == {node.name for node in patterns.heavy_nodes(model)}
    assert all(row.operand_types == ("int8", "int8") and row.integer for row in report.nodes)


@pytest.mark.tensorrt
@pytest.mark.parametrize("pattern", patterns.FLOAT, ids=lambda pattern: pattern.__name__)
def test_every_pattern_that_loses_int8_without_a_word_is_caught(pattern: patterns.Pattern) -> None:
    report = judged(pattern())
    assert report.status == "wrong"
    assert tuple(row.name for row in report.nodes if not row.integer) == patterns.FLOAT[pattern]
    assert len(report.problems) == len(patterns.FLOAT[pattern])
    for name, problem in zip(patterns.FLOAT[pattern], report.problems, strict=True):
        assert problem.startswith(f"{name} is declared integer and runs as ")


@pytest.mark.tensorrt
@pytest.mark.parametrize("pattern", patterns.UNSEEN, ids=lambda pattern: pattern.__name__)
def test_what_neither_builder_nor_proof_can_see_is_no_canonical_graph(pattern: patterns.Pattern) -> None:
    check_canonical(patterns.as_network(patterns.int8_convolutions()))
    with pytest.raises(HardbitError, match=patterns.UNSEEN[pattern]):
        check_canonical(patterns.as_network(pattern()))
    assert judged(pattern()).status == "integer"


@pytest.mark.tensorrt
def test_a_layer_that_is_declared_float_may_be_float_and_one_that_is_not_declared_may_not() -> None:
    pytest.importorskip("tensorrt_rtx")
    layers = build_plan(patterns.unlike_concat().SerializeToString(), module="tensorrt_rtx").layers
    sides = [IntegerNode("left", "Conv"), IntegerNode("right", "Conv")]
    allowed = judge_layers(layers, sides, [FloatNode("conv", "its scales are unlike")])
    assert allowed.status == "integer"
    assert allowed.declared_float == ("conv runs as correlation on float32 and float32: its scales are unlike",)
    hidden = judge_layers(layers, sides)
    assert hidden.status == "wrong"
    (problem,) = hidden.problems
    assert problem.startswith("conv, ")
    assert problem.endswith(" runs as correlation on float32 and float32 and is not declared at all")


def layer(name: str, kind: str, operands: tuple[str, ...], *origin: str, tactic: str = "") -> LayerRow:
    return LayerRow(name, kind, operands[:1], operands[1:], ("float32",), operands, tactic, origin)


INT8, FLOAT = ("int8", "int8"), ("float32", "float32")


def test_the_worst_of_a_node_s_layers_decides() -> None:
    both = [layer("a", "gemm", INT8, "fc"), layer("b", "gemm", FLOAT, "fc")]
    for layers in (both, both[::-1]):
        assert judge_layers(layers, [FC]).problems == (
            "fc is declared integer and runs as gemm on float32 and float32",
        )


def test_layers_that_move_or_add_prove_nothing() -> None:
    report = judge_layers([layer("__myl_MulAddRelu_myl0_2", "kgen", FLOAT, "fc")], [FC])
    assert report.problems == ("fc is declared integer, and no layer that multiplies was made of it",)


def test_nothing_built_is_nothing_proved() -> None:
    assert judge_layers([], [CONV, FC]).status == "wrong"


def test_one_layer_may_be_several_nodes() -> None:
    nodes = [IntegerNode(name, "MatMul") for name in ("query", "key")]
    assert judge_layers([layer("query+key_myl0_1", "gemm", INT8, "query", "key")], nodes).status == "integer"


def test_names_that_begin_alike_are_not_taken_for_one_another() -> None:
    report = judge_layers([layer("conv10", "correlation", INT8, "conv10")], [IntegerNode("conv1", "Conv")])
    assert report.status == "wrong"


def test_where_the_origin_is_not_told_the_layer_s_own_name_is_read() -> None:
    assert judge_layers([layer("conv + relu", "CaskConvolution", INT8)], [CONV]).status == "integer"
    assert judge_layers([layer("conv2 + relu", "CaskConvolution", INT8)], [CONV]).status == "wrong"


@pytest.mark.parametrize(
    ("name", "kind", "tactic", "integer"),
    [
        ("__myl_FcCastAddErf_myl0_1", "fusion", "", True),
        ("__myl_CastMulFc_myl0_1", "runtime_fusion", "", False),
        ("__myl_CastMulFc_myl0_1", "fusion", "sm80_xmma_gemm_i8i8_i8i32_f32_tn", True),
        ("__myl_MoveConc_myl0_1", "kgen", "", False),
        ("_gemm_mha_v2_myl0_5", "kgen", "", True),
        ("{ForeignNode[conv...fc]}", "Myelin", "", False),
        ("{ForeignNode[conv...fc]}", "kernel", "", False),
        ("fc", "PluginV3", "", False),
    ],
)
def test_kernels_that_the_compiler_writes_are_read_by_their_names(
    name: str, kind: str, tactic: str, integer: bool
) -> None:
    report = judge_layers([layer(name, kind, INT8, "fc", tactic=tactic)], [FC])
    assert (report.status == "integer") is integer


# As TensorRT 10 prints for a GPU: types in sentences, weights by themselves, and the residual among the inputs.
def inspected(first: str, residual: str, weights: str, **more: object) -> str:
    tensors = [
        {"Name": name, "Location": "Device", "Dimensions": [1, 64, 8, 8], "Format/Datatype": text}
        for name, text in (("y", first), ("x", residual))
    ]
    row = {
        "Name": "conv + Add_3 + Relu_4",
        "LayerType": "CaskConvolution",
        "Inputs": tensors,
        "Outputs": tensors[:1],
        "ParameterType": "Convolution",
        "Kernel": [3, 3],
        "Weights": {"Type": weights, "Count": 36864},
        "Bias": {"Type": "Float", "Count": 64},
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: Add_3]\x1e[ONNX Layer: Relu_4]",
    }
    return json.dumps({"Layers": [{**row, **more}], "Bindings": ["x"]})


WIDE_INT8 = "Thirty-two wide channel vectorized row major Int8 format"


@pytest.mark.parametrize(
    ("first", "residual", "weights", "operands"),
    [
        (WIDE_INT8, WIDE_INT8, "Int8", ("int8", "int8")),
        (WIDE_INT8, "Row major linear FP32", "Int8", ("int8", "int8")),
        ("Channel major FP16 format where channel % 8 == 0", WIDE_INT8, "Half", ("float16", "float16")),
        ("Row major linear FP32", WIDE_INT8, "Float", ("float32", "float32")),
        (WIDE_INT8, WIDE_INT8, "Float", ("int8", "float32")),
    ],
)
def test_the_inspector_of_a_board_is_read(first: str, residual: str, weights: str, operands: tuple[str, str]) -> None:
    (row,) = layers_from_inspector(inspected(first, residual, weights))
    assert row.onnx_nodes == ("conv", "Add_3", "Relu_4")
    assert row.operands == operands
    assert (judge_layers([row], [CONV]).status == "integer") is (operands == INT8)


def test_a_kernel_s_name_tells_the_type_of_weights_that_are_not_listed() -> None:
    one = [{"Name": "y", "Dimensions": [1, 64], "Format/Datatype": "Int8"}]
    (row,) = layers_from_inspector(inspected("", "", "", Inputs=one, Weights=None))
    assert row.operands == ("int8", "int8")
    (row,) = layers_from_inspector(inspected("", "", "", Inputs=one, Weights=None, TacticName="gemm"))
    assert row.operands == ("int8",)
    assert judge_layers([row], [CONV]).status == "wrong"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": [{}]}', '{"Layers": 3}'])
def test_what_is_no_inspection_is_refused(text: str) -> None:
    with pytest.raises(HardbitError, match="its JSON cannot be read"):
        layers_from_inspector(text)


def test_an_engine_that_tells_only_names_is_refused() -> None:
    with pytest.raises(HardbitError, match="no more of its layers than their names"):
        layers_from_inspector('{"Layers": ["conv + relu"]}')


LINE = (
    "Name: {name}, LayerType: correlation, Inputs: [ {{ Name: a[0], Dimensions: [1,16,8,8], Strides: [1024,64,8,1], "
    "Datatype: Int8, Format: (Linear) Row major linear format }}], Constants: [ {{ Name: w, Dimensions: [32,16,3,3], "
    "Datatype: {weights}, Format: (NHWC) Channel major format }}], Outputs: [ {{ Name: b, Dimensions: [1,32,8,8], "
    "Datatype: Float, Format: (Linear) Row major linear format }}], TacticName: t, StreamId: 0, Metadata: {metadata}"
)


@pytest.mark.parametrize("separator", ["", "\x1e", "\x1f"])
def test_a_line_of_the_log_is_read_whatever_stands_between_the_nodes(separator: str) -> None:
    metadata = separator.join(f"[ONNX Layer: {name}]" for name in ("/body[0]/conv", "/relu"))
    line = LINE.format(name="/body[0]/conv_myl0_1", weights="Int8", metadata=metadata)
    (row,) = layers_from_build_log(["INFO: begun", f"VERBOSE: Layers:\n{line}\n\nBindings:\nx"])
    expected = LayerRow(
        "/body[0]/conv_myl0_1",
        "correlation",
        ("int8",),
        ("int8",),
        ("float32",),
        ("int8", "int8"),
        "t",
        ("/body[0]/conv", "/relu"),
    )
    assert row == expected
    assert LayerRow.from_document(json.loads(json.dumps(row.to_document()))) == row


def test_a_log_without_layers_is_refused() -> None:
    with pytest.raises(HardbitError, match="lists no layers"):
        layers_from_build_log(["VERBOSE: After reformat layers: 3 layers"])
