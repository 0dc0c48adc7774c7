"""What changes from step to step within a phase: the learning rate and the adversary's radius."""

from __future__ import annotations

import math
from dataclasses import replace

from hardbit.train.plan import Adversary, Phase

__all__ = ["adversary_at", "learning_rate_at"]


def learning_rate_at(phase: Phase, step: int, steps: int) -> float:
    """Learning rate at `step` of `steps` in the phase.

    one-cycle: linear to the peak over the first quarter, then a half cosine to zero (Smith & Topin 2019); cosine: the
    half cosine alone (Loshchilov & Hutter 2017, without restarts); constant.
    """
    if phase.schedule == "constant":
        return phase.learning_rate
    position = step / max(1, steps)
    if phase.schedule == "one-cycle":
        if position < 0.25:
            return phase.learning_rate * (0.04 + 0.96 * position / 0.25)
        position = (position - 0.25) / 0.75
    return phase.learning_rate * 0.5 * (1 + math.cos(math.pi * position))


def adversary_at(phase: Phase, step: int, steps_per_epoch: int) -> Adversary:
    """The phase's adversary at `step` of the phase: radius and step size grow linearly over the epochs of
    `eps_warmup`."""
    ramp = min(1.0, (step + 1) / (phase.eps_warmup * steps_per_epoch)) if phase.eps_warmup else 1.0
    adversary = phase.adversary
    if ramp == 1.0:
        return adversary
    step_size = adversary.step_size_255
    return replace(
        adversary, eps_255=adversary.eps_255 * ramp, step_size_255=None if step_size is None else step_size * ramp
    )
