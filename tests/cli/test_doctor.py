"""`hardbit doctor`: what is here, what is not, and what would bring it."""

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hardbit import cli, diagnosis
from hardbit.data.load import PUBLISHED


def findings(capsys):
    code = cli.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    return code, document["ready"], {finding["name"]: finding for finding in document["findings"]}


def test_a_machine_with_everything_it_needs(capsys):
    code, ready, found = findings(capsys)
    assert (code, ready) == (0, True)
    assert found["torch"]["status"] == "found"
    assert set(found) >= {
        "python",
        "onnxruntime",
        "processor",
        "timing",
        "fashion-mnist",
        "chromium",
        "nvcc",
        "tensorrt",
    }


def test_a_missing_package_is_named_with_the_command_that_brings_it(capsys, monkeypatch):
    version = diagnosis.version

    def without_brevitas(name):
        if name == "brevitas":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(diagnosis, "version", without_brevitas)
    code, ready, found = findings(capsys)
    assert (code, ready) == (1, False)
    assert found["brevitas"]["status"] == "missing"
    assert found["brevitas"]["remedy"].startswith("pip install 'brevitas>=")
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "-> pip install 'brevitas" in text
    assert text.endswith("not ready for 'hardbit run'\n")


def test_tools_and_data_that_are_absent_are_optional(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(diagnosis, "_NVCC", tmp_path / "nvcc")
    monkeypatch.delenv("HARDBIT_DATA", raising=False)
    for name, data_set in PUBLISHED.items():
        monkeypatch.setitem(PUBLISHED, name, replace(data_set, system_folder=None))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path)
    code, _, found = findings(capsys)
    assert code == 0
    assert {name for name, finding in found.items() if finding["status"] == "optional"} >= {
        "mnist",
        "fashion-mnist",
        "cifar10",
        "gtsrb",
        "chromium",
        "nvcc",
    }
    assert "apt-get install dataset-fashion-mnist" in found["fashion-mnist"]["remedy"]
    assert found["fashion-mnist"]["detail"].startswith("for hardbit train; the demo carries its own")


def test_a_wrong_data_folder_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path / "nowhere"))
    _, _, found = findings(capsys)
    assert "this folder does not exist" in found["fashion-mnist"]["detail"]


def test_the_nodes_of_a_network_and_which_of_them_have_a_gradient_rule(capsys, tmp_path):
    path = tmp_path / "network.onnx"
    onnx.save(plain_network("Relu"), path)
    assert cli.main(["doctor", "--onnx", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["covered"], document["refusal"]) == (True, "")
    statuses = {node["name"]: (node["operator"], node["status"]) for node in document["nodes"]}
    assert statuses["activation"] == ("Relu", "covered")
    assert statuses["size"] == ("Shape", "not on the path")
    assert cli.main(["doctor", "--onnx", str(path)]) == 0
    text = capsys.readouterr().out
    assert "covered  Relu                   activation" in text
    assert "nodes between image and logits have a gradient rule" in text


def test_a_node_without_a_rule_is_told_with_its_reason(capsys, tmp_path):
    path = tmp_path / "network.onnx"
    onnx.save(plain_network("Sinh"), path)
    assert cli.main(["doctor", "--onnx", str(path)]) == 1
    text = capsys.readouterr().out
    assert "MISSING  Sinh                   activation" in text
    assert "the operator Sinh has no gradient rule" in text


def test_a_file_that_the_import_refuses_is_looked_at_all_the_same(capsys, tmp_path):
    path = tmp_path / "network.onnx"
    onnx.save(plain_network("Relu", size=[1, 12]), path)
    assert cli.main(["doctor", "--onnx", str(path)]) == 0
    text = capsys.readouterr().out
    assert "'hardbit convert' does not take this file as it is" in text
    assert "2 of 2 nodes between image and logits have a gradient rule" in text


def test_what_is_no_network_is_refused(capsys, tmp_path):
    (tmp_path / "network.onnx").write_bytes(b"nonsense")
    assert cli.main(["doctor", "--onnx", str(tmp_path / "network.onnx")]) == 64
    assert "this is not an ONNX file" in capsys.readouterr().err


def plain_network(activation, size=(1, 3, 2, 2)):
    """Flatten, an activation and a Gemm; opset 13; a Shape that nobody reads."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flatten", axis=1),
        helper.make_node(activation, ["flat"], ["active"], name="activation"),
        helper.make_node("Gemm", ["active", "weights"], ["output"], name="classes"),
        helper.make_node("Shape", ["input"], ["shape"], name="size"),
    ]
    weights = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    graph = helper.make_graph(
        nodes if len(size) == 4 else [helper.make_node(activation, ["input"], ["active"], name="activation"), nodes[2]],
        "plain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
