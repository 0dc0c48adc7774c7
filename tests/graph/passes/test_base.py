"""The contract of a pass is checked, and an error says whose fault it is."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from canonical_examples import plain_cnn
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import Pass, PassContractError, ValuePreserving, run_passes
from hardbit_deploy.errors import HardbitError


class Nothing(Pass):
    name = "nothing"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        return []


class WantsNoRelu(Nothing):
    name = "wants_no_relu"

    def requires(self, graph: OnnxGraph) -> list[str]:
        return [f"'{node.name}' is a Relu" for node in graph.nodes if node.op_type == "Relu"]


class PromisesNoRelu(Nothing):
    name = "promises_no_relu"
    ensures = WantsNoRelu.requires


class Breaks(Nothing):
    name = "breaks"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        graph.nodes.append(helper.make_node("NoSuchOperator", ["logits"], ["more"], name="odd"))
        graph.set_output(graph.nodes[-2], "renamed")
        graph.nodes[-1].input[0], graph.nodes[-1].output[0] = "renamed", "logits"
        return []


class Reports(Nothing):
    name = "reports"
    value_preserving = ValuePreserving.UNLESS_REPORTED

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        return ["conv1: everything is different"]


class ReportsInSpiteOfPromise(Reports):
    value_preserving = ValuePreserving.ALWAYS


def test_an_unmet_requirement_is_the_fault_of_the_graph() -> None:
    with pytest.raises(HardbitError, match=r"pass wants_no_relu: 'relu1' is a Relu"):
        WantsNoRelu().apply(plain_cnn())


def test_an_unmet_promise_is_the_fault_of_the_pass() -> None:
    with pytest.raises(PassContractError, match=r"pass promises_no_relu did not deliver.*'relu1'"):
        PromisesNoRelu().apply(plain_cnn())


@pytest.mark.parametrize("check_each", [True, False])
def test_an_invalid_result_is_the_fault_of_the_pass(check_each: bool) -> None:
    last = "breaks" if check_each else "nothing"
    with pytest.raises(PassContractError, match=f"after pass {last} the model is not valid"):
        run_passes(plain_cnn(), [Breaks(), Nothing()], check_each=check_each)


def test_changes_of_values_are_reported() -> None:
    changes: list[str] = []
    run_passes(plain_cnn(), [Nothing(), Reports()], changes.append)
    assert changes == ["conv1: everything is different"]


def test_a_pass_that_preserves_values_may_not_report_a_change() -> None:
    with pytest.raises(PassContractError, match="preserves values, yet reports"):
        ReportsInSpiteOfPromise().apply(plain_cnn())


def test_the_input_is_not_touched() -> None:
    model = plain_cnn()
    before = model.SerializeToString(deterministic=True)

    class RemovesEverything(Nothing):
        def rewrite(self, graph: OnnxGraph) -> list[str]:
            for node in graph.nodes:
                node.name = f"{node.name}.renamed"
                graph.set_input(node, 0, "image")
            graph.set_metadata({"more": "of it"})
            return []

    RemovesEverything().apply(model)
    assert model.SerializeToString(deterministic=True) == before


def test_unread_nodes_and_initializers_are_pruned() -> None:
    model = plain_cnn()
    model.graph.node.append(helper.make_node("Relu", ["act1"], ["unread"], name="unread"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(onnx.numpy_helper.np.zeros(3), "unread.constant"))
    pruned = Nothing().apply(model)
    assert "unread" not in {node.name for node in pruned.graph.node}
    assert "unread.constant" not in {tensor.name for tensor in pruned.graph.initializer}
