"""FGSM and PGD on the byte grid: closed forms on linear classifiers, and a plain reference on a real engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle_examples import build_bundle
from hardbit_deploy.attacks import ThreatModel, fgsm, margins, pgd, random_start, step_size_255
from hardbit_deploy.attacks.iterates import iterates_from, rounded_inside_l2
from hardbit_deploy.attacks.pgd import start_stream
from hardbit_deploy.engines import Target, open_target
from hardbit_deploy.errors import HardbitError
from linear_examples import LinearEngine, LinearGradient, linear_logits, linear_target

SHAPE = (1, 6, 6)


def images_of(count: int, seed: int = 0, shape=SHAPE, low: int = 0, high: int = 256):
    return np.random.default_rng(seed).integers(low, high, (count, *shape)).astype(np.uint8)


def labels_of(target: Target, images):
    return target.engine.infer(images).argmax(axis=1)


def distance(adversarial, images, norm: str):
    delta = (adversarial.astype(np.int64) - images.astype(np.int64)).reshape(len(images), -1)
    return np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))


class TestLinfAgainstTheClosedForm:
    """For two classes the worst point of the box is its corner against the sign of the weights' difference."""

    def setup_method(self):
        self.target = linear_target(classes=2, input_shape=SHAPE, seed=1)
        # A bias that no perturbation can overcome: nothing falls, so that attacks run to their end.
        self.target.engine.bias = np.array([1000, 0], np.float32)
        self.images = images_of(20)
        self.labels = np.zeros(20, np.int64)

    def corner(self, eps: int):
        direction = np.sign(self.target.engine.weights[1] - self.target.engine.weights[0]).reshape(SHAPE)
        return np.clip(self.images.astype(int) + eps * direction.astype(int), 0, 255).astype(np.uint8)

    def test_fgsm_goes_to_the_corner(self):
        outcome = fgsm(*self.both(), self.images, self.labels, ThreatModel("linf", 7))
        np.testing.assert_array_equal(outcome.adversarial, self.corner(7))

    @pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
    @pytest.mark.parametrize(("eps", "steps"), [(7, 10), (2, 25), (1, 100), (60, 3), (255, 1)])
    def test_pgd_reaches_the_corner_also_in_steps_below_one_grey_level(self, loss, eps, steps):
        outcome = pgd(*self.both(), self.images, self.labels, ThreatModel("linf", eps), steps=steps, loss=loss)
        np.testing.assert_array_equal(outcome.adversarial, self.corner(eps))
        assert outcome.survived.all()
        np.testing.assert_array_equal(outcome.margin, margins(outcome.logits, self.labels))

    def test_on_bytes_a_fractional_eps_is_its_whole_part(self):
        outcome = pgd(*self.both(), self.images, self.labels, ThreatModel("linf", 2.9), steps=10)
        np.testing.assert_array_equal(outcome.adversarial, self.corner(2))

    def test_below_one_grey_level_nothing_moves(self):
        outcome = pgd(*self.both(), self.images, self.labels, ThreatModel("linf", 0.99), steps=10)
        np.testing.assert_array_equal(outcome.adversarial, self.images)

    def both(self):
        return self.target.engine, self.target.gradient


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_l2_attacks_come_close_to_the_closed_form(loss):
    """Away from the ends of the byte range, the worst margin in an L2 ball is margin - eps times the weights' norm.

    One step loses only what rounding costs; PGD keeps a rest of its random start, about exp(-2.5) of it.
    """
    target = linear_target(classes=2, input_shape=(1, 16, 16), seed=2)
    target.engine.bias = np.array([100, 0], np.float32)
    images, model = images_of(10, shape=(1, 16, 16), low=90, high=160), ThreatModel("l2", 100.0)
    labels = np.zeros(10, np.int64)
    weights = target.engine.weights.astype(np.float64)
    best = model.eps_255 / 256 * np.linalg.norm(weights[0] - weights[1])
    before = margins(target.engine.infer(images), labels)
    one_step = fgsm(target.engine, target.gradient, images, labels, model, loss=loss)
    iterated = pgd(target.engine, target.gradient, images, labels, model, steps=40, loss=loss)
    for outcome, least in ((one_step, 0.998), (iterated, 0.97)):
        assert ((before - outcome.margin) <= best * (1 + 1e-5)).all()
        assert ((before - outcome.margin) >= best * least).all()


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 300),
    steps=st.integers(1, 6),
    seed=st.integers(0, 1000),
    extreme=st.booleans(),
)
def test_the_engine_is_only_ever_given_bytes_inside_the_ball(norm, eps, steps, seed, extreme):
    target = linear_target(classes=3, input_shape=SHAPE, seed=seed)
    images = images_of(5, seed) if not extreme else (images_of(5, seed) // 128 * 255).astype(np.uint8)
    target.engine.bias = np.array([1e6, 0, 0], np.float32)  # nobody falls, all five stay in every batch
    labels = np.zeros(5, np.int64)
    outcome = pgd(target.engine, target.gradient, images, labels, ThreatModel(norm, eps), steps=steps, restarts=2)
    assert len(target.engine.seen) == 2 * (steps + 1)
    for batch in [*target.engine.seen, outcome.adversarial]:
        if norm == "linf":
            assert (distance(batch, images, norm) <= eps).all()
        else:
            assert (distance(batch, images, norm) ** 2 <= eps**2 * (1 + 1e-12)).all()


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-255, 255, width=32), min_size=1, max_size=40), eps=st.floats(0.1, 400))
def test_rounding_stays_inside_an_l2_ball_of_any_size(values, eps):
    delta = np.array([values], np.float32)
    norm = np.linalg.norm(delta.astype(np.float64))
    if norm > eps * 0.9999:
        delta *= np.float32(eps * 0.9999 / norm)
    rounded = rounded_inside_l2(delta, eps)
    assert (rounded == np.rint(rounded)).all()
    assert sum(int(value) ** 2 for value in rounded[0]) <= eps**2
    assert (np.abs(rounded) <= np.abs(np.rint(delta))).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30], ids=["subnormal", "tiny", "usual", "huge"])
