"""Initializers among the inputs go; nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from onnx import helper

from canonical_examples import plain_cnn
from graph_strategies import small_graphs
from hardbit.graph.passes import StripInitializerInputs, run_passes
from lowering_examples import copy_of, executed, images_for, run


def with_initializer_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = copy_of(model)
    for tensor in model.graph.initializer:
        changed.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return changed


@settings(max_examples=10, deadline=None)
@given(small_graphs())
def test_values_are_preserved(model: onnx.ModelProto) -> None:
    before = with_initializer_inputs(model)
    after = run_passes(before, [StripInitializerInputs()], check_each=True)
    assert [value.name for value in after.graph.input] == ["image"]
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(before, images))


def test_without_it_no_convolution_runs_in_integers() -> None:
    before = with_initializer_inputs(plain_cnn())
    assert "QLinearConv" not in executed(before).values()
    assert executed(StripInitializerInputs().apply(before))["conv1"] == "QLinearConv"
