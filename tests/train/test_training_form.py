"""The network as a training step computes it: in float32 to the bit, results, gradients and BatchNorm's account."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hardbit.train.training_form import TrainingForm
from training_networks import KINDS_IN_LAYOUTS, LABELS, images_of, module_of


def trained(network, module, images):
    """Logits, the gradients of all parameters, and the buffers after one step."""
    module.zero_grad()
    logits = network(images)
    F.cross_entropy(logits, LABELS).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return logits.detach(), gradients, dict(module.named_buffers())


@pytest.mark.parametrize(("name", "memory_format"), KINDS_IN_LAYOUTS)
def test_a_step_has_the_bits_of_the_module(name, memory_format):
    module, images = module_of(name, memory_format).train(), images_of(name, memory_format)
    twin = copy.deepcopy(module)
    ours, our_gradients, our_buffers = trained(TrainingForm(module), module, images)
    theirs, their_gradients, their_buffers = trained(twin, twin, images)
    assert torch.equal(ours, theirs)
    assert our_gradients.keys() == their_gradients.keys()
    assert all(torch.equal(our_gradients[key], their_gradients[key]) for key in our_gradients)
    assert all(torch.equal(our_buffers[key], their_buffers[key]) for key in our_buffers)


@pytest.mark.parametrize("separate", [False, True])
def test_a_float_network_in_bfloat16_learns_and_keeps_account_within_its_precision(separate):
    module, images = module_of("resnet8, float").train(), images_of("resnet8, float")
    twin = copy.deepcopy(module)
    form = TrainingForm(module, precision="bfloat16", separate_norms=separate)
    ours, our_gradients, our_buffers = trained(form, module, images)
    theirs, their_gradients, their_buffers = trained(twin, twin, images)
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
    for key, gradient in their_gradients.items():
        assert F.cosine_similarity(our_gradients[key].flatten(), gradient.flatten(), dim=0) > 0.97, key
    for key, buffer in their_buffers.items():
        assert torch.allclose(our_buffers[key].float(), buffer.float(), rtol=0.05, atol=0.05), key


@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_account_of_a_fused_norm_is_that_of_batch_norm(momentum):
    module, images = module_of("lenet").train(), images_of("lenet")
    module.bn1.momentum = momentum
    twin = copy.deepcopy(module)
    form = TrainingForm(module, precision="bfloat16")
    for _ in range(3):
        form(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            twin(images)
    assert torch.allclose(module.bn1.running_mean, twin.bn1.running_mean, rtol=1e-2, atol=1e-3)
    assert torch.allclose(module.bn1.running_var, twin.bn1.running_var, rtol=1e-2, atol=1e-3)
    assert module.bn1.num_batches_tracked == twin.bn1.num_batches_tracked


def test_in_evaluation_mode_nothing_is_accounted_for():
    module, images = module_of("resnet8").eval(), images_of("resnet8")
    before = {name: value.clone() for name, value in module.named_buffers()}
    for precision in ("float32", "bfloat16"):
        TrainingForm(module, precision=precision)(images)
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
