"""Weights that were trained at some widths are those of the same network at others."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hardbit import nets
from hardbit.quantize import Bits, calibrate, fold_batch_norm, freeze, quantize, requantize, start_from
from hardbit.quantize.quantizers import is_weight_layer, weight_scale
from hardbit.train.adversary import centred
from hardbit.train.weights import load_twin, write_weights
from hardbit_deploy.errors import HardbitError
from quantized_examples import calibrated, random_images

FLOAT = Bits(32, 32, 32, 32)


def images(count=16, seed=1, shape=(1, 28, 28)):
    return centred(torch.from_numpy(random_images(count, shape, seed=seed)))


def of_the_network(module):
    return {name: value for name, value in module.state_dict().items() if "_quant" not in name}


@pytest.mark.parametrize("architecture", ["lenet", "resnet8"])
def test_weights_and_statistics_stay_and_the_given_module_too(architecture):
    module = calibrated(architecture, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    other = requantize(module, lambda: nets.build(architecture), "onnxruntime", Bits(2, 3))
    kept = of_the_network(module)
    assert of_the_network(other).keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in of_the_network(other).items())
    assert any("running_mean" in name for name in kept)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_weight_scales_are_set_from_the_weights_that_came():
    module = calibrated("lenet", 4)
    with torch.no_grad():
        for layer in (module.conv2, module.fc1):
            layer.weight.mul_(7.3)
    other = requantize(module, lambda: nets.build("lenet"), "onnxruntime", Bits(2, 4))
    expected = module.conv2.weight.detach().abs().mean((1, 2, 3))  # at 2 bits the mean is where a scale starts
    assert torch.allclose(weight_scale(other.conv2)(other.conv2.weight).flatten(), expected, rtol=2.0**-5)


def test_in_float_the_network_is_the_plain_one():
    torch.manual_seed(0)
    plain = nets.build("resnet8").eval()
    module = requantize(
        quantize(plain, "onnxruntime", Bits(4, 4)).eval(), lambda: nets.build("resnet8"), "onnxruntime", FLOAT
    )
    x = images(shape=(3, 32, 32))
    with torch.no_grad():
        assert torch.equal(module(x), plain(x))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_what_is_folded_stays_folded(bits):
    frozen = freeze(calibrated("lenet", 4))
    other = requantize(frozen, lambda: nets.build("lenet"), "onnxruntime", Bits(bits, bits))
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in other.modules())
    assert torch.equal(other.conv2.bias, frozen.conv2.bias)
    assert (weight_scale(other.conv2).log2_scale is not None) == (bits < 7)


@pytest.mark.parametrize("source", [FLOAT, Bits(4, 4)], ids=["float", "4 bits"])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(2, 4), FLOAT], ids=["8", "2", "float"])
def test_training_goes_on_from_a_frozen_file_and_ends_in_one(source, bits, tmp_path):
    module = requantize(calibrated("lenet", 4), lambda: nets.build("lenet"), "onnxruntime", source)
    calibrate(module, images(64).split(32))
    file = tmp_path / "before.safetensors"
    write_weights(file, freeze(module), {})

    folded = quantize(nets.build("lenet"), "onnxruntime", bits)
    start_from(folded, load_file(file))
    calibrate(folded, images(64).split(32))
    assert torch.equal(folded.conv1.weight, load_file(file)["conv1.weight"])
    folded.train()
    optimizer = torch.optim.Adam(folded.parameters(), 3e-3)
    labels = torch.arange(64) % 10
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(folded(images(64)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    learned = [weight_scale(m).log2_scale for m in folded.modules() if is_weight_layer(m)]
    assert all(scale is None or torch.any(scale.grad != 0) for scale in learned)

    twin = freeze(folded.eval()).eval()
    write_weights(tmp_path / "after.safetensors", twin, {})
    again = load_twin(tmp_path / "after.safetensors", "lenet", {}, "onnxruntime", bits)
    with torch.no_grad():
        assert torch.equal(again(images()), twin(images()))


def test_a_float_file_begins_an_eight_bit_network_that_says_the_same():
    torch.manual_seed(0)
    module = quantize(nets.build("resnet8"), "onnxruntime", FLOAT)
    x = images(64, shape=(3, 32, 32))
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(x)
    twin = freeze(module.eval())
    quantized = quantize(nets.build("resnet8"), "onnxruntime", Bits(8, 8))
    start_from(quantized, twin.state_dict())
    calibrate(quantized, x.split(32))
    with torch.no_grad():
        one, other = twin(x), quantized.eval()(x)
    assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.99


def test_weights_of_another_network_are_refused_by_tensor():
    tensors = dict(freeze(quantize(nets.build("lenet"), "onnxruntime", Bits(4, 4))).state_dict())
    with pytest.raises(HardbitError, match=r"tensor 'conv2.bias' is in the weights only"):
        start_from(quantize(nets.build("resnet8"), "onnxruntime", Bits(4, 4)), tensors)
    with pytest.raises(HardbitError, match=r"tensor 'conv1.weight' has shape \(16, .*the network's has \(8, "):
        start_from(quantize(nets.build("lenet", channels=(8, 8)), "onnxruntime", Bits(4, 4)), tensors)
    del tensors["fc2.bias"]
    with pytest.raises(HardbitError, match=r"tensor 'fc2.bias' is in the network only"):
        start_from(quantize(nets.build("lenet"), "onnxruntime", Bits(4, 4)), tensors)


def test_a_layer_without_bias_takes_the_one_that_freezing_gave_it():
    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))

    module = quantize(build(), "onnxruntime", Bits(4, 4))
    calibrate(module, [images(64)])
    frozen = freeze(module)
    with torch.no_grad():
        frozen.get_submodule("1").bias.fill_(0.25)
    other = requantize(frozen, build, "onnxruntime", FLOAT)
    assert torch.all(other.get_submodule("1").bias == 0.25)
    assert of_the_network(freeze(other)).keys() == of_the_network(frozen).keys()


def test_folding_twice_changes_nothing():
    module = calibrated("lenet", 4)
    fold_batch_norm(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fold_batch_norm(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
