"""A shadow is the quantized network: in float32 to the bit, logits, gradients and adversarial images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardbit.quantize.quantizers import activation_scale, is_activation_quantizer
from hardbit.train import Adversary
from hardbit.train.adversary import perturb
from hardbit.train.fused import operators
from hardbit.train.shadow import Shadow
from hardbit_deploy.errors import HardbitError
from training_networks import KINDS_IN_LAYOUTS, LABELS, images_of, module_of

PGD = Adversary("pgd", 8.0, steps=2)


def attacked(network, images):
    """Logits, the gradient of the loss, and the images that PGD finds."""
    pixels = images.clone().requires_grad_()
    logits = network(pixels)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), pixels)
    return logits.detach(), gradient, perturb(network, images, LABELS, PGD, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize(("name", "memory_format"), KINDS_IN_LAYOUTS)
def test_logits_gradients_and_adversarial_images_are_those_of_the_module(name, memory_format, batch_norm):
    module, images = module_of(name, memory_format).train(batch_norm == "batch"), images_of(name, memory_format)
    ours, theirs = attacked(Shadow(module, batch_norm=batch_norm), images), attacked(module, images)
    assert ours[1].abs().max() > 0
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine, its)


def test_without_the_library_the_bits_are_the_same(monkeypatch):
    module, images = module_of("resnet8"), images_of("resnet8")
    fused = [attacked(Shadow(module, batch_norm=policy), images) for policy in ("batch", "running", "folded")]
    monkeypatch.setattr(operators, "load_library", lambda: None)
    composed = [attacked(Shadow(module, batch_norm=policy), images) for policy in ("batch", "running", "folded")]
    for ours, theirs in zip(fused[:2], composed[:2], strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert torch.allclose(fused[2][0], composed[2][0], atol=0.1)  # a code may differ at its border


@pytest.mark.parametrize("name", ["lenet", "lenet, W1A1", "resnet8", "vit"])
def test_folded_norms_attack_the_same_network(name):
    """A code may fall to the other side of its border, one in many thousands: the gradient keeps its direction."""
    module, images = module_of(name).eval(), images_of(name)
    theirs, ours = attacked(module, images), attacked(Shadow(module, batch_norm="folded"), images)
    assert F.cosine_similarity(ours[1].flatten(), theirs[1].flatten(), dim=0) > 0.999


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize("name", ["lenet", "lenet, frozen", "resnet8", "resnet8, weights alone", "vit"])
def test_bfloat16_is_near(name, batch_norm):
    """At random weights; deeper networks of few bits are chaotic there, and every code that moves moves others."""
    module, images = module_of(name).train(batch_norm == "batch"), images_of(name)
    theirs = attacked(module, images)
    ours = attacked(Shadow(module, batch_norm=batch_norm, precision="bfloat16"), images)
    assert F.cosine_similarity(ours[1].flatten(), theirs[1].flatten(), dim=0) > 0.6


def test_a_float_network_in_bfloat16_is_within_its_precision():
    module, images = module_of("resnet8, float").train(), images_of("resnet8, float")
    theirs, ours = attacked(module, images), attacked(Shadow(module, precision="bfloat16"), images)
    assert (ours[0] - theirs[0]).abs().max() < 0.05 * theirs[0].abs().max()
    assert F.cosine_similarity(ours[1].flatten(), theirs[1].flatten(), dim=0) > 0.98


def test_refresh_takes_over_weights_scales_and_statistics_and_nothing_before_it():
    module, images = module_of("resnet8").train(), images_of("resnet8")
    shadows = {policy: Shadow(module, batch_norm=policy) for policy in ("batch", "running")}
    before = {policy: shadow(images) for policy, shadow in shadows.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    F.cross_entropy(module(images), LABELS).backward()
    optimizer.step()
    quantizer = next(m for m in module.modules() if is_activation_quantizer(m) and not activation_scale(m).is_fixed)
    activation_scale(quantizer).value.mul_(2)
    for policy, shadow in shadows.items():
        assert torch.equal(shadow(images), before[policy])
        shadow.refresh()
        assert torch.equal(shadow(images), module.train(policy == "batch")(images))
        assert not torch.equal(shadow(images), before[policy])


def test_a_shadow_leaves_no_trace_in_the_module():
    module, images = module_of("resnet8").train(), images_of("resnet8")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for precision in ("float32", "bfloat16"):
        attacked(Shadow(module, precision=precision), images)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert module.training


def test_the_smooth_surrogate_clips_and_does_not_round():
    module, images = module_of("lenet").eval(), images_of("lenet")
    smooth = Shadow(module, batch_norm="running", surrogate="smooth")
    for quantizer in filter(is_activation_quantizer, module.modules()):
        tensor_quant = quantizer.act_quant.fused_activation_quant_proxy.tensor_quant
        tensor_quant.int_quant.float_to_int_impl = nn.Identity()
    assert torch.equal(smooth(images), module(images))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "float8"}, "no precision 'float8'"),
        ({"batch_norm": "none"}, "no BatchNorm policy 'none'"),
        ({"surrogate": "sharp"}, "no surrogate 'sharp'"),
    ],
)
def test_a_word_that_means_nothing_is_refused(option, message):
    with pytest.raises(HardbitError, match=message):
        Shadow(module_of("lenet"), **option)
