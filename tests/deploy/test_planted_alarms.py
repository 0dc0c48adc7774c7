"""Whole evaluations of planted faults: each trips the alarm that is there for it, and a sound classifier trips none."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from bundle_examples import build_bundle, smooth_images
from hardbit_deploy import chunk_attacks
from hardbit_deploy.attacks import pgd
from hardbit_deploy.engines import Target
from hardbit_deploy.evaluate import evaluate
from hardbit_deploy.suite import Suite
from linear_examples import LinearEngine, LinearGradient

SHAPE = (1, 12, 12)
SUITE = Suite("custom", steps=5, restarts=2, losses=("cross_entropy", "margin"), chunk=16)


class TestPlantedFaults:
    """A sound linear classifier trips nothing; each fault trips the alarm that is there for it."""

    @pytest.fixture(scope="class")
    def fashioned(self, tmp_path_factory):
        """Images with the labels that a linear classifier gives them, at an eps where about a third survives."""
        weights = np.random.default_rng(0).normal(size=(10, 144)).astype(np.float32)
        weights -= weights.mean(axis=1, keepdims=True)
        images = smooth_images(256, SHAPE)
        labels = LinearEngine(weights, SHAPE).activate().infer(images).argmax(axis=1)
        path = tmp_path_factory.mktemp("planted") / "b"
        threat_model = {"norm": "linf", "eps_255": 2.0}
        bundle = build_bundle(path, count=256, labels=labels, with_twin=False, threat_model=threat_model)
        return bundle, weights

    def raised(self, fashioned, make, suite=SUITE) -> set[str]:
        bundle, weights = fashioned
        evaluation = evaluate(bundle, suite, workers=1, open_target=lambda _: make(weights).activate())
        return {alarm["name"] for alarm in evaluation.alarms if alarm["status"] == "alarm"}

    def test_a_sound_classifier_trips_nothing(self, fashioned):
        assert self.raised(fashioned, lambda w: Target(LinearEngine(w, SHAPE), LinearGradient(w, SHAPE))) == set()

    def test_masked_gradients(self, fashioned):
        class Masked(LinearGradient):
            def pullback_impl(self, images, seeds):
                gradient = super().pullback_impl(images, seeds)
                gradient[images[:, 0, 0, 0] % 8 == 0] = 0
                return gradient

        raised = self.raised(fashioned, lambda w: Target(LinearEngine(w, SHAPE), Masked(w, SHAPE)))
        assert "gradients" in raised

    def test_gradients_that_are_not_numbers_for_one_loss_only(self, fashioned):
        class Overflowing(LinearGradient):
            def gradient_impl(self, images, labels, engine_logits, loss):
                gradient = super().gradient_impl(images, labels, engine_logits, loss)
                return gradient * np.float32(np.nan) if loss == "margin" else gradient

        assert "gradients" in self.raised(fashioned, lambda w: Target(LinearEngine(w, SHAPE), Overflowing(w, SHAPE)))

    def masked(self, fashioned, queries: int):
        """A network that rounds its pixels; its gradients are true: nothing but where a pixel is about to jump."""
        bundle, weights = fashioned

        def rounded(images):
            return np.minimum((images.astype(np.int64) + 4) // 8 * 8, 255).astype(np.uint8)

        class HardRounding(LinearEngine):
            def infer_impl(self, images):
                return super().infer_impl(rounded(images))

        class Derivative(LinearGradient):
            def logits_impl(self, images):
                return super().logits_impl(rounded(images))

            def pullback_impl(self, images, seeds):
                at_an_edge = np.isin(images % 8, (3, 4))
                return super().pullback_impl(images, seeds) * at_an_edge

        target = Target(HardRounding(weights, SHAPE), Derivative(weights, SHAPE)).activate()
        evaluation = evaluate(bundle, replace(SUITE, square_queries=queries), workers=1, open_target=lambda _: target)
        rates = {row["name"]: row["rate"] for row in evaluation.attacks}
        return rates, {alarm["name"]: alarm for alarm in evaluation.alarms}

    def test_hard_rounding_hides_from_gradients_what_square_finds(self, fashioned):
        rates, alarms = self.masked(fashioned, queries=500)
        assert rates["square-500"] + 0.15 < min(rate for name, rate in rates.items() if name.startswith("pgd"))
        assert rates["worst_case"] <= rates["square-500"]
        assert alarms["white_box_beats_black_box"]["status"] == "alarm"
        assert alarms["white_box_beats_black_box"]["value"] > 0.15
        assert alarms["parity"]["status"] == alarms["gradients"]["status"] == "pass"

    def test_a_search_that_would_find_more_with_more_queries_says_so(self, fashioned):
        _, alarms = self.masked(fashioned, queries=30)
        assert alarms["converged"]["status"] == "alarm"
        more = int(re.search(r"twice the queries (\d+) of 128", alarms["converged"]["reason"])[1])
        assert alarms["converged"]["value"] == more / 128 > 0.02

    def test_where_nothing_is_masked_square_comes_near_pgd_and_finds_nothing_else(self, fashioned):
        bundle, weights = fashioned
        target = Target(LinearEngine(weights, SHAPE), LinearGradient(weights, SHAPE)).activate()
        suite = replace(SUITE, square_queries=1500)
        evaluation = evaluate(bundle, suite, workers=1, open_target=lambda _: target)
        rates = {row["name"]: row["rate"] for row in evaluation.attacks}
        assert rates["pgd-5 margin"] <= rates["square-1500"] < rates["pgd-5 margin"] + 0.08
        alarms = {alarm["name"]: alarm for alarm in evaluation.alarms}
        assert alarms["white_box_beats_black_box"]["status"] == "pass"
        made = evaluation.records["queries/square-1500"]
        assert (made[evaluation.records["survived/square-1500"]] == 1500).all()
        assert evaluation.attacks[-2]["settings"]["queries_made"] == made.sum()

    @pytest.mark.filterwarnings("ignore:invalid value")
    @pytest.mark.parametrize("broken", [np.nan, np.inf])
    def test_an_engine_that_breaks_down_under_attack_is_not_robust(self, fashioned, broken):
        """Right on every image of the bundle; elsewhere the label's logit is no number, which argmax takes for most."""
        bundle, weights = fashioned
        known = {image.tobytes() for image in bundle.images}

        class Brittle(LinearEngine):
            def infer_impl(self, images):
                logits = super().infer_impl(images)
                made = np.flatnonzero([image.tobytes() not in known for image in images])
                logits[made, logits[made].argmax(axis=1)] = broken
                return logits

        target = Target(Brittle(weights, SHAPE), LinearGradient(weights, SHAPE))
        evaluation = evaluate(bundle, SUITE, workers=1, open_target=lambda _: target.activate())
        rates = {row["name"]: row["rate"] for row in evaluation.attacks}
        assert (rates["clean"], rates["worst_case"]) == (1.0, 0.0)

    def test_an_engine_that_is_wrong_on_a_whole_chunk_is_judged_in_l2_too(self, tmp_path):
        bundle = build_bundle(tmp_path / "b", count=24)
        wrong = (np.array(bundle.labels) + 1) % 10
        bundle = build_bundle(tmp_path / "w", count=24, labels=wrong, threat_model={"norm": "l2", "eps_255": 20.0})
        assert evaluate(bundle, SUITE, workers=1).attacks[-1]["survivors"] == 0

    def test_an_engine_that_rolls_dice(self, fashioned):
        class Noisy(LinearEngine):
            noise = np.random.default_rng(0)

            def infer_impl(self, images):
                return super().infer_impl(images) + self.noise.normal(size=(len(images), 10)).astype(np.float32)

        assert "determinism" in self.raised(fashioned, lambda w: Target(Noisy(w, SHAPE), LinearGradient(w, SHAPE)))

    def test_an_engine_whose_answer_depends_on_the_batch(self, fashioned):
        class Coupled(LinearEngine):
            def infer_impl(self, images):
                return np.roll(super().infer_impl(images), len(images) > 1, axis=1)

        def coupled(weights):
            return Target(Coupled(np.roll(weights, -1, axis=0), SHAPE), LinearGradient(weights, SHAPE))

        assert "determinism" in self.raised(fashioned, coupled)

    def test_probabilities_instead_of_logits(self, fashioned):
        class Softmax(LinearEngine):
            def infer_impl(self, images):
                logits = super().infer_impl(images)
                exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
                return exponentials / exponentials.sum(axis=1, keepdims=True)

        assert self.raised(fashioned, lambda w: Target(Softmax(w, SHAPE), LinearGradient(w, SHAPE))) == {"logits"}

    def test_an_attack_graph_of_another_network(self, fashioned):
        def foreign(weights):
            other = np.random.default_rng(7).normal(size=weights.shape)
            return Target(LinearEngine(weights, SHAPE), LinearGradient(other, SHAPE))

        assert "parity" in self.raised(fashioned, foreign)

    def test_directions_that_are_right_only_at_the_image_itself(self, fashioned):
        images = fashioned[0].images
        known = {image.tobytes() for image in images}

        class Misleading(LinearGradient):
            def pullback_impl(self, images, seeds):
                gradient = super().pullback_impl(images, seeds)
                wrong = np.array([image.tobytes() not in known for image in images])
                gradient[wrong] *= -1
                return gradient

        raised = self.raised(fashioned, lambda w: Target(LinearEngine(w, SHAPE), Misleading(w, SHAPE)))
        assert {"iterative_beats_one_step", "eps_curve"} <= raised

    def test_an_attack_that_needs_more_steps_than_it_has(self, fashioned):
        class Slow(LinearGradient):
            """Shows one pixel in eight at a time."""

            def pullback_impl(self, images, seeds):
                gradient = super().pullback_impl(images, seeds)
                shown = np.arange(144).reshape(SHAPE) % 8 == len(self.calls) % 8
                return gradient * shown

        raised = self.raised(
            fashioned, lambda w: Target(LinearEngine(w, SHAPE), Slow(w, SHAPE)), replace(SUITE, steps=2, restarts=1)
        )
        assert "converged" in raised

    def test_an_attack_that_leaves_the_ball(self, fashioned, monkeypatch):
        def cheating(engine, gradient, images, labels, threat_model, **settings):
            return pgd(engine, gradient, images, labels, threat_model.at(threat_model.eps_255 + 1), **settings)

        monkeypatch.setattr(chunk_attacks, "pgd", cheating)
        raised = self.raised(fashioned, lambda w: Target(LinearEngine(w, SHAPE), LinearGradient(w, SHAPE)))
        assert raised == {"feasible"}