def test_only_the_direction_of_a_gradient_counts(norm, scale):
    images = images_of(1, low=100, high=150)
    gradient = np.random.default_rng(0).normal(size=images.shape)
    moved = []
    for factor in (1.0, scale):
        iterates = iterates_from(images, images, ThreatModel(norm, 60.0))
        iterates.step((gradient * factor).astype(np.float32), 30.0)
        moved.append(iterates.bytes)
    tolerance = 2 if scale == 1e-42 else 1  # subnormal numbers keep three digits
    assert np.abs(moved[0].astype(int) - moved[1].astype(int)).max() <= tolerance
    assert (moved[0] != images).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rows_without_a_direction_stay_and_do_not_spoil_the_others(norm):
    images = images_of(4, low=100, high=150)
    gradient = np.ones(images.shape, np.float32)
    gradient[0] = 0
    gradient[1] = np.nan
    gradient[2, 0, 0, 0] = np.inf
    with np.errstate(all="raise"):
        iterates = iterates_from(images, images, ThreatModel(norm, 60.0))
        iterates.step(gradient, 30.0)
    np.testing.assert_array_equal(iterates.bytes[:2], images[:2])
    assert (iterates.bytes[2:, :, 1:] > images[2:, :, 1:]).all()


class TestRandomStart:
    def test_a_start_depends_on_the_image_alone_not_on_its_batch(self):
        images = images_of(9)
        for norm in ("linf", "l2"):
            model = ThreatModel(norm, 20.0)
            every = random_start(images, model, seed=3, stream=1, indices=np.arange(9))
            few = random_start(images[[7, 2]], model, seed=3, stream=1, indices=np.array([7, 2]))
            np.testing.assert_array_equal(few, every[[7, 2]])

    def test_seed_stream_and_index_each_change_it(self):
        image, model = images_of(1), ThreatModel("linf", 20.0)
        starts = {
            random_start(image, model, seed=seed, stream=stream, indices=np.array([index])).tobytes()
            for seed, stream, index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
        }
        assert len(starts) == 4

    def test_losses_and_restarts_have_streams_of_their_own(self):
        streams = {
            start_stream(restart, loss) for restart in range(5) for loss in ("cross_entropy", "margin", "tempered")
        }
        assert len(streams) == 15

    def test_linf_starts_are_uniform_over_the_whole_box(self):
        images = np.full((200, 1, 20, 20), 128, np.uint8)
        start = random_start(images, ThreatModel("linf", 4.0), seed=0, stream=0, indices=np.arange(200))
        counts = np.bincount(start.astype(int).ravel() - 124, minlength=9)
        expected = start.size / 9
        assert len(counts) == 9
        assert (((counts - expected) ** 2) / expected).sum() < 26.1  # chi-squared, 8 degrees of freedom, p = 0.001

    def test_l2_starts_fill_the_ball_as_its_volume_does(self):
        images = np.full((2000, 1, 2, 1), 128, np.uint8)
        start = random_start(images, ThreatModel("l2", 100.0), seed=0, stream=0, indices=np.arange(2000))
        radii = distance(start, images, "l2")
        # in two dimensions half of the area is within 1 / sqrt(2) of the radius
        assert abs((radii < 100 / math.sqrt(2)).mean() - 0.5) < 0.04
        assert radii.max() > 97


