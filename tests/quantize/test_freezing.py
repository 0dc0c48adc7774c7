"""Freezing folds BatchNorm, fixes scales, and leaves a network whose float32 arithmetic is exact."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hardbit.graph.export import export_canonical
from hardbit.quantize import Bits, calibrate, freeze, quantize
from hardbit.quantize.freezing import fold_batch_norm
from hardbit.quantize.operators import operator_of
from hardbit.quantize.quantizers import activation_numerics, is_weight_layer, parameter_codes
from hardbit.quantize.scales import SIGNIFICAND_BITS
from hardbit.targets import lower
from hardbit.train.adversary import centred
from quantized_examples import calibrated, random_images

WIDTHS = [8, 7, 4, 3, 2, 1]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("architecture", ["lenet", "resnet8", "resnet20"])
def test_a_frozen_network_computes_the_same_bits_in_float32_and_float64(architecture, bits):
    """float64 has 29 bits to spare: equality means that float32 rounded nowhere but in the quantizers."""
    twin = freeze(calibrated(architecture, bits))
    shape = (1, 28, 28) if architecture == "lenet" else (3, 32, 32)
    images = centred(torch.from_numpy(random_images(64, shape, seed=1)))
    with torch.no_grad():
        single = twin(images)
        double = twin.double()(images.double())
    assert torch.equal(single.double(), double)


def test_folding_is_that_of_pytorch():
    module = calibrated("lenet", 8)
    layer, norm = module.conv2, module.bn2
    weight, bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    fold_batch_norm(module)
    assert torch.allclose(module.conv2.weight, weight, rtol=1e-5, atol=1e-7)
    assert torch.allclose(module.conv2.bias, bias, rtol=1e-5, atol=1e-6)
    assert not any("bn" in name for name, _ in module.named_modules())


def test_a_learned_weight_scale_follows_the_factor_that_is_folded_in():
    """With factors that are powers of two the codes cannot change at all."""
    module = calibrated("lenet", 2)
    norm = module.bn2
    with torch.no_grad():
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.copy_(2.0 ** torch.randint(-3, 3, norm.weight.shape) * torch.sign(torch.randn(norm.weight.shape)))
    sign = torch.sign(norm.weight.detach()).view(-1, 1, 1, 1)
    before = module.conv2.quant_weight().int() * sign.to(torch.int8)
    fold_batch_norm(module)
    assert torch.equal(module.conv2.quant_weight().int(), before.to(torch.int8))


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_integers_of_a_frozen_layer(bits):
    twin = freeze(calibrated("resnet8", bits))
    scale_of = {}
    for node in twin.graph.nodes:
        operator = operator_of(twin, node)
        if operator == "Quantize":
            scale_of[node] = activation_numerics(twin.get_submodule(str(node.target))).scale
        elif node.all_input_nodes and node.all_input_nodes[0] in scale_of and operator != "Add":
            scale_of[node] = scale_of[node.all_input_nodes[0]]
        if operator not in ("Conv", "Gemm"):
            continue
        layer = twin.get_submodule(str(node.target))
        codes = parameter_codes(layer)
        limit = max(1, 2 ** (codes.weight_bits - 1) - 1)
        assert codes.weight.abs().max() <= limit
        assert torch.equal(codes.weight, layer.quant_weight().int())  # Brevitas' own integers
        expected = codes.weight_scale.numpy() * np.float32(scale_of[node.all_input_nodes[0]])
        assert np.array_equal(codes.bias_scale.numpy(), expected)
        error = (codes.bias * codes.bias_scale - layer.bias).abs()
        assert torch.all(error <= codes.bias_scale / 2 * (1 + 1e-4))


def test_a_frozen_network_still_learns_with_its_scales_fixed():
    twin = freeze(calibrated("lenet", 4)).train()
    names = [name for name, _ in twin.named_parameters()]
    assert not any("scale" in name for name in names)
    images = centred(torch.from_numpy(random_images(8, (1, 28, 28))))
    twin(images).square().sum().backward()
    layers = [m for m in twin.modules() if is_weight_layer(m)]
    assert all(torch.any(layer.weight.grad != 0) and torch.any(layer.bias.grad != 0) for layer in layers)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("gamma", [0.0, 1e-20, 1e-9, 1e-6])
def test_a_channel_that_batch_norm_has_switched_off_keeps_its_bias(bits, gamma):
    """Weight decay does this to trained networks: weights near zero, so tiny scales, beside a bias that is not."""
    module = calibrated("lenet", bits)
    with torch.no_grad():
        module.bn2.weight[:3] = gamma
        module.bn2.bias[:3] = torch.tensor([0.7, -30.0, 0.0])
    images = random_images(64, (1, 28, 28), seed=1)
    twin = freeze(module).eval()
    with torch.no_grad():
        single = twin(centred(torch.from_numpy(images))).numpy()
        before = module.eval()(centred(torch.from_numpy(images))).numpy()
    engine = lower(export_canonical(twin, (1, 28, 28)), "onnxruntime")
    (logits,) = onnxruntime.InferenceSession(engine.SerializeToString()).run(None, {"image": images})
    assert np.abs(logits - single).max() <= 1e-4
    if bits == 8:
        assert np.abs(single - before).max() < 0.1 * np.abs(before).max()
    biases = parameter_codes(twin.conv2)
    folded = torch.tensor([0.7, -30.0, 0.0]) - gamma * module.bn2.running_mean[:3] / torch.sqrt(
        module.bn2.running_var[:3] + module.bn2.eps
    )
    assert torch.allclose((biases.bias * biases.bias_scale)[:3].float(), folded, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("bits", "within"), [(4, True), (8, False)])
def test_where_sums_outgrow_float32_a_code_moves_by_one_and_rarely(bits, within):
    """2304 inputs of one sign with weights of one sign: at 8 bits the sums pass 2^19 counts sixteen times over."""
    torch.manual_seed(0)
    hidden = nn.Linear(2304, 256)
    nn.init.normal_(hidden.weight, 1.5, 1.0)
    network = nn.Sequential(nn.ReLU(), nn.Flatten(), hidden, nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    module = quantize(network, "onnxruntime", Bits(bits, bits, first_layer=bits))
    images = centred(torch.from_numpy(random_images(500, (1, 48, 48))))
    calibrate(module, images.split(250))
    with torch.no_grad():
        for _ in range(20):
            module(images)
    twin = freeze(module.eval()).eval()
    relu, layer = twin.get_submodule("4"), twin.get_submodule("2")
    values = torch.relu(images).flatten(1) / activation_numerics(twin.get_submodule("0")).scale
    largest_sum = (values.double() @ parameter_codes(layer).weight.double().abs().T).max()
    assert (largest_sum * 2**SIGNIFICAND_BITS <= 2**24) == within
    codes = []
    relu.register_forward_hook(lambda module, inputs, output: codes.append(output.double() / scale))
    scale = activation_numerics(relu).scale
    with torch.no_grad():
        twin(images)
        twin.double()(images.double())
    moved = (codes[0] - codes[1]).abs()
    assert moved.max() <= (0 if within else 1)
    assert (moved > 0).double().mean() < 1e-4
