"""What cannot be taken is refused in one line that names the node, tensor or file; the rest keeps its names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hardbit.importing import import_network
from hardbit.importing.reading import read_source
from hardbit_deploy.errors import HardbitError
from importing_examples import CLASSES, convolutional, model_of, node, saved, weights


def refusal(model: onnx.ModelProto, folder: Path) -> HardbitError:
    with pytest.raises(HardbitError) as caught:
        import_network(saved(model, folder))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("content", [b"", b"not protobuf at all", b"\x08\x07" * 40])
def test_what_is_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(HardbitError, match="not an ONNX file"):
        read_source(tmp_path / "net.onnx")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match="no such file"):
        read_source(tmp_path / "net.onnx")


def test_weights_in_another_file(tmp_path: Path) -> None:
    model = convolutional()
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    with pytest.raises(HardbitError, match="values lie in another file") as caught:
        read_source(tmp_path / "net.onnx")
    assert caught.value.where == "w"


def test_a_subgraph(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Identity", ["h"], "z")], "branch", [], [onnx.ValueInfoProto(name="z")])
    nodes = [
        node("Flatten", ["x"], "h"),
        helper.make_node("If", ["yes"], ["y"], name="/decide", then_branch=branch, else_branch=branch),
    ]
    error = refusal(model_of(nodes, {"yes": np.array(True)}, {"x": ["n", 3, 8, 8]}), tmp_path)
    assert error.where == "/decide"
    assert "subgraphs" in error.message


def test_an_operator_of_somebody_s_own(tmp_path: Path) -> None:
    model = model_of([node("Magic", ["x"], "y", domain="acme")], {}, {"x": ["n", 3, 8, 8]}, domains=["acme"])
    error = refusal(model, tmp_path)
    assert (error.where, "'acme'" in error.message) == ("/y/Magic", True)


def test_an_operator_that_onnx_does_not_know(tmp_path: Path) -> None:
    error = refusal(model_of([node("Magic", ["x"], "y")], {}, {"x": ["n", 3, 8, 8]}), tmp_path)
    assert error.where == "/y/Magic"


def test_several_inputs_are_named(tmp_path: Path) -> None:
    model = model_of([node("Add", ["x", "other"], "y")], {}, {"x": ["n", 3, 8, 8], "other": ["n", 3, 8, 8]})
    assert "2 inputs: x, other" in refusal(model, tmp_path).message


def test_several_outputs_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    model = convolutional()
    model.graph.output.insert(0, helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    error = refusal(model, tmp_path)
    assert "2 outputs: r, y" in error.message
    assert "--output" in error.remedy
    assert import_network(tmp_path / "net.onnx", output="y").classes == CLASSES
    with pytest.raises(HardbitError, match="no output 'z'"):
        import_network(tmp_path / "net.onnx", output="z")


def test_sparse_weights(tmp_path: Path) -> None:
    model = convolutional()
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    assert refusal(model, tmp_path).where == "sparse"


def test_every_node_gets_a_name_and_keeps_its_own(tmp_path: Path) -> None:
    model = convolutional()
    model.graph.node[1].name = ""
    model.graph.node[3].name = model.graph.node[0].name
    source = read_source(saved(model, tmp_path))
    names = [each.name for each in source.graph.node]
    assert names == ["/h/Conv", "Relu_1", "/f/Flatten", "Gemm_3"]


def test_functions_of_the_file_are_written_out(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"], name="inner")]
    function = helper.make_function("local", "Activate", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    model = convolutional()
    model.graph.node[1].CopyFrom(node("Activate", ["h"], "r", domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.append(function)
    assert "Relu" in [each.op_type for each in read_source(saved(model, tmp_path)).graph.node]
    assert import_network(tmp_path / "net.onnx").classes == CLASSES


def test_what_is_no_classifier(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], "y")]
    error = refusal(model_of(nodes, {"w": weights(6, 3, 3, 3)}, {"x": ["n", 3, 8, 8]}), tmp_path)
    assert "[3, 6, 6, 6]" in error.message


def test_a_file_that_onnx_runtime_refuses(tmp_path: Path) -> None:
    """Before opset 11 a Gemm without a bias is not valid."""
    model = convolutional(opset=9)
    del model.graph.node[3].input[2]
    error = refusal(model, tmp_path)
    assert error.where == "/y/Gemm"
    assert error.exit_code == 64
