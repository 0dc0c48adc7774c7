"""The adversaries of training stay in their ball, find what a linear network's closed form says, and leave no trace."""

import numpy as np
import pytest
import torch
from torch import nn

from hardbit.quantize import freeze
from hardbit.train import Adversary
from hardbit.train.adversary import GREY_LEVEL, HIGH, LOW, centred, draw_noise, perturb, pgd_on_bytes, to_bytes
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
@pytest.mark.parametrize(("kind", "steps"), [("fgsm", 1), ("pgd", 5), ("trades", 5)])
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


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1)


def test_trades_climbs_the_divergence_from_the_clean_prediction():
    network, images = linear(), centred(IMAGES)
    clean = network(images).softmax(1).detach()

    def reached(steps):
        spec = Adversary("trades", 4.0, steps=steps)
        found = perturb(network, images, LABELS, spec, torch.Generator().manual_seed(0))
        return kl(clean, network(found).softmax(1).detach()).mean()

    corner = torch.where(torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) < 0.5, -4.0, 4.0)
    by_chance = kl(clean, network(images + corner * GREY_LEVEL).softmax(1).detach()).mean()
    assert reached(10) > reached(2) > 2 * by_chance
    spec = Adversary("trades", 4.0, steps=10)
    other = perturb(network, images, (LABELS + 1) % 10, spec, torch.Generator().manual_seed(0))
    same = perturb(network, images, LABELS, spec, torch.Generator().manual_seed(0))
    assert torch.equal(same, other), "labels play no part"


def test_trades_against_a_teacher_climbs_the_divergence_from_it():
    network, teacher, images = linear(), linear(seed=1), centred(IMAGES)
    soft = teacher(images).softmax(1).detach()
    spec = Adversary("trades", 4.0, steps=10)
    found = perturb(network, images, soft, spec, torch.Generator().manual_seed(0))
    own = perturb(network, images, LABELS, spec, torch.Generator().manual_seed(0))
    before, after, by_own = (kl(soft, network(x).softmax(1).detach()).mean() for x in (images, found, own))
    assert after > by_own
    assert after > before


@pytest.mark.parametrize("kind", ["fgsm", "n-fgsm", "pgd", "trades", "square"])
@pytest.mark.parametrize("eps", [7.5, 20.0])
def test_on_the_grid_everything_is_bytes_and_only_n_fgsm_leaves_the_ball(kind, eps):
    images = centred(IMAGES)
    spec = Adversary(kind, eps_255=eps, steps=3, on_grid=True)
    found = perturb(linear(), images, LABELS, spec, torch.Generator().manual_seed(0))
    levels = found / GREY_LEVEL + 128
    assert torch.equal(levels, levels.round())
    assert levels.min() >= 0
    assert levels.max() <= 255
    moved = (levels - IMAGES.float()).abs().max()
    assert moved == int(eps) if kind != "n-fgsm" else moved > eps


def test_on_the_grid_in_l2_every_pixel_is_rounded_towards_the_image():
    images = centred(IMAGES)
    loose = Adversary("pgd", eps_255=100.0, steps=5, norm="l2")
    tight = Adversary("pgd", eps_255=100.0, steps=5, norm="l2", on_grid=True)
    free, gridded = (
        perturb(linear(), images, LABELS, spec, torch.Generator().manual_seed(0)) for spec in (loose, tight)
    )
    assert torch.all((gridded - images).flatten(1).norm(dim=1) <= 100.0 * GREY_LEVEL)
    assert torch.all((gridded - images).abs() <= (free - images).abs() + 0.5 * GREY_LEVEL + 1e-6)


@pytest.mark.parametrize("kind", ["fgsm", "n-fgsm", "pgd", "trades", "square"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rows_of_a_batch_can_be_attacked_apart(kind, norm):
    """Processes that share a batch draw its noise alike, and each attacks its own rows."""
    network, images = linear(), centred(IMAGES)
    spec = Adversary(kind, 20.0, steps=3, norm=norm)
    noise = draw_noise(images, spec, torch.Generator().manual_seed(0))
    whole = perturb(network, images, LABELS, spec, noise=noise)
    parts = [
        perturb(network, images[rows], LABELS[rows], spec, noise=tuple(part[rows] for part in noise))
        for rows in (slice(0, 5), slice(5, 12))
    ]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)
    assert torch.equal(perturb(network, images, LABELS, spec, torch.Generator().manual_seed(0)), whole)


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
    ("kind", "steps", "expected"),
    [("fgsm", 1, 12.5), ("n-fgsm", 1, 10.0), ("pgd", 10, 2.5), ("pgd", 2, 10.0), ("trades", 10, 2.5)],
)
def test_default_step_sizes_are_those_of_the_literature(kind, steps, expected):
    assert Adversary(kind, 10.0, steps=steps).step_255 == expected
    assert Adversary(kind, 10.0, steps=steps, step_size_255=3.0).step_255 == 3.0
