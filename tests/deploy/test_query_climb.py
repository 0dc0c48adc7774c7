"""SPSA, NES and random points: estimates against true gradients, closed forms on linear classifiers, and the books."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardbit_deploy.attacks import ThreatModel, margins
from hardbit_deploy.attacks.nes import gaussian, nes
from hardbit_deploy.attacks.query_climb import estimated_direction, probe_size_255, queries_of_climb
from hardbit_deploy.attacks.random_search import random_search
from hardbit_deploy.attacks.random_start import random_end
from hardbit_deploy.attacks.spsa import signs, spsa
from hardbit_deploy.engines import Target
from linear_examples import LinearEngine, linear_logits, linear_target

SHAPE = (2, 8, 9)
ATTACKS = {
    "spsa": lambda *given, **options: spsa(*given, steps=10, samples=8, **options),
    "nes": lambda *given, **options: nes(*given, steps=10, samples=8, **options),
    "random": lambda *given, **options: random_search(*given, points=40, **options),
}
QUERIES = {"spsa": queries_of_climb(10, 8), "nes": queries_of_climb(10, 8), "random": 40}
RADII = {"linf": 6.0, "l2": 40.5}


def images_of(count: int, seed: int = 0, shape=SHAPE, low: int = 0, high: int = 256):
    return np.random.default_rng(seed).integers(low, high, (count, *shape)).astype(np.uint8)


def labels_of(target: Target, images):
    return target.engine.infer(images).argmax(axis=1)


def length(adversarial, images, norm: str):
    delta = (adversarial.astype(np.int64) - images.astype(np.int64)).reshape(len(images), -1)
    return np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))


def cosine(first, second):
    first, second = first.reshape(-1).astype(np.float64), second.reshape(-1).astype(np.float64)
    return first @ second / (np.linalg.norm(first) * np.linalg.norm(second))


class TestEstimates:
    """A direction estimated from k random offsets in d dimensions has a cosine of about sqrt(k / (k + d))."""

    @pytest.mark.parametrize("draw", [signs, gaussian])
    @pytest.mark.parametrize("samples", [16, 144, 1500])
    def test_of_a_linear_classifier(self, draw, samples):
        target = linear_target(classes=2, input_shape=SHAPE, seed=1)
        truth = target.engine.weights[1] - target.engine.weights[0]
        image = images_of(1, low=64, high=192)[0]
        expected = math.sqrt(samples / (samples + 144))
        found = [
            cosine(estimated_direction(target.engine, image, np.int64(0), draw(generator, (samples, 144), 3.0)), truth)
            for generator in (np.random.default_rng(seed) for seed in range(8))
        ]
        assert abs(np.mean(found) - expected) < 0.07

    @pytest.mark.parametrize("draw", [signs, gaussian])
    def test_of_a_curved_one_is_the_gradient_there(self, draw):
        """A hidden layer of tanh: its gradient in float64 at the very image."""
        rng = np.random.default_rng(3)
        inner, outer = rng.normal(size=(6, 144)) / 6, rng.normal(size=(2, 6))

        class Curved(LinearEngine):
            def infer_impl(self, images):
                pixels = (images.reshape(len(images), -1).astype(np.float64) - 128) / 256
                return (np.tanh(pixels @ inner.T) @ outer.T).astype(np.float32)

        image = images_of(1, low=64, high=192)[0]
        hidden = inner @ ((image.reshape(-1) - 128.0) / 256)
        truth = (outer[1] - outer[0]) * (1 - np.tanh(hidden) ** 2) @ inner
        engine = Curved(np.zeros((2, 144), np.float32), SHAPE).activate()
        offsets = draw(np.random.default_rng(0), (3000, 144), 3.0)
        assert cosine(estimated_direction(engine, image, np.int64(0), offsets), truth) > 0.95

    @pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
    def test_are_free_of_the_logits_scale(self, scale):
        image, offsets = images_of(1)[0], signs(np.random.default_rng(0), (20, 144), 3.0)
        usual, scaled = (
            estimated_direction(linear_target(2, SHAPE, seed=1, scale=s).engine, image, np.int64(0), offsets)
            for s in (1.0, scale)
        )
        np.testing.assert_allclose(scaled, usual, rtol=1e-4, atol=1e-3)

    def test_what_says_nothing_is_zero(self):
        image, offsets = images_of(1)[0], signs(np.random.default_rng(0), (20, 144), 3.0)
        for weights in (np.zeros((2, 144)), np.full((2, 144), np.nan)):
            engine = LinearEngine(weights.astype(np.float32), SHAPE).activate()
            assert not estimated_direction(engine, image, np.int64(0), offsets).any()

    def test_offsets_are_what_they_are_named_after(self):
        drawn = signs(np.random.default_rng(0), (500, 33), 3.4)
        assert set(np.unique(drawn)) == {-3, 3}
        assert np.abs(drawn.mean(axis=0)).max() < 5 * 3 / math.sqrt(500)
        normal = gaussian(np.random.default_rng(0), (500, 33), 3.4)
        assert normal.dtype == np.int16
        assert abs(normal.std() / math.hypot(3.4, math.sqrt(1 / 12)) - 1) < 0.02

    def test_probes_are_of_the_size_of_the_ball_and_of_two_grey_levels_at_least(self):
        assert probe_size_255(ThreatModel("linf", 25.0), 784) == 12.5
        assert probe_size_255(ThreatModel("linf", 1.0), 784) == 2
        assert probe_size_255(ThreatModel("l2", 382.5), 900) == 12.75
        assert probe_size_255(ThreatModel("l2", 1e6), 900) == 255
        target = linear_target(classes=2, input_shape=SHAPE)
        target.engine.bias = np.array([1000, 0], np.float32)
        image = images_of(1, low=100, high=156)
        for attack in (spsa, nes):
            target.engine.seen.clear()
            attack(target.engine, image, np.zeros(1, np.int64), ThreatModel("l2", 120.0), steps=1, samples=64)
            (probes,) = (batch for batch in target.engine.seen if len(batch) == 128)
            lengths = length(probes, np.repeat(image, 128, axis=0), "l2")
            assert np.abs(lengths / 120 - 1).mean() < 0.1


class TestLinearClassifiers:
    """Away from the ends of bytes the worst margin in a ball is margin - eps times the weights' dual norm."""

    def gained(self, attack, norm: str, eps: float, **options):
        target = linear_target(classes=2, input_shape=(1, 6, 6), seed=1)
        target.engine.bias = np.array([1000, 0], np.float32)  # nobody falls: the search runs to its end
        images = images_of(6, shape=(1, 6, 6), low=100, high=156)
        labels = np.zeros(6, np.int64)
        outcome = attack(target.engine, images, labels, ThreatModel(norm, eps), **options)
        assert outcome.survived.all()
        weights = (target.engine.weights[0] - target.engine.weights[1]).astype(np.float64)
        best = eps / 256 * (np.abs(weights).sum() if norm == "linf" else np.linalg.norm(weights))
        return (margins(target.engine.infer(images), labels) - outcome.margin) / best

    @pytest.mark.parametrize("attack", [spsa, nes])
    @pytest.mark.parametrize(("norm", "eps", "least"), [("linf", 7.0, 0.95), ("l2", 60.0, 0.93)])
    def test_climbs_come_near_the_closed_form(self, attack, norm, eps, least):
        gained = self.gained(attack, norm, eps, steps=40, samples=64)
        assert gained.max() <= 1 + 1e-5
        assert gained.min() > least

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_random_points_are_far_from_it(self, norm):
        gained = self.gained(random_search, norm, 30.0, points=100)
        assert gained.min() > 0.1
        assert gained.max() < 0.7

    @pytest.mark.parametrize("attack", [spsa, nes])
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_falls_where_the_robust_radius_says(self, attack, norm):
        target = linear_target(classes=2, input_shape=(1, 6, 6), seed=1)
        images = images_of(12, shape=(1, 6, 6), low=100, high=156)
        labels = labels_of(target, images)
        weights = (target.engine.weights[0] - target.engine.weights[1]).astype(np.float64)
        dual = np.abs(weights).sum() if norm == "linf" else np.linalg.norm(weights)
        radius = 256 * margins(target.engine.infer(images), labels) / dual
        for row in range(12):
            outside = ThreatModel(norm, max(radius[row] * 1.15, math.ceil(radius[row]) + 1))
            one = np.s_[row : row + 1]
            assert not attack(target.engine, images[one], labels[one], outside, steps=40).survived[0]
            inside = ThreatModel(norm, radius[row] * 0.999)
            assert attack(target.engine, images[one], labels[one], inside, steps=5).survived[0]


