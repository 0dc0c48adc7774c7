"""FGSM and PGD from the image itself, against a plain loop in PyTorch and against peers where they are installed.

eps and steps of whole grey levels make bytes and floats one grid in L-inf, so that the same attack visits the same
points. Peers go on after an image has fallen and hand back where they end: they are asked for every number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hardbit_deploy.attacks import ThreatModel, fgsm, pgd
from strength_examples import Both, keeps, shipped_network

EPS, STEPS = 24, 10  # steps of 2.5 eps / 10 = 6 grey levels
STEP = 6
# Attacks as peers spell them: eps, step and number of steps in, points in [0, 1] out.
Peer = Callable[[Both, float, float, int], torch.Tensor]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return shipped_network(tmp_path_factory.mktemp("float"), 200)


def plain_loop(both: Both, eps: float, step: float, steps: int) -> torch.Tensor:
    clean, points = both.floats, both.floats
    for _ in range(steps):
        points = points.detach().requires_grad_()
        loss = functional.cross_entropy(both.module(points), both.truth, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = points + step * gradient.sign()
        points = torch.clamp(torch.clamp(points, clean - eps, clean + eps), 0, 1)
    return points.detach()


def torchattacks(both: Both, eps: float, step: float, steps: int) -> torch.Tensor:
    peer = pytest.importorskip("torchattacks")
    if steps == 1 and step == eps:
        return peer.FGSM(both.module, eps=eps)(both.floats, both.truth)
    return peer.PGD(both.module, eps=eps, alpha=step, steps=steps, random_start=False)(both.floats, both.truth)


def foolbox(both: Both, eps: float, step: float, steps: int) -> torch.Tensor:
    peer = pytest.importorskip("foolbox")
    model = peer.PyTorchModel(both.module, bounds=(0, 1), device="cpu")
    if steps == 1 and step == eps:
        attack = peer.attacks.FGSM(random_start=False)
    else:
        attack = peer.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=False)
    return attack(model, both.floats, both.truth, epsilons=[eps])[1][0]


def adversarial_robustness_toolbox(both: Both, eps: float, step: float, steps: int) -> torch.Tensor:
    evasion = pytest.importorskip("art.attacks.evasion")
    estimators = pytest.importorskip("art.estimators.classification")
    classifier = estimators.PyTorchClassifier(
        both.module, torch.nn.CrossEntropyLoss(), both.images.shape[1:], 10, clip_values=(0, 1), device_type="cpu"
    )
    if steps == 1 and step == eps:
        attack = evasion.FastGradientMethod(classifier, eps=eps)
    else:
        attack = evasion.ProjectedGradientDescentPyTorch(
            classifier, eps=eps, eps_step=step, max_iter=steps, num_random_init=0, verbose=False
        )
    return torch.from_numpy(attack.generate(both.floats.numpy(), both.labels))


PEERS = [plain_loop, torchattacks, foolbox, adversarial_robustness_toolbox]


def grey_levels(points: torch.Tensor) -> NDArray[np.uint8]:
    """Bytes of points in [0, 1], which lie on them but for what float32 makes of it."""
    levels = points.numpy().astype(np.float64) * 255
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    return np.rint(levels).astype(np.uint8)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_fgsm_gives_the_same_images(both: Both, peer: Peer) -> None:
    expected = grey_levels(peer(both, EPS / 255, EPS / 255, 1))
    ours = fgsm(both.engine, both.gradient, both.images, both.labels, ThreatModel("linf", EPS))
    assert np.mean(ours.adversarial == expected) > 0.9999  # a derivative near zero may have either sign
    survived = keeps(both.module, torch.from_numpy(expected).float() / 255, both.truth)
    np.testing.assert_array_equal(ours.survived, survived)
    assert 0 < survived.sum() < len(survived)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_pgd_from_the_image_visits_the_same_points(both: Both, peer: Peer) -> None:
    """What has fallen on any iterate has fallen for both, and the iterate that did it is the same."""
    points = [grey_levels(peer(both, EPS / 255, STEP / 255, steps)) for steps in range(1, STEPS + 1)]
    kept = np.stack([keeps(both.module, torch.from_numpy(each).float() / 255, both.truth) for each in points])
    ours = pgd(
        both.engine, both.gradient, both.images, both.labels, ThreatModel("linf", EPS), steps=STEPS, from_image=True
    )
    np.testing.assert_array_equal(ours.survived, kept.all(axis=0))
    fallen = np.flatnonzero(~ours.survived)
    assert 10 < len(fallen) < len(both.labels) - 10
    first = np.stack(points)[kept.argmin(axis=0)[fallen], fallen]
    assert np.mean(ours.adversarial[fallen] == first) > 0.999
