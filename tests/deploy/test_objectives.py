"""What attacks ascend: values against formulas in PyTorch, derivatives against autograd, at every scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from hardbit_deploy.attacks.objectives import (
    CROSS_ENTROPY,
    DLR,
    MARGIN,
    OBJECTIVES,
    TEMPERED,
    logit_difference,
    targeted_dlr,
)

COUNT = 40


def logits_of(classes: int, scale: float = 1.0):
    """Logits, and the labels that they name: an attack follows images that still stand."""
    logits = (np.random.default_rng(0).normal(size=(COUNT, classes)) * 3 * scale).astype(np.float32)
    return logits, logits.argmax(axis=1)


def targets_of(labels, classes: int):
    return (labels + 1 + np.arange(COUNT) % (classes - 1)) % classes


def log_odds(z, labels):
    loss = functional.cross_entropy(z, labels, reduction="none")
    return loss + torch.log(-torch.expm1(-loss))  # log(p/(1-p)) of the probability of being wrong


def margin(z, labels):
    right = z.gather(1, labels[:, None])[:, 0]
    others = z.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - right


def dlr(z, labels):
    ordered = z.sort(dim=1, descending=True).values
    return margin(z, labels) / (ordered[:, 0] - ordered[:, 2])


def towards(targets):
    def value(z, labels):
        ordered = z.sort(dim=1, descending=True).values
        difference = z.gather(1, targets[:, None])[:, 0] - z.gather(1, labels[:, None])[:, 0]
        return difference / (ordered[:, 0] - ordered[:, 2:4].mean(dim=1))

    return value


def tempered(z, labels):
    spread = z.detach().std(dim=1, correction=0, keepdim=True)
    return log_odds(4 * z / spread, labels)


FORMULAS = {"cross_entropy": log_odds, "margin": margin, "dlr": dlr, "tempered": tempered}


def cases(classes: int, labels):
    targets = targets_of(labels, classes)
    return [
        *((OBJECTIVES[name], formula) for name, formula in FORMULAS.items()),
        (targeted_dlr(targets), towards(torch.from_numpy(targets))),
    ]


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("classes", [4, 10, 100])
def test_values_and_derivatives_are_those_of_the_formula(classes: int, scale: float) -> None:
    logits, labels = logits_of(classes, scale)
    for objective, formula in cases(classes, labels):
        z = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
        values = formula(z, torch.from_numpy(labels))
        (slopes,) = torch.autograd.grad(values.sum(), z)
        np.testing.assert_allclose(objective.values(logits, labels), values.detach(), rtol=1e-9, atol=1e-12)
        seeds = objective.seeds(logits, labels)
        assert seeds.dtype == np.float32
        factor = (seeds * slopes.numpy()).sum(axis=1) / (slopes.numpy() ** 2).sum(axis=1)
        assert (factor > 0).all()
        np.testing.assert_allclose(seeds, factor[:, None] * slopes.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_no_scale_of_the_logits_empties_a_derivative(name: str) -> None:
    objective = OBJECTIVES[name]
    for scale in (1e-30, 1e-6, 1.0, 1e3, 1e30):
        logits, labels = logits_of(10, scale)
        with np.errstate(all="raise", under="ignore"):
            seeds, values = objective.seeds(logits, labels), objective.values(logits, labels)
        assert np.isfinite(seeds).all()
        assert np.isfinite(values).all()
        assert (np.abs(seeds).max(axis=1) > 0.05).all()


def test_a_confident_network_still_tells_better_from_worse() -> None:
    """Cross-entropy itself is zero in float32 for both rows."""
    logits = np.array([[4000, 0, 100, 0], [4000, 0, 101, 0]], np.float32)
    labels = np.zeros(2, np.int64)
    for objective in OBJECTIVES.values():
        if objective is not DLR:
            first, second = objective.values(logits, labels)
            assert second > first, objective.name
    assert not functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none").any()


@pytest.mark.parametrize("objective", [DLR, TEMPERED], ids=lambda objective: objective.name)
def test_dlr_and_tempered_do_not_see_scale_or_shift(objective) -> None:
    logits, labels = logits_of(10)
    moved = logits.astype(np.float64) * 1024 + 4096
    np.testing.assert_allclose(objective.values(moved, labels), objective.values(logits, labels), rtol=1e-9)


def test_equal_logits_are_no_division_by_zero() -> None:
    logits, labels = np.full((3, 6), 2.5, np.float32), np.array([0, 1, 5])
    with np.errstate(all="raise"):
        for objective in (*OBJECTIVES.values(), targeted_dlr(np.array([1, 0, 0]))):
            seeds = objective.seeds(logits, labels)
            assert np.isfinite(seeds).all()
            assert (seeds[np.arange(3), labels] < 0).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    """With two classes DLR is the margin; with three the third logit stands for the mean of third and fourth."""
    logits, labels = logits_of(classes)
    targets = targets_of(labels, classes)
    targeted = targeted_dlr(targets)
    rows = np.arange(COUNT)
    difference = logits[rows, targets].astype(float) - logits[rows, labels]
    if classes == 2:
        np.testing.assert_array_equal(DLR.values(logits, labels), MARGIN.values(logits, labels))
        np.testing.assert_array_equal(DLR.seeds(logits, labels), MARGIN.seeds(logits, labels))
        np.testing.assert_array_equal(targeted.values(logits, labels), difference)
        np.testing.assert_array_equal(targeted.seeds(logits, labels), logit_difference(logits, targets, labels))
    else:
        spread = np.ptp(logits.astype(float), axis=1)
        np.testing.assert_allclose(targeted.values(logits, labels), difference / spread)
        np.testing.assert_allclose(DLR.values(logits, labels), MARGIN.values(logits, labels) / spread)


def test_an_objective_with_targets_follows_its_images() -> None:
    logits, labels = logits_of(10)
    targeted = targeted_dlr(targets_of(labels, 10))
    chosen = np.arange(COUNT) % 3 == 0
    expected = targeted.values(logits, labels)[chosen]
    np.testing.assert_array_equal(targeted.of(chosen).values(logits[chosen], labels[chosen]), expected)
    assert CROSS_ENTROPY.of(chosen) is CROSS_ENTROPY
    with pytest.raises(ValueError, match="14 images, 40 targets"):
        targeted.values(logits[chosen], labels[chosen])
