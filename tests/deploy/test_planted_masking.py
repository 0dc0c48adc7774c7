"""Networks that hide their gradients on purpose: each trips an alarm, and the verdict on it is INCONCLUSIVE.

The classifier is linear and small, so that the sound one is truly as robust as PGD says, and everything planted stands
between it and its attacker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bundle_examples import build_bundle, smooth_images
from hardbit_deploy.attacks.corruptions import corrupt
from hardbit_deploy.engines import Target
from hardbit_deploy.engines.averaged import DRAWS
from hardbit_deploy.evaluate import evaluate
from hardbit_deploy.gate import Gate
from hardbit_deploy.suite import Suite
from hardbit_deploy.verdict import judge
from linear_examples import LinearEngine, LinearGradient

SHAPE = (1, 12, 12)
SUITE = Suite("custom", steps=8, restarts=2, losses=("cross_entropy", "margin"), square_queries=200)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Images with the labels that a linear classifier gives them, at an eps where about a third survives."""
    weights = np.random.default_rng(0).normal(size=(10, 144)).astype(np.float32)
    weights -= weights.mean(axis=1, keepdims=True)
    images = smooth_images(192, SHAPE)
    labels = LinearEngine(weights, SHAPE).activate().infer(images).argmax(axis=1)
    path = tmp_path_factory.mktemp("masked") / "b"
    threat_model = {"norm": "linf", "eps_255": 2.0}
    bundle = build_bundle(path, count=192, labels=labels, with_twin=False, threat_model=threat_model)
    return bundle, weights


def verdict_on(planted: Any, target: Target, suite: Suite = SUITE) -> tuple[str, dict[str, Any]]:
    """The verdict of a gate without rules, and the alarms that were raised, with their reasons."""
    evaluation = evaluate(planted[0], suite, workers=1, open_target=lambda _: target.activate())
    document = evaluation.to_document() | {
        "precision": {"status": "integer", "nodes": [], "problems": []},
        "environment": {"machine": "x86_64", "onnxruntime": None},
        "latency": None,
    }
    _, verdict = judge(document, evaluation.records, Gate())
    raised = {alarm["name"]: alarm["reason"] for alarm in evaluation.alarms if alarm["status"] == "alarm"}
    return verdict.name, raised


class Behind(LinearEngine):
    """The classifier behind a step that changes what it is shown."""

    def __init__(self, weights: NDArray[np.float32], step: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
        super().__init__(weights, SHAPE)
        self.step = step

    def infer_impl(self, images):
        return super().infer_impl(self.step(images))


class GradientBehind(LinearGradient):
    """Its true gradient: the step is flat wherever it has a derivative at all."""

    def __init__(self, weights, step):
        super().__init__(weights, SHAPE)
        self.step = step

    def logits_impl(self, images):
        return super().logits_impl(self.step(images))

    def pullback_impl(self, images, seeds):
        return np.zeros(images.shape, np.float32)


def sixteen_levels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.minimum((images.astype(np.int64) + 8) // 16 * 16, 255).astype(np.uint8)


def jpeg(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return corrupt(images, "jpeg", 1, 0, np.zeros(len(images), np.int64))


def test_a_sound_classifier_passes(planted):
    _, weights = planted
    target = Target(LinearEngine(weights, SHAPE), LinearGradient(weights, SHAPE))
    assert verdict_on(planted, target) == ("PASS", {})


@pytest.mark.parametrize("step", [sixteen_levels, jpeg])
def test_a_step_at_the_input_without_a_straight_through_path(planted, step):
    _, weights = planted
    verdict, raised = verdict_on(planted, Target(Behind(weights, step), GradientBehind(weights, step)))
    assert verdict == "INCONCLUSIVE"
    assert "gradients" in raised
    assert "all zero" in raised["gradients"]


@pytest.mark.parametrize("step", [sixteen_levels, jpeg])
def test_a_step_at_the_input_that_the_attack_graph_does_not_know(planted, step):
    """Its gradients are there and look sound: they are those of another network."""
    _, weights = planted
    verdict, raised = verdict_on(planted, Target(Behind(weights, step), LinearGradient(weights, SHAPE)))
    assert verdict == "INCONCLUSIVE"
    assert "parity" in raised


@pytest.mark.parametrize("scale", [1e3, 1e-6])
def test_saturated_logits(planted, scale):
    """Losses here have no scale and PGD is as strong as ever; still nobody knows what else such logits went through."""
    _, weights = planted
    scaled = (weights * scale).astype(np.float32)
    verdict, raised = verdict_on(planted, Target(LinearEngine(scaled, SHAPE), LinearGradient(scaled, SHAPE)))
    assert verdict == "INCONCLUSIVE"
    assert set(raised) == {"logits"}


def test_saturated_logits_under_a_loss_that_saturates(planted):
    """The textbook cross-entropy in float32, whose derivative is exactly zero where the network is very sure."""
    _, weights = planted
    scaled = weights * np.float32(1e3)

    class Textbook(LinearGradient):
        def gradient_impl(self, images, labels, engine_logits, loss):
            if loss == "margin":
                return super().gradient_impl(images, labels, engine_logits, loss)
            seeds = np.exp(engine_logits - engine_logits.max(axis=1, keepdims=True))
            seeds /= seeds.sum(axis=1, keepdims=True)
            seeds[np.arange(len(labels)), labels] -= 1
            return self.pullback_impl(images, seeds)

    verdict, raised = verdict_on(planted, Target(LinearEngine(scaled, SHAPE), Textbook(scaled, SHAPE)))
    assert verdict == "INCONCLUSIVE"
    assert {"gradients", "logits"} <= set(raised)


class Dice(LinearEngine):
    """Adds noise to the image, another one every time."""

    def __init__(self, weights: NDArray[np.float32], deviation_255: float, seed: int = 0) -> None:
        super().__init__(weights, SHAPE)
        self.deviation_255, self.dice = deviation_255, np.random.default_rng(seed)

    def infer_impl(self, images):
        noisy = np.rint(images + self.dice.normal(scale=self.deviation_255, size=images.shape))
        return super().infer_impl(np.clip(noisy, 0, 255).astype(np.uint8))


def test_a_stochastic_layer_is_attacked_along_averaged_gradients(planted):
    _, weights = planted
    gradient = LinearGradient(weights, SHAPE)
    verdict, raised = verdict_on(planted, Target(Dice(weights, 8.0), gradient))
    assert verdict == "INCONCLUSIVE"
    assert f"gradients are means of {DRAWS} draws" in raised["determinism"]


@pytest.mark.parametrize("queries", [0, 200])
def test_a_detached_branch(planted, queries):
    """Two branches are added up; the one that decides gives no gradient, and forward everything agrees."""
    _, weights = planted
    shown = 0.15 * np.random.default_rng(5).normal(size=weights.shape).astype(np.float32)
    shown -= shown.mean(axis=1, keepdims=True)

    class Detached(LinearGradient):
        def pullback_impl(self, images, seeds):
            return (seeds @ shown).reshape(images.shape).astype(np.float32)

    whole = weights + shown
    target = Target(LinearEngine(whole, SHAPE), Detached(whole, SHAPE))
    verdict, raised = verdict_on(planted, target, replace(SUITE, square_queries=queries))
    assert verdict == "INCONCLUSIVE"
    assert raised
    assert ("white_box_beats_black_box" in raised) == bool(queries)
    assert "parity" not in raised
