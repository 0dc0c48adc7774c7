"""Quantizers stand where the onnxruntime profile wants them, on any traced module; what it cannot place is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardbit import nets
from hardbit.quantize import Bits, quantize
from hardbit.quantize.freezing import freeze
from hardbit.quantize.operators import operator_of
from hardbit.quantize.quantizers import activation_numerics, is_activation_quantizer, parameter_codes
from hardbit_deploy.errors import HardbitError


def quantizers(module):
    return {
        str(node.target): activation_numerics(module.get_submodule(str(node.target)))
        for node in module.graph.nodes
        if node.op == "call_module" and is_activation_quantizer(module.get_submodule(str(node.target)))
    }


def widths(module):
    frozen = freeze(module.eval())
    return {
        str(node.target): parameter_codes(frozen.get_submodule(str(node.target))).weight_bits
        for node in frozen.graph.nodes
        if operator_of(frozen, node) in ("Conv", "Gemm")
    }


def test_lenet_at_four_bits():
    module = quantize(nets.build("lenet"), "onnxruntime", Bits(4, 4))
    seen = {name: (n.bits, n.signed) for name, n in quantizers(module).items()}
    assert seen == {"input_quant": (8, True), "relu1": (4, False), "relu2": (4, False), "relu3": (4, False)}
    assert widths(module) == {"conv1": 8, "conv2": 4, "fc1": 4, "fc2": 8}


def test_every_width_of_the_recipe_reaches_its_layers():
    module = quantize(nets.build("lenet"), "onnxruntime", Bits(2, 3, first_layer=7, last_layer=4))
    assert widths(module) == {"conv1": 7, "conv2": 2, "fc1": 2, "fc2": 4}
    assert {n.bits for name, n in quantizers(module).items() if name.startswith("relu")} == {3}


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_both_operands_of_every_residual_add_are_quantized(name):
    module = quantize(nets.build(name), "onnxruntime", Bits(4, 4))
    adds = [node for node in module.graph.nodes if operator_of(module, node) == "Add"]
    assert len(adds) == {"resnet8": 3, "resnet20": 9}[name]
    for add in adds:
        for operand in add.all_input_nodes:
            while operator_of(module, operand) == "Identity":
                operand = operand.all_input_nodes[0]
            assert operator_of(module, operand) == "Quantize"
    branch = quantizers(module)["stages_0_bn2_quant"]
    assert (branch.bits, branch.signed) == (4, True)


def test_a_quantizer_made_for_the_last_layer_has_its_width():
    module = quantize(nets.build("resnet8"), "onnxruntime", Bits(4, 4, last_layer=8))
    pooled = quantizers(module)["pool_quant"]
    assert (pooled.bits, pooled.signed) == (8, False)


class Functional(nn.Module):
    """The same operations as functions and methods, one ReLU module in two places."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.a(x))
        x = torch.add(x, F.relu(self.b(x)))
        x = F.max_pool2d(self.relu(x), 2)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(x)


def test_functions_and_methods_are_quantized_like_modules():
    network = Functional().eval()
    module = quantize(network, "onnxruntime", Bits(8, 8))
    assert len(quantizers(module)) == 5  # image, three ReLUs, the pool
    assert all(not n.signed for name, n in quantizers(module).items() if name != "input_quant")
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_the_users_module_is_left_alone():
    network = nets.build("resnet8")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kinds = [type(m) for m in network.modules()]
    quantize(network, "onnxruntime", Bits(2, 2))(torch.zeros(4, 3, 32, 32))
    assert kinds == [type(m) for m in network.modules()]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.gate = nn.Sigmoid()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.gate(self.stem(x)), 1), 1))


class Probabilities(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.fc(torch.flatten(x, 1)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(Branching())), r"^1\.0: .*cannot be traced"),
        (Branching(), r"Branching: .*cannot be traced"),
        (Sigmoid(), r"gate: .*does not know the operation 'Sigmoid'"),
        (Probabilities(), r"relu: .*logits must come straight"),
        (nn.Sequential(nn.ReLU()), r"no Conv or Linear"),
    ],
)
def test_what_cannot_be_placed_is_refused_by_name_and_place(network, message):
    with pytest.raises(HardbitError, match=message):
        quantize(network, "onnxruntime", Bits(4, 4))


def test_unknown_profiles_and_widths_are_refused():
    with pytest.raises(HardbitError, match=r"no numerics profile 'tpu'.*onnxruntime"):
        quantize(nets.build("lenet"), "tpu", Bits())
    with pytest.raises(HardbitError, match="activations cannot have 5 bits"):
        Bits(activations=5)