class TestWhatFalls:
    def test_images_that_fell_are_neither_moved_nor_restarted(self):
        target = linear_target(classes=4, input_shape=SHAPE, seed=3)
        images = images_of(200, seed=3)
        labels = labels_of(target, images)
        target.engine.seen.clear()
        outcome = pgd(target.engine, target.gradient, images, labels, ThreatModel("linf", 6.0), steps=5, restarts=3)
        standing = 200
        for number, batch in enumerate(target.engine.seen):
            assert len(batch) == standing, f"batch {number}"
            kept = {row.tobytes() for row in batch}
            fell = sum(row.tobytes() in kept for row in outcome.adversarial[~outcome.survived])
            standing -= fell
        assert 0 < outcome.survived.sum() < 200
        assert sum(target.gradient.calls) < sum(len(batch) for batch in target.engine.seen)

    def test_survival_is_what_the_engine_says_of_the_bytes_returned(self):
        target = linear_target(classes=4, input_shape=SHAPE, seed=4)
        images = images_of(100, seed=4)
        labels = labels_of(target, images)
        for norm, eps in (("linf", 5.0), ("l2", 25.0)):
            outcome = pgd(target.engine, target.gradient, images, labels, ThreatModel(norm, eps), steps=8)
            again = linear_logits(target.engine.weights, outcome.adversarial)
            np.testing.assert_array_equal(again.argmax(axis=1) == labels, outcome.survived)
            np.testing.assert_array_equal(again, outcome.logits)
            assert 0 < outcome.survived.sum() < 100

    def test_the_best_iterate_is_kept_when_a_later_one_is_worse(self):
        class Overshooting(LinearGradient):
            def gradient_impl(self, images, labels, engine_logits, loss):
                gradient = super().gradient_impl(images, labels, engine_logits, loss)
                return gradient if len(self.calls) <= 3 else -gradient

        base = linear_target(classes=2, input_shape=SHAPE, seed=1)
        engine = LinearEngine(base.engine.weights, SHAPE, np.array([1000, 0])).activate()
        gradient = Overshooting(base.engine.weights, SHAPE).activate()
        images, labels = images_of(10), np.zeros(10, np.int64)
        outcome = pgd(engine, gradient, images, labels, ThreatModel("linf", 9.0), steps=10)
        seen = np.stack([margins(linear_logits(engine.weights, x, engine.bias), labels) for x in engine.seen])
        np.testing.assert_array_equal(outcome.margin, seen.min(axis=0))
        assert (outcome.margin < seen[-1]).all()

    def test_one_more_restart_can_be_added_later(self):
        target = linear_target(classes=4, input_shape=SHAPE, seed=5)
        images = images_of(150, seed=5)
        labels = labels_of(target, images)
        model = ThreatModel("linf", 3.0)

        def attack(**settings):
            return pgd(target.engine, target.gradient, images, labels, model, steps=1, **settings).survived

        np.testing.assert_array_equal(attack(restarts=2), attack(restarts=1) & attack(restarts=1, first_restart=1))

    def test_how_many_images_are_in_flight_changes_nothing(self):
        target = linear_target(classes=4, input_shape=SHAPE, seed=6)
        images = images_of(50, seed=6)
        labels = labels_of(target, images)
        outcomes = []
        for flight in (None, 7):
            target.engine.images_in_flight = flight
            outcomes.append(
                pgd(target.engine, target.gradient, images, labels, ThreatModel("l2", 30.0), steps=6, restarts=2)
            )
        for name in ("adversarial", "survived", "logits", "margin"):
            np.testing.assert_array_equal(getattr(outcomes[0], name), getattr(outcomes[1], name))


