"""A linear classifier as engine and gradient, in numpy: attacks on it have a closed form, faults are easily planted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.engines import Engine, Gradient, Target


class LinearEngine(Engine):
    """logits = weights (classes, values) . (pixels - 128) / 256 + bias; remembers every batch it was given."""

    runtime = "numpy"

    def __init__(self, weights: NDArray[np.float32], input_shape: tuple[int, int, int], bias: float | NDArray = 0.0):
        super().__init__(input_shape, len(weights))
        self.weights = weights.astype(np.float32)
        self.bias = np.asarray(bias, np.float32)
        self.seen: list[NDArray[np.uint8]] = []

    def activate_impl(self) -> None: ...

    def deactivate_impl(self) -> None: ...

    def infer_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.seen.append(images.copy())
        return linear_logits(self.weights, images, self.bias)


class LinearGradient(Gradient):
    """The exact input gradient of the same classifier, losses as in an attack graph."""

    def __init__(self, weights: NDArray[np.float32], input_shape: tuple[int, int, int]):
        super().__init__(input_shape, len(weights))
        self.weights = weights.astype(np.float32)
        self.calls: list[int] = []

    def activate_impl(self) -> None: ...

    def deactivate_impl(self) -> None: ...

    def logits_impl(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return linear_logits(self.weights, images)

    def gradient_impl(self, images, labels, engine_logits, loss) -> NDArray[np.float32]:
        rows = np.arange(len(labels))
        others = engine_logits.copy()
        others[rows, labels] = -np.inf
        if loss == "margin":
            seed = np.eye(self.classes, dtype=np.float32)[others.argmax(axis=1)]
        else:
            seed = np.exp(others - others.max(axis=1, keepdims=True))
            seed /= seed.sum(axis=1, keepdims=True)
        seed[rows, labels] = -1
        return self.pullback_impl(images, seed)

    def pullback_impl(self, images, seeds) -> NDArray[np.float32]:
        self.calls.append(len(images))
        return (seeds @ self.weights).reshape(images.shape).astype(np.float32)


def linear_logits(
    weights: NDArray[np.float32], images: NDArray[np.uint8], bias: float | NDArray = 0.0
) -> NDArray[np.float32]:
    # One row at a time: BLAS may sum a batch in another order than a single row.
    pixels = (images.reshape(len(images), -1).astype(np.float32) - 128) / 256
    return np.stack([weights @ row for row in pixels]) + np.float32(bias)


def linear_target(
    classes: int = 10, input_shape: tuple[int, int, int] = (1, 12, 12), seed: int = 0, scale: float = 1.0
) -> Target:
    """An active target with normal weights."""
    weights = np.random.default_rng(seed).normal(size=(classes, int(np.prod(input_shape)))).astype(np.float32) * scale
    return Target(LinearEngine(weights, input_shape), LinearGradient(weights, input_shape)).activate()