class TestRandomPoints:
    def test_alternate_between_the_ball_and_its_end(self):
        target = linear_target(classes=2, input_shape=SHAPE)
        target.engine.bias = np.array([1000, 0], np.float32)
        images = images_of(3, low=100, high=156)
        for norm, eps in RADII.items():
            target.engine.seen.clear()
            random_search(target.engine, images, np.zeros(3, np.int64), ThreatModel(norm, eps), points=6)
            inner, ends = target.engine.seen[::2], target.engine.seen[1::2]
            assert len(inner) == len(ends) == 3
            for batch in ends:
                delta = np.abs(batch.astype(int) - images)
                assert (delta == 6).all() if norm == "linf" else (length(batch, images, norm) > eps - 1.5).all()
            if norm == "linf":
                assert all(len(np.unique(np.abs(batch.astype(int) - images))) == 7 for batch in inner)

    def test_corners_are_all_alike_likely(self):
        images = np.full((2000, 1, 3, 3), 128, np.uint8)
        ends = random_end(images, ThreatModel("linf", 5.0), seed=0, stream=9, indices=np.arange(2000))
        assert set(np.unique(ends)) == {123, 133}
        assert np.abs((ends == 133).mean(axis=0) - 0.5).max() < 0.06


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
class TestTheBooks:
    def attacked(self, name, norm, rows=slice(None), flight=None, seed=3):
        target = linear_target(classes=4, input_shape=SHAPE, seed=6)
        images = images_of(40, seed=6)
        labels = labels_of(target, images)
        target.engine.images_in_flight = flight
        target.engine.seen.clear()
        indices = np.arange(100, 140)
        outcome = ATTACKS[name](
            target.engine, images[rows], labels[rows], ThreatModel(norm, RADII[norm]), seed=seed, indices=indices[rows]
        )
        return target, images, labels, outcome

    def test_an_image_gets_the_same_whatever_it_is_batched_with(self, name, norm):
        *_, whole = self.attacked(name, norm)
        assert 0 < whole.survived.sum() < 40
        some = np.array([31, 7, 20, 39])
        for rows, flight in ((np.arange(40), 7), (some, None), (some[:1], None)):
            *_, part = self.attacked(name, norm, rows, flight)
            for field in ("adversarial", "survived", "logits", "margin", "queries"):
                np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[rows], err_msg=field)

    def test_the_seed_changes_it(self, name, norm):
        first, second = (self.attacked(name, norm, seed=seed)[-1].adversarial for seed in (0, 1))
        assert (first != second).any()

    def test_queries_are_counted_and_images_that_fell_are_let_go(self, name, norm):
        target, images, labels, outcome = self.attacked(name, norm)
        assert outcome.queries.sum() == sum(len(batch) for batch in target.engine.seen)
        assert (outcome.queries[outcome.survived] == QUERIES[name]).all()
        assert outcome.queries[~outcome.survived].min() < QUERIES[name]
        again = linear_logits(target.engine.weights, outcome.adversarial)
        np.testing.assert_array_equal(again.argmax(axis=1) == labels, outcome.survived)
        np.testing.assert_array_equal(again, outcome.logits)
        np.testing.assert_array_equal(margins(again, labels), outcome.margin)
        assert (length(outcome.adversarial, images, norm) <= RADII[norm]).all()

    def test_progress_adds_up_though_images_fall(self, name, norm):
        target = linear_target(classes=4, input_shape=SHAPE, seed=6)
        images = images_of(10, seed=6)
        target.engine.images_in_flight = 4
        told = []
        ATTACKS[name](
            target.engine, images, labels_of(target, images), ThreatModel(norm, RADII[norm]), report=told.append
        )
        assert sum(told) == 10 * QUERIES[name]

    def test_a_broken_engine_has_lost(self, name, norm):
        engine = LinearEngine(np.full((3, 144), np.nan, np.float32), SHAPE).activate()
        outcome = ATTACKS[name](engine, images_of(3), np.zeros(3, np.int64), ThreatModel(norm, 5.0))
        assert not outcome.survived.any()
        assert (outcome.queries == 1).all()

    def test_nothing_is_attacked_by_nothing(self, name, norm):
        target = linear_target(classes=3, input_shape=SHAPE)
        outcome = ATTACKS[name](target.engine, images_of(0), np.zeros(0, np.int64), ThreatModel(norm, 5.0))
        assert outcome.adversarial.shape == (0, *SHAPE)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(ATTACKS)),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 300),
    seed=st.integers(0, 1000),
    extreme=st.booleans(),
)
def test_every_candidate_is_inside_the_ball(name, norm, eps, seed, extreme):
    """Probes may lie outside; what is handed back may not. Batches of whole flights are candidates."""
    target = linear_target(classes=3, input_shape=SHAPE, seed=seed)
    target.engine.bias = np.array([1e6, 0, 0], np.float32)
    images = images_of(3, seed) if not extreme else (images_of(3, seed) // 128 * 255).astype(np.uint8)
    outcome = ATTACKS[name](target.engine, images, np.zeros(3, np.int64), ThreatModel(norm, eps), seed=seed)
    for batch in [outcome.adversarial, *itertools.compress(target.engine.seen, map(is_flight, target.engine.seen))]:
        assert (length(batch, images, norm) <= eps * (1 + 1e-12)).all()


def is_flight(batch) -> bool:
    return len(batch) == 3
