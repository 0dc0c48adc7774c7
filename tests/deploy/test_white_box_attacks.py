"""What APGD, FAB-T, DeepFool and Carlini-Wagner have in common: closed forms on linear classifiers, and the harness's
rules for bytes, balls, chunks and images that have fallen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle_examples import build_bundle
from hardbit_deploy.attacks import AttackOutcome, ThreatModel, apgd, carlini_wagner, deepfool, fab, margins, pgd
from hardbit_deploy.attacks.objectives import DLR, TEMPERED
from hardbit_deploy.engines import Target, open_target
from hardbit_deploy.errors import HardbitError
from linear_examples import LinearEngine, LinearGradient, linear_logits, linear_target

SHAPE = (1, 6, 6)
EPS = {"linf": 4.0, "l2": 28.5}
Attack = Callable[..., AttackOutcome]

ATTACKS: dict[str, Attack] = {
    "pgd tempered": lambda *at, steps=20: pgd(*at, steps=steps, objective=TEMPERED),
    "apgd": lambda *at, steps=20: apgd(*at, steps=steps),
    "apgd restarted": lambda *at, steps=20: apgd(*at, steps=steps, restarts=2),
    "apgd dlr": lambda *at, steps=20: apgd(*at, steps=steps, objective=DLR),
    "apgd targeted": lambda *at, steps=20: apgd(*at, steps=steps, targets=9),
    "fab": lambda *at, steps=20: fab(*at, steps=steps, targets=9),
    "fab restarted": lambda *at, steps=20: fab(*at, steps=steps, targets=9, restarts=2),
    "deepfool": lambda *at, steps=20: deepfool(*at, steps=steps),
    "carlini-wagner": lambda *at, steps=20: carlini_wagner(*at, steps=steps, binary_steps=3),
}
BOTH_NORMS = [(name, norm) for name in ATTACKS for norm in ("linf", "l2") if (name, norm) != ("carlini-wagner", "linf")]


def images_of(count: int, seed: int = 0, low: int = 0, high: int = 256):
    return np.random.default_rng(seed).integers(low, high, (count, *SHAPE)).astype(np.uint8)


def labels_of(target: Target, images):
    return target.engine.infer(images).argmax(axis=1)


def run(name: str, target: Target, images, labels, model: ThreatModel, **settings) -> AttackOutcome:
    return ATTACKS[name](target.engine, target.gradient, images, labels, model, **settings)


def length(points, images, norm: str):
    delta = (points.astype(np.int64) - images.astype(np.int64)).reshape(len(images), -1)
    return np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))


class TestClosedForms:
    def worst_margins(self, target: Target, images, labels, eps: int):
        """Of all points of the box: the corner against the difference to each other class, (n,)."""
        pixels = images.reshape(len(images), -1).astype(int)
        worst = np.full(len(images), np.inf)
        for row, label in enumerate(labels):
            for other in set(range(target.engine.classes)) - {label}:
                towards = np.sign(target.engine.weights[other] - target.engine.weights[label]).astype(int)
                corner = np.clip(pixels[row] + eps * towards, 0, 255).astype(np.uint8)
                logits = linear_logits(target.engine.weights, corner.reshape(1, *SHAPE))[0]
                worst[row] = min(worst[row], logits[label] - logits[other])
        return worst

    @pytest.mark.parametrize("eps", [1, 2, 5])
    @pytest.mark.parametrize("name", ["apgd dlr", "apgd targeted", "fab"])
    def test_in_linf_what_can_fall_falls(self, name: str, eps: int):
        target = linear_target(classes=4, input_shape=SHAPE, seed=3)
        images = images_of(150, seed=3)
        labels = labels_of(target, images)
        can_fall = self.worst_margins(target, images, labels, eps) < 0
        outcome = run(name, target, images, labels, ThreatModel("linf", eps), steps=30)
        assert not (~outcome.survived & ~can_fall).any()
        assert (~outcome.survived).sum() >= can_fall.sum() - (1 if name == "apgd dlr" else 0)
        assert 0 < can_fall.sum() < 150

    @pytest.mark.parametrize("name", [name for name, norm in BOTH_NORMS if norm == "linf"])
    def test_with_two_classes_nothing_is_missed(self, name: str):
        target = linear_target(classes=2, input_shape=SHAPE, seed=1)
        images = images_of(200, seed=1)
        labels = labels_of(target, images)
        can_fall = self.worst_margins(target, images, labels, 4) < 0
        outcome = run(name, target, images, labels, ThreatModel("linf", 4), steps=30)
        np.testing.assert_array_equal(~outcome.survived, can_fall)
        assert 20 < can_fall.sum() < 180

    @pytest.mark.parametrize("name", [name for name, norm in BOTH_NORMS if norm == "l2"])
    def test_in_l2_it_falls_where_the_ball_meets_the_plane(self, name: str):
        """Away from the ends of the byte range the margin can be lowered by eps times the norm of the difference of
        weights; rounding to bytes costs a percent or two."""
        target = linear_target(classes=2, input_shape=SHAPE, seed=2)
        images = images_of(200, seed=2, low=60, high=196)
        labels = labels_of(target, images)
        reach = 40.0 / 256 * np.linalg.norm(target.engine.weights[0] - target.engine.weights[1])
        margin = margins(target.engine.infer(images), labels)
        outcome = run(name, target, images, labels, ThreatModel("l2", 40.0), steps=60)
        assert outcome.survived[margin > reach].all()
        assert not outcome.survived[margin < reach * 0.95].any()
        assert 20 < (margin > reach).sum() < 180

    def test_carlini_and_wagner_measure_in_l2(self):
        target = linear_target(classes=3, input_shape=SHAPE)
        with pytest.raises(HardbitError, match="measures in L2, not in linf"):
            run("carlini-wagner", target, images_of(2), np.zeros(2, np.int64), ThreatModel("linf", 3))


@pytest.mark.parametrize(("name", "norm"), BOTH_NORMS)
class TestRules:
    def attacked(self, name: str, norm: str, flight: int | None = None, count: int = 120):
        target = linear_target(classes=4, input_shape=SHAPE, seed=4)
        target.engine.images_in_flight = flight
        images = images_of(count, seed=4)
        labels = labels_of(target, images)
        target.engine.seen.clear()
        return target, images, labels, run(name, target, images, labels, ThreatModel(norm, EPS[norm]), steps=12)

    def test_survival_is_what_the_engine_says_of_the_bytes_returned(self, name, norm):
        target, images, labels, outcome = self.attacked(name, norm)
        again = linear_logits(target.engine.weights, outcome.adversarial)
        np.testing.assert_array_equal(again.argmax(axis=1) == labels, outcome.survived)
        np.testing.assert_array_equal(again, outcome.logits)
        np.testing.assert_array_equal(margins(again, labels), outcome.margin)
        assert (length(outcome.adversarial, images, norm) <= EPS[norm] + 1e-12).all()
        assert 0 < outcome.survived.sum() < 120
        assert (outcome.margin <= margins(linear_logits(target.engine.weights, images), labels)).all()

    def test_how_many_images_are_in_flight_changes_nothing(self, name, norm):
        outcomes = [self.attacked(name, norm, flight)[3] for flight in (None, 7)]
        for field in ("adversarial", "survived", "logits", "margin"):
            np.testing.assert_array_equal(getattr(outcomes[0], field), getattr(outcomes[1], field))

    def test_an_image_that_has_fallen_is_not_asked_about_again(self, name, norm):
        """What made an image fall is the last that the engine is shown of it: no later batch holds a byte pattern near
        it. Batches can only become smaller, but for the start of another climb."""
        target, images, _, outcome = self.attacked(name, norm, count=60)
        fallen = np.flatnonzero(~outcome.survived)
        assert len(fallen) > 5
        for row in fallen:
            batches = [number for number, batch in enumerate(target.engine.seen) if self.near(batch, images[row], norm)]
            assert any((image == outcome.adversarial[row]).all() for image in target.engine.seen[batches[-1]]), (
                f"image {row} is asked about after it fell"
            )

    def near(self, batch, image, norm: str) -> bool:
        """Images of noise are far from each other: what is near one is a change of it."""
        return bool((np.abs(batch.astype(int) - image.astype(int)).mean(axis=(1, 2, 3)) < 30).any())

    def test_an_image_that_the_engine_gets_wrong_has_fallen(self, name, norm):
        target = linear_target(classes=4, input_shape=SHAPE, seed=5)
        images = images_of(12, seed=5)
        labels = (labels_of(target, images) + 1) % 4
        assert not run(name, target, images, labels, ThreatModel(norm, 0.5), steps=2).survived.any()

    def test_no_images_are_no_mistake(self, name, norm):
        target = linear_target(classes=4, input_shape=SHAPE)
        outcome = run(name, target, images_of(0), np.zeros(0, np.int64), ThreatModel(norm, 3.0), steps=3)
        assert outcome.adversarial.shape == (0, *SHAPE)

    def test_gradients_that_say_nothing_move_nothing(self, name, norm):
        class Empty(LinearGradient):
            def pullback_impl(self, images, seeds):
                gradient = super().pullback_impl(images, seeds)
                gradient[::2] = 0
                gradient[1::2] = np.nan
                return gradient

        base = linear_target(classes=4, input_shape=SHAPE, seed=4)
        target = Target(base.engine, Empty(base.engine.weights, SHAPE)).activate()
        images = images_of(10)
        labels = labels_of(target, images)
        with np.errstate(invalid="raise", divide="raise"):
            outcome = run(name, target, images, labels, ThreatModel(norm, 0.9), steps=4)
        assert outcome.survived.all()

    def test_the_scale_of_the_logits_does_not_matter(self, name, norm):
        survived = []
        for scale in (1.0, 2.0**10, 2.0**-20):
            target = linear_target(classes=4, input_shape=SHAPE, seed=4, scale=scale)
            images = images_of(60, seed=4)
            labels = labels_of(target, images)
            survived.append(run(name, target, images, labels, ThreatModel(norm, EPS[norm]), steps=12).survived)
        # cross-entropy does change with the scale: which classes it heeds
        allowed = 5 if name in ("apgd", "apgd restarted") else 0
        assert max(np.count_nonzero(survived[0] != other) for other in survived[1:]) <= allowed


@settings(max_examples=40, deadline=None)
@given(case=st.sampled_from(BOTH_NORMS), eps=st.floats(0, 300), seed=st.integers(0, 1000), extreme=st.booleans())
def test_what_is_handed_back_is_inside_the_ball(case, eps, seed, extreme):
    name, norm = case
    base = linear_target(classes=3, input_shape=SHAPE, seed=seed)
    engine = LinearEngine(base.engine.weights, SHAPE, np.array([1e6, 0, 0], np.float32)).activate()  # nobody falls
    images = images_of(4, seed) if not extreme else (images_of(4, seed) // 128 * 255).astype(np.uint8)
    target = Target(engine, base.gradient)
    outcome = run(name, target, images, np.zeros(4, np.int64), ThreatModel(norm, eps), steps=4)
    assert outcome.survived.all()
    squares = ((outcome.adversarial.astype(int) - images) ** 2).reshape(4, -1).sum(axis=1)
    assert (length(outcome.adversarial, images, norm) <= eps).all() if norm == "linf" else (squares <= eps**2).all()


@pytest.mark.parametrize(("name", "norm"), [case for case in BOTH_NORMS if "restarted" in case[0]])
def test_seed_and_place_decide_what_is_drawn(name, norm):
    attack = {"apgd restarted": apgd, "fab restarted": fab}[name]
    settings = {"apgd restarted": {"restarts": 2}, "fab restarted": {"restarts": 2, "targets": 2}}[name]
    base = linear_target(classes=4, input_shape=SHAPE, seed=6)
    engine = LinearEngine(base.engine.weights, SHAPE, np.array([5, 0, 0, 0], np.float32)).activate()
    images, model = images_of(6, seed=6, low=80, high=170), ThreatModel(norm, {"linf": 3.0, "l2": 20.0}[norm])

    def shown(rows, seed=0):
        engine.seen.clear()
        labels = engine.infer(images[rows]).argmax(axis=1)
        attack(engine, base.gradient, images[rows], labels, model, steps=2, seed=seed, indices=rows, **settings)
        return {image.tobytes() for batch in engine.seen for image in batch}

    every, few = shown(np.arange(6)), shown(np.array([4, 1]))
    assert few <= every
    assert not shown(np.array([4, 1]), seed=1) <= every


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_real_integer_engine_none_is_far_behind_pgd(tmp_path, norm):
    bundle = build_bundle(tmp_path / "b", count=60)
    images = np.array(bundle.images)
    model = ThreatModel(norm, {"linf": 4.0, "l2": 60.0}[norm])
    with open_target(bundle) as target:
        labels = labels_of(target, images)
        reference = pgd(target.engine, target.gradient, images, labels, model, steps=20).survived
        survived = {name: run(name, target, images, labels, model).survived for name, of in BOTH_NORMS if of == norm}
    assert 0 < reference.sum() < 60
    for name in ("apgd", "apgd targeted", "fab"):
        assert survived[name].sum() <= reference.sum() + 1, name
    for name, standing in survived.items():
        assert standing.sum() <= reference.sum() + 12, name