def test_pgd_on_a_real_engine_equals_a_plain_loop(tmp_path):
    """The loop that a reader would write: float positions, one image at a time, nothing dropped, nothing batched."""
    bundle = build_bundle(tmp_path / "bundle", count=12)
    images, labels = np.array(bundle.images), np.array(bundle.labels)
    model, steps = ThreatModel("linf", 3.0), 8  # a step of 0.9375 grey levels, exact in 64ths
    with open_target(bundle) as target:
        outcome = pgd(target.engine, target.gradient, images, labels, model, steps=steps, seed=5)
        for index in range(len(images)):
            image, label = images[index : index + 1], labels[index : index + 1]
            point = random_start(image, model, seed=5, stream=0, indices=np.array([index]))
            position = point.astype(np.float64)
            candidates = []
            for _ in range(steps + 1):
                logits = target.engine.infer(point)
                margin = np.delete(logits[0], label[0]).max()
                candidates.append((logits[0, label[0]] - margin, point))
                if logits.argmax() != label[0]:
                    candidates = [(-np.inf, point)]
                    break
                gradient = target.gradient.gradient(point, label, logits, "cross_entropy")
                position = position + step_size_255(model, steps) * np.sign(gradient)
                position = np.clip(np.clip(position, image - 3.0, image + 3.0), 0, 255)
                point = np.floor(position + 0.5).astype(np.uint8)
            expected = min(candidates, key=lambda pair: pair[0])[1]
            np.testing.assert_array_equal(outcome.adversarial[index], expected[0], err_msg=f"image {index}")
            assert outcome.survived[index] == (candidates[0][0] != -np.inf)
    assert 0 < outcome.survived.sum() < len(images)


def test_a_threat_model_refuses_what_it_does_not_know():
    with pytest.raises(HardbitError, match=r"threat_model\.norm: norm 'l1' is not known; choose one of linf, l2"):
        ThreatModel("l1", 3.0)
    with pytest.raises(HardbitError, match="eps_255"):
        ThreatModel("linf", float("nan"))


class TestOneRunForTwo:
    """Where the attack graph computes the engine's bits, its logits may stand for the engine's; the engine decides."""

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
    def test_a_real_engine_loses_the_same_images_to_the_same_bytes(self, tmp_path, norm, loss):
        bundle = build_bundle(tmp_path / "b", count=60)
        images = np.array(bundle.images)
        model = ThreatModel(norm, {"linf": 4.0, "l2": 60.0}[norm])
        with open_target(bundle) as target:
            labels = labels_of(target, images)
            assert np.array_equal(target.engine.infer(images), target.gradient.logits(images))
            slow, fast = (
                pgd(
                    target.engine, target.gradient, images, labels, model,
                    steps=8, restarts=2, loss=loss, same_bits=same_bits,
                )
                for same_bits in (False, True)
            )  # fmt: skip
        for name in ("adversarial", "survived", "logits", "margin"):
            np.testing.assert_array_equal(getattr(slow, name), getattr(fast, name))
        assert 0 < slow.survived.sum() < 60

    def test_a_graph_that_sees_images_fall_is_not_believed(self):
        base = linear_target(classes=4, input_shape=SHAPE, seed=6)
        images = images_of(50, seed=6)
        labels = labels_of(base, images)

        class Alarmist(LinearGradient):
            def logits_impl(self, images):
                return -super().logits_impl(images)

        gradient = Alarmist(base.gradient.weights, SHAPE).activate()
        outcome = pgd(base.engine, gradient, images, labels, ThreatModel("linf", 1.0), steps=4, same_bits=True)
        again = linear_logits(base.engine.weights, outcome.adversarial).argmax(axis=1)
        np.testing.assert_array_equal(again == labels, outcome.survived)
        assert outcome.survived.sum() > 25

    def test_the_engine_is_asked_about_falls_and_last_iterates_only(self):
        target = linear_target(classes=4, input_shape=SHAPE, seed=6)
        images = images_of(50, seed=6)
        labels = labels_of(target, images)
        target.engine.seen.clear()
        outcome = pgd(target.engine, target.gradient, images, labels, ThreatModel("linf", 3.0), steps=9, same_bits=True)
        asked = sum(len(batch) for batch in target.engine.seen)
        fell = np.count_nonzero(~outcome.survived)
        assert 0 < fell < 50
        assert outcome.survived.sum() <= asked <= 50 + fell
