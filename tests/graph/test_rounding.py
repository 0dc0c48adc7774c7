"""The places where float32 may round are those where float32 and float64 can differ at all."""

import numpy as np
import pytest

from canonical_examples import plain_cnn, residual_net
from hardbit.graph.export import export_canonical
from hardbit.graph.rounding import rounding_places
from hardbit.quantize import freeze
from lowering_examples import with_constants
from network_examples import OPTIONS, input_shape, tiny_twin
from quantized_examples import calibrated


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("architecture", sorted(OPTIONS))
def test_few_bits_have_no_such_place(architecture, bits):
    assert rounding_places(export_canonical(tiny_twin(architecture, bits), input_shape(architecture))) == []


def test_wide_layers_of_eight_bits_have():
    canonical = export_canonical(freeze(calibrated("lenet", 8)), (1, 28, 28))
    assert [place["name"] for place in rounding_places(canonical)] == ["conv2", "fc1"]


@pytest.mark.parametrize(("weight", "rounds"), [(127, True), (10, False)])
def test_the_bound_is_on_codes_times_codes(weight, rounds):
    """conv2 reads 72 codes of up to 255: 72 * 255 * 127 * 32 > 2^24, and 72 * 255 * 10 * 32 is not."""
    model = with_constants(plain_cnn(8), {"conv2.weight.codes": np.full((12, 8, 3, 3), weight, np.int8)})
    assert ({"conv2"} <= {place["name"] for place in rounding_places(model)}) == rounds


def test_averages_of_other_than_powers_of_two_are_named():
    assert rounding_places(residual_net(2)) == []  # 8x8 pixels
    twin = freeze(calibrated("resnet8", 4, width=4, input_shape=(3, 28, 28)))
    assert rounding_places(export_canonical(twin, (3, 28, 28))) == [
        {"name": "pool", "reason": "an average of 49 values has no finite binary form"}
    ]
