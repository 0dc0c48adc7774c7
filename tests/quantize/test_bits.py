"""Widths by kind of layer and by place: the longest name that fits counts, and a name that fits nothing is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hardbit import nets
from hardbit.quantize import Bits, quantize
from hardbit.quantize.bits import ALLOWED_BITS, FLOAT
from hardbit.quantize.quantizers import activation_numerics, is_activation_quantizer, is_weight_layer
from hardbit_deploy.errors import HardbitError

NAMES = st.lists(st.sampled_from(["a", "b", "conv", "conv1", "0"]), min_size=1, max_size=4).map(".".join)


def weight_widths(module):
    """Layer -> width of its weights, 32 for plain layers."""
    return {
        name: int(layer.quant_weight().bit_width) if is_weight_layer(layer) else FLOAT
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def activation_widths(module):
    return {
        name: activation_numerics(layer).bits
        for name, layer in module.named_modules()
        if is_activation_quantizer(layer)
    }


def quantized(architecture, bits):
    return quantize(nets.build(architecture), "onnxruntime", bits)


@given(layers=st.dictionaries(NAMES, st.sampled_from(ALLOWED_BITS), max_size=5), place=NAMES)
def test_the_longest_name_that_the_place_begins_with_counts(layers, place):
    parts = place.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    expected = next((layers[prefix] for prefix in prefixes if prefix in layers), 5)
    assert Bits(layers=layers).of(place, 5) == expected


@given(layers=st.dictionaries(NAMES, st.sampled_from(ALLOWED_BITS), max_size=3), places=st.lists(NAMES, max_size=4))
def test_a_name_is_accepted_exactly_if_some_place_begins_with_it(layers, places):
    used = [name for name in layers if any((place + ".").startswith(name + ".") for place in places)]
    if len(used) == len(layers):
        Bits(layers=layers).check_places(places)
    else:
        with pytest.raises(HardbitError, match="the network has no place"):
            Bits(layers=layers).check_places(places)


def test_single_layers_and_their_activations_have_widths_of_their_own():
    module = quantized("lenet", Bits(4, 4, layers={"conv2": 2, "fc1": FLOAT, "relu3": 1, "conv1": 3}))
    assert weight_widths(module) == {"conv1": 3, "conv2": 2, "fc1": FLOAT, "fc2": 8}
    assert activation_widths(module) == {"relu1": 4, "relu2": 4, "relu3": 1, "input_quant": 8}


def test_the_beginning_of_a_path_stands_for_all_that_is_below_it():
    module = quantized("resnet8", Bits(4, 4, layers={"stages.1": 8, "stages.1.relu1": 2, "stages.1.shortcut": 1}))
    weights, activations = weight_widths(module), activation_widths(module)
    assert (weights["stages.0.conv1"], weights["stages.1.conv1"], weights["stages.1.conv2"]) == (4, 8, 8)
    assert weights["stages.1.shortcut.0"] == 1
    assert (activations["stages.0.relu1"], activations["stages.1.relu1"], activations["stages.1.relu2"]) == (4, 2, 8)
    assert (activations["stages_0_bn2_quant"], activations["stages_1_bn2_quant"]) == (4, 8)
    assert activations["stages_1_shortcut_1_quant"] == 1


def test_a_quantizer_behind_a_module_is_called_by_what_it_follows():
    module = quantized("resnet8", Bits(4, 4, layers={"stages.0.bn2": 8, "pool": 3}))
    activations = activation_widths(module)
    assert (activations["stages_0_bn2_quant"], activations["stages_1_bn2_quant"], activations["pool_quant"]) == (
        8,
        4,
        3,
    )


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 36, 2)

    def forward(self, x):
        return self.fc(torch.flatten(torch.relu(self.conv(x)), 1))


def test_functions_are_places_too():
    module = quantize(Functional(), "onnxruntime", Bits(4, 4, layers={"relu": 2}))
    assert sorted(activation_widths(module).values()) == [2, 8]


@pytest.mark.parametrize(
    ("architecture", "name", "message"),
    [
        ("lenet", "conv3", r"^quantization\.layers\.conv3: the network has no place 'conv3' .*near it are .*conv2"),
        ("resnet8", "stages.3", r"no place 'stages.3' with a width; near it are .*stages\.\d"),
        ("resnet8", "stages.0.conv", r"no place 'stages.0.conv'.*near it are .*stages.0.conv1"),
        ("lenet", "bn1", r"no place 'bn1'"),  # it is folded into conv1, whose ReLU is quantized
        ("lenet", "xyzzy", r"no place 'xyzzy' with a width; places are .*conv1, relu1"),
    ],
)
def test_a_name_that_fits_nothing_is_refused_with_those_that_are_near(architecture, name, message):
    with pytest.raises(HardbitError, match=message):
        quantized(architecture, Bits(4, 4, layers={name: 2}))


def test_weights_alone_and_activations_alone():
    module = quantized("resnet8", Bits(weights=4, activations=FLOAT))
    assert activation_widths(module) == {"input_quant": 8}
    assert set(weight_widths(module).values()) == {4, 8}
    module = quantized("resnet8", Bits(FLOAT, 4, FLOAT, FLOAT))
    assert set(weight_widths(module).values()) == {FLOAT}
    assert "input_quant" not in activation_widths(module)
    assert "pool_quant" not in activation_widths(module)  # it would be there for the last layer alone
    module = quantized("lenet", Bits(FLOAT, FLOAT, FLOAT, FLOAT))
    assert activation_widths(module) == {}


def test_widths_that_there_are_not_are_refused_by_place():
    with pytest.raises(HardbitError, match=r"^quantization\.layers\.conv1: layers\.conv1 cannot have 6 bits"):
        Bits(layers={"conv1": 6})


def test_bits_are_values():
    layers = {"conv1": 2}
    bits = Bits(4, 4, layers=layers)
    layers["conv1"] = 8
    assert bits == Bits(4, 4, layers={"conv1": 2})
    assert hash(bits) == hash(Bits(4, 4, layers={"conv1": 2}))
    assert bits != Bits(4, 4)
