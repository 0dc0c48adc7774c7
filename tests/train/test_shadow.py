"""A shadow is the quantized network: in float32 to the bit, logits, gradients and adversarial images."""

import pytest
import torch
import torch.nn.functional as F

from hardbit.train import Adversary
from hardbit.train.adversary import centred, perturb
from hardbit.train.shadow import Shadow
from hardbit_deploy.errors import HardbitError
from quantized_examples import calibrated, random_images

SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32)}
LABELS = torch.arange(8) % 10
PGD = Adversary("pgd", 8.0, steps=3)


def images_of(architecture, memory_format=torch.contiguous_format):
    images = centred(torch.from_numpy(random_images(8, SHAPES[architecture])))
    return images.contiguous(memory_format=memory_format)


def module_of(architecture, memory_format=torch.contiguous_format):
    module = calibrated(architecture, 4)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return module


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize("architecture", SHAPES)
def test_logits_gradients_and_adversarial_images_are_those_of_the_module(architecture, batch_norm, memory_format):
    module = module_of(architecture, memory_format).train(batch_norm == "batch")
    images = images_of(architecture, memory_format)
    shadow = Shadow(module, batch_norm=batch_norm)
    results = []
    for network in (module, shadow):
        pixels = images.clone().requires_grad_()
        logits = network(pixels)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), pixels)
        results.append((logits, gradient, perturb(network, images, LABELS, PGD, torch.Generator().manual_seed(0))))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_a_word_that_means_nothing_is_refused():
    with pytest.raises(HardbitError, match="no precision 'float8'"):
        Shadow(calibrated("lenet", 4), precision="float8")
