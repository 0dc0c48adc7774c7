"""One bit with a sign, as a canonical graph writes it: the values and the derivative of the PyTorch quantizer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from gradient_reference import run
from hardbit.graph.binary_quantizer import write_binary_quantizer
from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.export import IR_VERSION, OPSET
from hardbit.graph.gradient import differentiate
from hardbit.graph.node_writer import NodeWriter
from hardbit.graph.onnx_graph import bits_of
from hardbit.quantize.binary import binarize
from hardbit_deploy.errors import HardbitError
from lowering_examples import with_constants


def quantizer(scale):
    writer = NodeWriter(taken={"logits"})
    output = write_binary_quantizer(writer, "image", "sign", scale)
    shape = ["batch", 3]
    graph = helper.make_graph(
        [*writer.nodes, helper.make_node("Identity", [output], ["logits"], name="logits")],
        "binary",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        writer.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


@settings(max_examples=50)
@given(
    exponent=st.integers(-6, 6),
    rows=st.lists(st.tuples(*[st.floats(-8, 8, width=32)] * 3), min_size=1, max_size=20),
    kind=st.sampled_from(["any", "multiples"]),
)
def test_values_and_derivative_are_those_of_the_twin_to_the_bit(exponent, rows, kind):
    scale = 2.0**exponent
    values = np.array(rows, np.float32) * np.float32(scale)
    values = np.rint(values / scale * 4).astype(np.float32) * np.float32(scale / 4) if kind == "multiples" else values
    model = quantizer(scale)
    x = torch.from_numpy(values).requires_grad_()
    y = binarize(x, scale)
    pull = np.arange(1, values.size + 1, dtype=np.float32).reshape(values.shape)
    (gradient,) = torch.autograd.grad(y, x, torch.from_numpy(pull))
    for optimised in (False, True):
        found = run(
            differentiate(model, "logits", "image"), {"image": values, "grad_output": pull}, optimised=optimised
        )
        np.testing.assert_array_equal(found["logits"], y.detach().numpy())
        np.testing.assert_array_equal(found["gradient"], gradient.numpy())


def test_the_form_is_canonical_and_says_that_it_has_one_bit():
    model = quantizer(0.25)
    onnx.checker.check_model(model, full_check=True)
    check_canonical(model)
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert [bits_of(node) for node in quantizers] == [1, 1, 1, 1]
    assert all(node.metadata_props for node in model.graph.node if node.op_type == "Add")  # why it is float


def test_more_than_the_two_codes_are_refused():
    model = with_constants(quantizer(0.25), {"sign.low": np.int8(-2)})
    with pytest.raises(HardbitError, match=r"^sign.dequantize: codes from -2 to 1 do not fit the 1 bits declared"):
        check_canonical(model)
