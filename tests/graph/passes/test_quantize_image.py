"""Bytes enter a network whose first layer is float; one that quantizes its image is left as it is."""

import numpy as np
import pytest
from onnx import TensorProto

from canonical_examples import plain_cnn
from hardbit.graph.export import export_canonical
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import QuantizeImage
from hardbit.quantize import Bits, freeze
from hardbit.targets import float_nodes, integer_nodes, lower
from lowering_examples import run
from quantized_examples import calibrated, random_images


def test_a_network_that_quantizes_its_image_is_left_as_it_is():
    model = plain_cnn(4)
    assert QuantizeImage().apply(model).graph.node == model.graph.node


@pytest.mark.parametrize("bits", [Bits(32, 32, 32, 32), Bits(4, 4, first_layer=32)])
def test_bytes_enter_and_the_engine_says_what_the_network_says(bits):
    canonical = export_canonical(freeze(calibrated("lenet", bits)), (1, 28, 28))
    images = random_images(32, (1, 28, 28))
    relaxed = QuantizeImage().apply(canonical)
    np.testing.assert_array_equal(run(relaxed, images), run(canonical, images))
    engine = lower(canonical, "onnxruntime")
    assert engine.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    np.testing.assert_allclose(run(engine, images, optimised=True), run(canonical, images), rtol=0, atol=1e-5)
    assert float_nodes(canonical)[0] == {"name": "conv1", "reason": "its weights are float"}
    assert len(integer_nodes(canonical)) + len(float_nodes(canonical)) == 4


def test_signed_codes_are_int8_around_0():
    canonical = export_canonical(freeze(calibrated("lenet", Bits(4, 4, first_layer=32))), (1, 28, 28))
    images = random_images(32, (1, 28, 28))
    signed = QuantizeImage(signed=True).apply(canonical)
    np.testing.assert_array_equal(run(signed, images), run(canonical, images))
    zero_point = OnnxGraph(signed).constant("image.zero_point")
    assert (zero_point, zero_point.dtype) == (0, np.int8)
