"""Gradients of a network that rolls dice: the mean over several draws (expectation over transformation, Athalye et al.
2018).

A direction at one draw is the direction of that draw. Logits are drawn from the engine anew for every sample, and the
attack graph is run anew, for either may roll. The first sample is at the logits that the caller saw.

Boundary: averages directions; what the engine says of an image on a single draw still decides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.engines.base import Engine, Gradient, Target

__all__ = ["DRAWS", "AveragedGradient", "averaged"]

DRAWS = 20


class AveragedGradient(Gradient):
    """The mean over `DRAWS` draws of what `gradient` gives at logits of `engine`; both are opened by their owner."""

    def __init__(self, gradient: Gradient, engine: Engine) -> None:
        super().__init__(gradient.input_shape, gradient.classes)
        self._gradient, self._engine = gradient, engine

    def activate_impl(self) -> None:
        self._gradient.activate()

    def deactivate_impl(self) -> None:
        self._gradient.deactivate()

    def gradient_impl(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        engine_logits: NDArray[np.float32],
        loss: str,
    ) -> NDArray[np.float32]:
        total = self._gradient.gradient(images, labels, engine_logits, loss)
        for _ in range(DRAWS - 1):
            total += self._gradient.gradient(images, labels, self._engine.infer(images), loss)
        return total / np.float32(DRAWS)

    def pullback_impl(self, images: NDArray[np.uint8], seeds: NDArray[np.float32]) -> NDArray[np.float32]:
        total = self._gradient.pullback(images, seeds)
        for _ in range(DRAWS - 1):
            total += self._gradient.pullback(images, seeds)
        return total / np.float32(DRAWS)

    def logits_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._gradient.logits(images)


def averaged(target: Target) -> Target:
    """The same target with averaged gradients."""
    smooth = None if target.smooth is None else AveragedGradient(target.smooth, target.engine)
    return Target(target.engine, AveragedGradient(target.gradient, target.engine), smooth).activate()
