"""Learning rate and radius over the steps of a phase."""

import dataclasses

import numpy as np
import pytest

from hardbit.train import Adversary, Phase
from hardbit.train.schedules import adversary_at, learning_rate_at


def test_learning_rate_schedules():
    one_cycle = Phase(1, Adversary("none", 0.0), learning_rate=1.0)
    rates = [learning_rate_at(one_cycle, step, 100) for step in range(101)]
    assert np.argmax(rates) == 25
    assert rates[25] == 1.0
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    cosine = dataclasses.replace(one_cycle, schedule="cosine")
    assert learning_rate_at(cosine, 50, 100) == pytest.approx(0.5)
    assert learning_rate_at(dataclasses.replace(one_cycle, schedule="constant"), 99, 100) == 1.0


def test_the_radius_grows_over_the_epochs_of_the_warm_up_and_stays():
    phase = Phase(5, Adversary("pgd", 8.0, steps=2), eps_warmup=2)
    radii = [adversary_at(phase, step, steps_per_epoch=10).eps_255 for step in range(50)]
    assert radii[0] == pytest.approx(8.0 / 20)
    assert radii[9] == pytest.approx(4.0)
    assert np.allclose(np.diff(radii[:20]), 8.0 / 20)
    assert set(radii[19:]) == {8.0}
    assert adversary_at(dataclasses.replace(phase, eps_warmup=0), 0, 10) is phase.adversary


@pytest.mark.parametrize("step_size", [None, 2.0])
def test_the_step_size_keeps_its_proportion_to_the_radius(step_size):
    adversary = Adversary("n-fgsm", 8.0, step_size_255=step_size)
    early = adversary_at(Phase(4, adversary, eps_warmup=2), step=4, steps_per_epoch=5)
    assert early.eps_255 == pytest.approx(4.0)
    assert early.step_255 / early.eps_255 == pytest.approx(adversary.step_255 / 8.0)
