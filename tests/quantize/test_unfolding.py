"""Beginning from frozen weights with BatchNorm in its places."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hardbit import nets
from hardbit.quantize import Bits, calibrate, freeze, quantize, start_with_batch_norm
from hardbit_deploy.errors import HardbitError

FLOAT = Bits(32, 32, 32, 32)
OPTIONS = {
    "lenet": {"channels": (4, 8), "hidden": 12, "input_shape": (1, 12, 12)},
    "resnet8": {"width": 8, "input_shape": (3, 16, 16)},
}


def images(architecture: str, seed: int = 0, count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (count, *OPTIONS[architecture]["input_shape"]), generator=generator) / 256


def trained_in_float(architecture: str) -> nn.Module:
    """A float network whose BatchNorms are far from the identity, frozen."""
    torch.manual_seed(1)
    module = quantize(nets.build(architecture, **OPTIONS[architecture]), "onnxruntime", FLOAT)
    for norm in norms(module):
        nn.init.uniform_(norm.weight, 0.3, 2.0)
        nn.init.normal_(norm.bias)
    module.train()
    for seed in range(200):
        module(images(architecture, seed % 4))
    return freeze(module.eval()).eval()


def norms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))


@pytest.mark.parametrize("architecture", OPTIONS)
def test_in_float_the_network_computes_what_the_frozen_one_does(architecture: str) -> None:
    frozen = trained_in_float(architecture)
    module = quantize(nets.build(architecture, **OPTIONS[architecture]), "onnxruntime", FLOAT)
    batch = images(architecture)
    start_with_batch_norm(module, frozen.state_dict(), batch)
    with torch.no_grad():
        expected = frozen(batch)
        torch.testing.assert_close(module.train()(batch), expected, rtol=1e-3, atol=1e-3)
    assert list(norms(module))


@pytest.mark.parametrize("architecture", OPTIONS)
def test_at_one_bit_every_channel_keeps_the_mean_and_the_spread_of_the_float_layer(architecture: str) -> None:
    frozen = trained_in_float(architecture)
    module = quantize(nets.build(architecture, **OPTIONS[architecture]), "onnxruntime", Bits(1, 8, 8, 8))
    batch = images(architecture)
    start_with_batch_norm(module, frozen.state_dict(), batch)
    calibrate(module, [batch])
    seen = {}
    layers = [name for name, m in module.named_modules() if name == "conv1" or name == "bn1"]
    assert layers
    module.bn1.register_forward_hook(lambda norm, inputs, output: seen.update(output=output))
    with torch.no_grad():
        module.train()(batch)
        expected = frozen.conv1(batch)
    torch.testing.assert_close(seen["output"].mean((0, 2, 3)), expected.mean((0, 2, 3)), rtol=0.02, atol=0.02)
    torch.testing.assert_close(seen["output"].std((0, 2, 3)), expected.std((0, 2, 3)), rtol=0.05, atol=0.02)


def test_running_statistics_are_those_of_the_images() -> None:
    frozen = trained_in_float("resnet8")
    module = quantize(nets.build("resnet8", **OPTIONS["resnet8"]), "onnxruntime", Bits(1, 4, 8, 8))
    batch = images("resnet8")
    start_with_batch_norm(module, frozen.state_dict(), batch)
    seen: list[Tensor] = []
    module.bn1.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module.eval()(batch)
    torch.testing.assert_close(module.bn1.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.bn1.running_var, seen[0].var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_weights_of_another_network_are_refused_by_name() -> None:
    module = quantize(nets.build("lenet", **OPTIONS["lenet"]), "onnxruntime", Bits(1, 4, 8, 8))
    with pytest.raises(HardbitError, match=r"'conv1.weight' is not there"):
        start_with_batch_norm(module, {}, images("lenet"))
    tensors = trained_in_float("lenet").state_dict() | {"conv2.bias": torch.zeros(3)}
    with pytest.raises(HardbitError, match=r"'conv2.bias' has shape \(3,\)"):
        start_with_batch_norm(module, tensors, images("lenet"))
