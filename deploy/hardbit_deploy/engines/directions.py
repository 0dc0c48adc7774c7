"""An attack graph beside one whose backward pass runs in integers: exact gradients, and directions in less time.

The second gives the logits of the first to the bit, and gradients that point nearly the same way (see
`hardbit.graph.gradient.integer_cotangents`). It serves whoever needs logits alone, and PGD, which takes logits and the
signs of a gradient in one run. Everything that measures, weighs or seeds a gradient is given the exact one.

Boundary: chooses between two; knows no runtime.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.engines.base import Gradient

__all__ = ["GradientWithDirections"]


class GradientWithDirections(Gradient):
    """`exact` and `integer` are attack graphs of the same network, not yet active."""

    def __init__(self, exact: Gradient, integer: Gradient) -> None:
        super().__init__(exact.input_shape, exact.classes)
        self._exact, self._integer = exact, integer

    def activate_impl(self) -> None:
        self._exact.activate()
        self._integer.activate()

    def deactivate_impl(self) -> None:
        self._exact.deactivate()
        self._integer.deactivate()

    def gradient_impl(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        engine_logits: NDArray[np.float32],
        loss: str,
    ) -> NDArray[np.float32]:
        return self._exact.gradient(images, labels, engine_logits, loss)

    def pullback_impl(self, images: NDArray[np.uint8], seeds: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._exact.pullback(images, seeds)

    def ascend_impl(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], loss: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """In integers; an image whose cotangents were too small for that, so that nothing is left, is asked again."""
        logits, direction = self._integer.ascend(images, labels, loss)
        lost = ~direction.reshape(len(images), -1).any(axis=1)
        if lost.any():
            direction[lost] = self._exact.gradient(images[lost], labels[lost], logits[lost], loss)
        return logits, direction

    def logits_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._integer.logits(images)
