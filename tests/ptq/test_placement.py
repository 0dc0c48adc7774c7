"""Where quantizers go."""

from __future__ import annotations

import numpy as np
import onnx

from executed_precision import executed_precision_of
from float_networks import NETWORKS, FloatBuilder
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.ptq import quantize_network
from hardbit.ptq.placement import Placement, place
from hardbit.ptq.preparation import prepare
from hardbit.ptq.tensor_shapes import tensor_shapes
from lowering_examples import images_for


def placement_of(model: onnx.ModelProto) -> Placement:
    prepared = prepare(model)
    return place(OnnxGraph(prepared), tensor_shapes(prepared))


def places(placement: Placement) -> list[str]:
    return [tensor.name.removesuffix(".out") for tensor in placement.tensors]


def test_plain_networks_are_quantized_behind_each_activation_function_and_not_at_the_end() -> None:
    placement = placement_of(NETWORKS["plain"]())
    assert places(placement) == ["front.add", "act1", "act2", "act3"]
    assert placement.wide == {"conv1", "fc2"}


def test_residual_sums_have_codes_on_both_sides_and_behind() -> None:
    placement = placement_of(NETWORKS["residual"]())
    wanted = ["front.add", "stem.act", "one.relu1", "one.conv2", "one.relu2"]
    assert places(placement) == [*wanted, "two.relu1", "two.conv2", "two.pad", "two.relu2", "mean.pooled"]
    by_name = {tensor.name: tensor for tensor in placement.tensors}
    assert by_name["stem.act.out"].limits == (0, 6)
    assert by_name["two.pad.out"].like == "one.relu2.out"
    assert by_name["mean.pooled"].wide
    assert [tensor.name for tensor in placement.tensors if tensor.of_pixels] == ["front.add.out"]
    assert placement.saturations == ("stem.act",)


def test_only_a_product_reads_the_codes_of_a_sign() -> None:
    placement = placement_of(NETWORKS["binary"]())
    assert placement.layers == ("fc",)
    assert [(tensor.name, tensor.signs) for tensor in placement.tensors] == [("sign2.out", True)]


def test_a_result_with_two_readers_is_quantized_before_both() -> None:
    b = FloatBuilder()
    x = b.conv("image", "conv1", (8, 3, 3, 3), pads=[1, 1, 1, 1])
    y = b.conv(b.node("Relu", [x], "relu"), "conv2", (8, 8, 3, 3), pads=[1, 1, 1, 1])
    x = b.node("Add", [x, y], "sum")
    x = b.node("GlobalAveragePool", [x], "pool")
    model = b.model(b.gemm(b.node("Flatten", [x], "flatten", axis=1), "fc", 8, 10))
    placement = placement_of(model)
    assert places(placement) == ["image", "conv1", "relu", "conv2", "sum", "pool"]
    readers = next(tensor.readers for tensor in placement.tensors if tensor.name == "conv1.out")
    assert readers == ("relu", "sum")


def test_a_rectified_product_is_quantized_whoever_reads_it() -> None:
    """ONNX Runtime would make one FusedGemm of floats of the two."""
    b = FloatBuilder()
    x = b.node("Relu", [b.gemm(b.node("Flatten", ["image"], "flatten", axis=1), "fc1", 768, 32)], "relu1")
    y = b.node("Relu", [b.gemm(x, "fc2", 32, 32)], "relu2")
    model = b.model(b.gemm(b.node("Add", [x, y], "sum"), "fc3", 32, 10))
    assert places(placement_of(model)) == ["image", "relu1", "relu2", "sum"]
    images = images_for(model)
    report = executed_precision_of(quantize_network(model, images), images)
    assert (report.status, report.problems) == ("integer", ())


def test_a_padding_with_another_number_than_0_has_a_scale_of_its_own() -> None:
    b = FloatBuilder()
    x = b.node("Relu", [b.conv("image", "conv1", (8, 3, 3, 3))], "relu")
    filling = b.constant("filling", np.float32(1.5))
    x = b.node("Pad", [x, b.constant("widths", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), filling], "pad")
    x = b.conv(x, "conv2", (2, 8, 3, 3))
    model = b.model(b.gemm(b.node("Flatten", [x], "flatten", axis=1), "fc", 2 * 14 * 14, 10))
    assert {tensor.name: tensor.like for tensor in placement_of(model).tensors}["pad.out"] is None
