"""An adversarial image is planted beside every clean one, and the harness has to find it.

The test of Zimmermann, Brendel, Tramer and Carlini (2022, "Increasing confidence in adversarial robustness
evaluations"): on the features of a network, a readout is fitted that tells points inside of a small ball from one point
at the end of the large one. By construction every image can be fooled; an attack that does not is too weak, or is kept
from its gradients.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bundle_examples import build_bundle
from hardbit_deploy.engines import Engine, Gradient, Target
from hardbit_deploy.evaluate import evaluate
from hardbit_deploy.suite import Suite

SHAPE, VALUES, FEATURES = (1, 12, 12), 144, 96
IMAGES, EPS_255 = 60, 12
INNER_POINTS, INNER_SHARE = 150, 0.5  # what is told apart from the planted point lies in a ball half as large
SUITE = Suite("custom", steps=20, restarts=2, losses=("cross_entropy", "margin"))


class Planted:
    """Features relu(W x), and for every clean image a readout of them that one neighbour of it turns round."""

    def __init__(self, images: NDArray[np.uint8], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.clean = images.reshape(len(images), -1).astype(np.int64)
        self.weights = (self.rng.normal(size=(FEATURES, VALUES)) / 12).astype(np.float32)
        self.readout = np.stack([self._fitted(image) for image in self.clean]).astype(np.float32)

    def hidden(self, pixels: NDArray[np.int64]) -> NDArray[np.float32]:
        return ((pixels - 128) / 256).astype(np.float32) @ self.weights.T

    def features(self, pixels: NDArray[np.int64]) -> NDArray[np.float32]:
        active = np.maximum(self.hidden(pixels), 0)
        return np.concatenate([active, np.ones((len(pixels), 1), np.float32)], axis=1)

    def _fitted(self, image: NDArray[np.int64]) -> NDArray[np.float64]:
        """A plane between the features of inner points and those of the planted one; it rises towards the latter."""
        reach = int(INNER_SHARE * EPS_255)
        inner = image + self.rng.integers(-reach, reach + 1, (INNER_POINTS, VALUES))
        inner = np.concatenate([image[None], np.clip(inner, 0, 255)])
        outer = np.clip(image + EPS_255 * self.rng.choice([-1, 1], VALUES), 0, 255)
        low, high = (
            self.features(inner)[:, :-1].astype(np.float64),
            self.features(outer[None])[0, :-1].astype(np.float64),
        )
        spread = np.cov(low.T) + 1e-3 * np.eye(FEATURES)
        normal = np.linalg.solve(spread, high - low.mean(axis=0))
        most = (low @ normal).max()
        assert most < high @ normal
        edge = 0.1 * most + 0.9 * (high @ normal)  # next to the planted point: little else is beyond
        return np.append(normal, -edge) / np.abs(normal).max()

    def nearest(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Whose ball each image lies in."""
        flat = images.reshape(len(images), -1).astype(np.int64)
        return np.array([np.abs(self.clean - row).max(axis=1).argmin() for row in flat], np.int64)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        flat = images.reshape(len(images), -1).astype(np.int64)
        beyond = np.einsum("nf,nf->n", self.features(flat), self.readout[self.nearest(images)])
        return np.stack([-beyond, beyond], axis=1).astype(np.float32)

    def pullback(self, images: NDArray[np.uint8], seeds: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = images.reshape(len(images), -1).astype(np.int64)
        rises = (seeds[:, 1] - seeds[:, 0])[:, None] * self.readout[self.nearest(images)][:, :-1]
        return ((rises * (self.hidden(flat) > 0)) @ self.weights).reshape(images.shape).astype(np.float32)


class _Part:
    def __init__(self, planted: Planted) -> None:
        super().__init__(SHAPE, 2)  # type: ignore[call-arg]
        self.planted = planted

    def activate_impl(self) -> None: ...

    def deactivate_impl(self) -> None: ...


class PlantedEngine(_Part, Engine):
    runtime = "numpy"

    def infer_impl(self, images):
        return self.planted.logits(images)


class PlantedGradient(_Part, Gradient):
    def logits_impl(self, images):
        return self.planted.logits(images)

    def pullback_impl(self, images, seeds):
        return self.planted.pullback(images, seeds)

    def gradient_impl(self, images, labels, engine_logits, loss):
        rows = np.arange(len(labels))
        seeds = np.ones((len(labels), 2), np.float32)
        seeds[rows, labels] = -1
        return self.pullback_impl(images, seeds)


class Masked(PlantedGradient):
    """Its signs are right in one pixel of nine, and elsewhere there is nothing."""

    def pullback_impl(self, images, seeds):
        return super().pullback_impl(images, seeds) * (np.arange(VALUES).reshape(SHAPE) % 9 == 0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    path = tmp_path_factory.mktemp("neighbours") / "b"
    labels = np.zeros(IMAGES, np.int64)
    threat_model = {"norm": "linf", "eps_255": EPS_255}
    bundle = build_bundle(path, count=IMAGES, labels=labels, with_twin=False, threat_model=threat_model)
    return bundle, Planted(np.array(bundle.images))


def evaluated(planted, gradient: type[PlantedGradient]):
    bundle, network = planted
    target = Target(PlantedEngine(network), gradient(network))
    found = evaluate(bundle, SUITE, workers=1, open_target=lambda _: target.activate())
    return {row["name"]: row["survivors"] for row in found.attacks}


def test_it_is_found_in_nearly_every_case(planted):
    survivors = evaluated(planted, PlantedGradient)
    assert survivors["clean"] == IMAGES
    assert survivors["worst_case"] <= 0.05 * IMAGES


def test_it_cannot_be_come_upon_by_chance_nor_where_gradients_are_masked(planted):
    """Without this the test above could not fail."""
    bundle, network = planted
    rng = np.random.default_rng(0)
    images = np.array(bundle.images).astype(np.int64)
    for _ in range(20):
        moved = np.clip(images + rng.integers(-EPS_255, EPS_255 + 1, images.shape), 0, 255).astype(np.uint8)
        assert (network.logits(moved).argmax(axis=1) == 0).mean() > 0.9
    assert evaluated(planted, Masked)["worst_case"] > 0.5 * IMAGES
