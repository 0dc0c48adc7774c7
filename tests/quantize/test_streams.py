"""Streams of floats and of residual sums: who is quantized there, at which width, and who goes on reading floats."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardbit import nets
from hardbit.quantize import Bits, freeze, quantize
from hardbit.quantize.freezing import channelwise_layer
from hardbit.quantize.operators import operator_of
from hardbit.quantize.quantizers import activation_numerics, is_activation_quantizer, is_weight_layer, parameter_codes
from network_examples import OPTIONS, tiny_twin


def quantizers(module):
    """place -> (bits, whether signed)"""
    found = {
        str(node.target): module.get_submodule(str(node.target))
        for node in module.graph.nodes
        if node.op == "call_module" and is_activation_quantizer(module.get_submodule(str(node.target)))
    }
    return {name: (activation_numerics(q).bits, activation_numerics(q).signed) for name, q in found.items()}


def test_a_vision_transformer_is_quantized_where_its_layers_read_and_nowhere_else():
    module = quantize(nets.build("vit", **OPTIONS["vit"] | {"depth": 1}), "onnxruntime", Bits(2, 2))
    assert quantizers(module) == {
        "input_quant": (8, True),
        "patches_quant": (8, True),
        "blocks_0_norm1_quant": (2, True),
        "matmul_1_quant": (2, True),
        "blocks_0_norm2_quant": (2, True),
        "blocks.0.relu": (2, False),
        "mean_quant": (8, True),
    }


def test_the_residual_stream_before_a_batch_norm_has_eight_bits_at_every_width():
    module = quantize(nets.build("wrn-16-4", width=2), "onnxruntime", Bits(2, 2))
    found = quantizers(module)
    streams = {name: found[name] for name in found if name.startswith("add")}
    assert len(streams) == 6
    assert set(streams.values()) == {(8, True)}
    assert found["stages_0_conv2_quant"] == (2, True)
    named = quantize(nets.build("wrn-16-4", width=2), "onnxruntime", Bits(2, 2, layers={"add": 4}))
    assert quantizers(named)["add_quant"] == (4, True)


class PostNorm(nn.Module):
    """A sum and a layer that read the same LayerNorm, as in the first transformers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.embed(torch.flatten(x, 1)))
        return self.fc(x + self.hidden(x))


def test_of_a_value_computed_in_float_sums_go_on_reading_the_floats():
    module = quantize(PostNorm(), "onnxruntime", Bits(4, 4))
    (add,) = (node for node in module.graph.nodes if operator_of(module, node) == "Add")
    assert [str(source.target) for source in add.all_input_nodes] == ["norm", "hidden"]
    assert quantizers(module) == {"input_quant": (8, True), "norm_quant": (4, True), "add_quant": (4, True)}


class Convolutions(nn.Module):
    """Convolutions whose results are added up, with a norm of channels behind the sum."""

    def __init__(self, norm):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)
        self.b = nn.Conv2d(1, 4, 3)
        self.norm = norm
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.a(x) + self.b(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu(x), 1), 1))


def test_a_sum_is_of_codes_or_of_floats_by_what_reads_it():
    for norm, kind in ((nn.BatchNorm2d(4), "codes"), (nn.LayerNorm(6), "floats")):
        module = quantize(Convolutions(norm), "onnxruntime", Bits(4, 4))
        found = quantizers(module)
        assert ("add_quant" in found) == (kind == "codes")
        assert found["a_quant"] == found["b_quant"] == ((4, True) if kind == "codes" else (8, True))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_batch_norm_alone_becomes_a_layer_that_does_the_same(quantized):
    torch.manual_seed(0)
    factor, shift = torch.randn(6), torch.randn(6)
    layer = channelwise_layer(factor, shift, quantized=quantized)
    assert is_weight_layer(layer) == quantized
    x = torch.randn(5, 6, 3, 3)
    expected = x * factor.view(-1, 1, 1) + shift.view(-1, 1, 1)
    assert (layer(x) - expected).abs().max() <= (0.02 if quantized else 1e-6) * expected.abs().max()


def test_its_weights_have_room_to_double():
    twin = tiny_twin("wrn-16-4", 2)
    codes = [parameter_codes(twin.get_submodule(f"stages.{k}.bn1")) for k in range(1, 6)]
    assert all(code.weight_bits == 8 for code in codes)
    largest = torch.cat([code.weight.abs().flatten() for code in codes])
    assert largest.min() >= 60
    assert largest.max() <= 68


def test_a_frozen_network_with_such_layers_can_be_loaded_into_a_fresh_one():
    twin = tiny_twin("wrn-16-4", 4)
    torch.manual_seed(1)
    other = freeze(quantize(nets.build("wrn-16-4", **OPTIONS["wrn-16-4"]), "onnxruntime", Bits(4, 4)))
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}
