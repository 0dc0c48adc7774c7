"""Losses against their formulas in numpy and float64."""

import numpy as np
import pytest
import torch

from hardbit.train import losses

RNG = np.random.default_rng(0)
CLEAN, ADVERSARIAL, TEACHER = (RNG.normal(0, 3, (7, 5)) for _ in range(3))
LABELS = RNG.integers(0, 5, 7)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * (np.log(p) - np.log(q))).sum(1).mean())


def cross_entropy(logits: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(7), LABELS]).mean())


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array).requires_grad_(array.dtype == np.float64) for array in arrays]


def test_cross_entropy_is_of_the_adversarial_images():
    found = losses.cross_entropy(*tensors(ADVERSARIAL, LABELS))
    assert found.item() == pytest.approx(cross_entropy(ADVERSARIAL))


@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_trades_is_clean_cross_entropy_and_beta_times_the_divergence(beta):
    clean, adversarial, labels = tensors(CLEAN, ADVERSARIAL, LABELS)
    found = losses.trades(clean, adversarial, labels, beta)
    expected = cross_entropy(CLEAN) + beta * kl(softmax(CLEAN), softmax(ADVERSARIAL))
    assert found.item() == pytest.approx(expected)
    found.backward()
    alone = cross_entropy_gradient()
    assert not torch.allclose(clean.grad, alone), "the divergence pulls at the clean prediction too"
    assert adversarial.grad.abs().sum() > 0


def cross_entropy_gradient() -> torch.Tensor:
    return torch.from_numpy((softmax(CLEAN) - np.eye(5)[LABELS]) / 7)


def test_distillation_draws_both_predictions_to_the_teacher():
    clean, adversarial = tensors(CLEAN, ADVERSARIAL)
    found = losses.distillation(clean, adversarial, torch.from_numpy(TEACHER))
    soft = softmax(TEACHER)
    expected = 5 / 6 * kl(soft, softmax(ADVERSARIAL)) + 1 / 6 * kl(soft, softmax(CLEAN))
    assert found.item() == pytest.approx(expected)
    found.backward()
    assert torch.allclose(adversarial.grad, torch.from_numpy(5 / 6 * (softmax(ADVERSARIAL) - soft) / 7))
    assert torch.allclose(clean.grad, torch.from_numpy(1 / 6 * (softmax(CLEAN) - soft) / 7))


def test_a_pupil_that_says_what_its_teacher_says_has_no_loss():
    teacher = torch.from_numpy(TEACHER)
    assert losses.distillation(teacher, teacher, teacher).item() == pytest.approx(0.0, abs=1e-12)
