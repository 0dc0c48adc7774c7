"""The adversaries of training stay in their ball, find what a linear network's closed form says, and leave no trace."""

import numpy as np
import pytest
import torch
from torch import nn

from hardbit.quantize import freeze
from hardbit.train import Adversary
from hardbit.train.adversary import GREY_LEVEL, HIGH, LOW, centred, perturb, pgd_on_bytes, to_bytes
from quantized_examples import calibrated, random_images

IMAGES = torch.from_numpy(random_images(12, (1, 28, 28)))
LABELS = torch.arange(12) % 10


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def test_bytes_survive_the_way_to_centred_pixels_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(centred(levels)), levels)
    assert centred(levels).min() == LOW
    assert centred(levels).max() == HIGH


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("kind", "steps"), [("fgsm", 1), ("pgd", 5)])
def test_adversarial_images_stay_in_the_ball_and_in_range(norm, kind, steps):
    spec = Adversary(kind, eps_255=20.0, steps=steps, norm=norm)
    images = centred(IMAGES)
    found = perturb(linear(), images, LABELS, spec, torch.Generator().manual_seed(0))
    difference = (found - images).flatten(1)
    size = difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)
    assert torch.all(size <= 20.0 * GREY_LEVEL * (1 + 1e-5))
    assert size.max() > 0.9 * 20.0 * GREY_LEVEL
    assert found.min() >= LOW
    assert found.max() <= HIGH


def test_noise_of_n_fgsm_leaves_the_ball_but_not_the_range():
    spec = Adversary("n-fgsm", eps_255=20.0)
    images = centred(IMAGES)
    found = perturb(linear(), images, LABELS, spec, torch.Generator().manual_seed(0))
    assert (found - images).abs().max() > 20.0 * GREY_LEVEL
    assert (found - images).abs().max() <= 3 * 20.0 * GREY_LEVEL * (1 + 1e-5)
    assert found.min() >= LOW


def test_two_classes_of_a_linear_network_have_a_closed_form():
    """The loss of two linear classes grows along sign(w_other - w_label) alone: any PGD must end at that corner."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    images, labels = torch.full((2, 1, 28, 28), 0.0), torch.tensor([0, 1])
    found = perturb(network, images, labels, Adversary("pgd", 8.0, steps=10), torch.Generator().manual_seed(0))
    weight = network[1].weight.detach()
    corner = torch.stack([(weight[1] - weight[0]).sign(), (weight[0] - weight[1]).sign()]) * 8.0 * GREY_LEVEL
    assert torch.allclose(found.flatten(1), corner, atol=1e-6)


def test_attack_iterates_do_not_enter_batch_norm_statistics_and_parameters_get_no_gradient():
    module = calibrated("lenet", 4).train()
    before = {n: b.clone() for n, b in module.named_buffers() if "bn" in n}
    assert {n.rsplit(".", 1)[1] for n in before} == {"running_mean", "running_var", "num_batches_tracked"}
    perturb(module, centred(IMAGES), LABELS, Adversary("pgd", 25.0, steps=3), torch.Generator().manual_seed(0))
    assert all(torch.equal(b, before[n]) for n, b in module.named_buffers() if "bn" in n)
    assert all(p.grad is None for p in module.parameters())
    assert module.bn1.momentum == 0.1


@pytest.mark.parametrize(("norm", "eps"), [("linf", 25.0), ("linf", 7.5), ("l2", 200.0)])
def test_the_images_of_a_bundle_are_bytes_inside_the_ball_and_fool_the_twin(norm, eps):
    twin = freeze(calibrated("lenet", 4)).eval()
    clean = IMAGES.numpy()
    with torch.no_grad():
        labels = twin(centred(IMAGES)).argmax(1).numpy()
    found = pgd_on_bytes(twin, clean, labels, norm=norm, eps_255=eps, steps=10)
    difference = found.astype(np.int64) - clean
    size = np.abs(difference).max() if norm == "linf" else np.sqrt((difference**2).sum((1, 2, 3))).max()
    assert found.dtype == np.uint8
    assert 0.5 * eps < size <= eps
    with torch.no_grad():
        assert (twin(centred(torch.from_numpy(found))).argmax(1).numpy() != labels).mean() > 0.3


@pytest.mark.parametrize(
    ("kind", "steps", "expected"), [("fgsm", 1, 12.5), ("n-fgsm", 1, 10.0), ("pgd", 10, 2.5), ("pgd", 2, 10.0)]
)
def test_default_step_sizes_are_those_of_the_literature(kind, steps, expected):
    assert Adversary(kind, 10.0, steps=steps).step_255 == expected
    assert Adversary(kind, 10.0, steps=steps, step_size_255=3.0).step_255 == 3.0
