"""HopSkipJump: distances against closed forms on linear classifiers, and what it depends on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hardbit_deploy.attacks import ThreatModel, margins
from hardbit_deploy.attacks.hopskipjump import hopskipjump, nearest_points
from linear_examples import linear_target

SHAPE = (1, 9, 8)
RADII = {"linf": 6.0, "l2": 40.0}
DUAL = {"linf": lambda w: np.abs(w).sum(), "l2": np.linalg.norm}


class Labels:
    """What a linear classifier calls images, and which images it was asked about."""

    def __init__(self, classes: int = 2, seed: int = 1, shape=SHAPE):
        self.engine = linear_target(classes=classes, input_shape=shape, seed=seed).engine
        self.seen = []

    def __call__(self, images):
        self.seen.append(images.copy())
        return self.engine.infer(images).argmax(axis=1)


def far_images(decide: Labels, count: int, least: float, norm: str):
    """Images away from the ends of bytes whose robust radius is `least` grey levels or more, and the radii."""
    images = np.random.default_rng(0).integers(80, 176, (400, *SHAPE)).astype(np.uint8)
    logits = decide.engine.infer(images)
    labels = logits.argmax(axis=1)
    weights = (decide.engine.weights[0] - decide.engine.weights[1]).astype(np.float64)
    radii = 256 * margins(logits, labels) / DUAL[norm](weights)
    rows = np.flatnonzero(radii > least)[:count]
    assert len(rows) == count
    return images[rows], labels[rows], radii[rows]


def length(points, images, norm: str):
    delta = (points.astype(np.int64) - images.astype(np.int64)).reshape(len(images), -1)
    return np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))


class TestDistances:
    @pytest.mark.parametrize(("norm", "least"), [("linf", 5.0), ("l2", 40.0)])
    def test_come_near_the_closed_form(self, norm, least):
        decide = Labels()
        images, labels, radii = far_images(decide, 10, least, norm)
        points, distances = nearest_points(decide, images, labels, norm, queries=4000)
        nearest = np.ceil(radii) if norm == "linf" else radii
        assert (distances >= nearest * (1 - 1e-6)).all()
        assert (distances / nearest).max() < 1.25
        assert np.median(distances / nearest) < (1.15 if norm == "linf" else 1.06)
        np.testing.assert_array_equal(length(points, images, norm), distances)
        assert (decide(points) != labels).all()

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_more_queries_come_nearer(self, norm):
        decide = Labels()
        images, labels, _ = far_images(decide, 10, {"linf": 5.0, "l2": 40.0}[norm], norm)
        few, many = (nearest_points(decide, images, labels, norm, queries=n)[1] for n in (150, 2000))
        assert (many <= few).all()
        assert many.mean() < 0.9 * few.mean()

    @pytest.mark.parametrize(("norm", "least"), [("linf", 5.0), ("l2", 40.0)])
    def test_images_fall_where_the_robust_radius_says(self, norm, least):
        decide = Labels()
        images, labels, radii = far_images(decide, 8, least, norm)
        for row, radius in enumerate(radii):
            one = np.s_[row : row + 1]
            outside = ThreatModel(norm, math.ceil(radius * 1.3))
            fallen = hopskipjump(decide, images[one], labels[one], outside, queries=4000)
            assert not fallen.survived[0]
            assert decide(fallen.adversarial)[0] != labels[row]
            assert length(fallen.adversarial, images[one], norm)[0] <= outside.eps_255
            inside = ThreatModel(norm, radius * 0.99)
            standing = hopskipjump(decide, images[one], labels[one], inside, queries=1000)
            assert standing.survived[0]
            assert decide(standing.adversarial)[0] == labels[row]
            assert 0 < length(standing.adversarial, images[one], norm)[0] <= inside.eps_255

    def test_where_there_is_but_one_label_nothing_is_found(self):
        images, labels = np.full((2, *SHAPE), 9, np.uint8), np.zeros(2, np.int64)
        asked = []

        def decide(points):
            asked.append(len(points))
            return np.zeros(len(points), np.int64)

        points, distances = nearest_points(decide, images, labels, "l2", queries=500)
        np.testing.assert_array_equal(points, images)
        assert np.isinf(distances).all()
        assert sum(asked) < 200
        assert hopskipjump(decide, images, labels, ThreatModel("linf", 3.0), queries=500).survived.all()

    def test_an_image_that_is_wrong_from_the_start_has_fallen_in_one_query(self):
        decide = Labels()
        images, labels, _ = far_images(decide, 3, 5.0, "linf")
        outcome = hopskipjump(decide, images, 1 - labels, ThreatModel("linf", 0.0), queries=100)
        np.testing.assert_array_equal(outcome.adversarial, images)
        assert not outcome.survived.any()
        assert (outcome.queries == 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestTheBooks:
    def attacked(self, norm, rows=slice(None), seed=0, queries=400):
        decide = Labels(classes=4, seed=3)
        images = np.random.default_rng(5).integers(0, 256, (16, *SHAPE)).astype(np.uint8)
        labels = decide(images)
        decide.seen.clear()
        told = []
        outcome = hopskipjump(
            decide,
            images[rows],
            labels[rows],
            ThreatModel(norm, RADII[norm]),
            queries=queries,
            seed=seed,
            indices=np.arange(50, 66)[rows],
            report=told.append,
        )
        return decide, images, labels, outcome, sum(told)

    def test_queries_are_counted_and_never_more_than_allowed(self, norm):
        decide, images, labels, outcome, told = self.attacked(norm)
        assert 0 < outcome.survived.sum() < 16
        assert outcome.queries.sum() == sum(map(len, decide.seen))
        assert outcome.queries.max() <= 400
        assert told == 16 * 400
        np.testing.assert_array_equal(decide(outcome.adversarial) == labels, outcome.survived)
        assert (length(outcome.adversarial, images, norm) <= RADII[norm]).all()
        assert outcome.logits.shape == (16, 0)
        assert np.isnan(outcome.margin).all()

    def test_an_image_gets_the_same_whatever_it_is_batched_with(self, norm):
        *_, whole, _ = self.attacked(norm)
        some = np.array([11, 4])
        *_, part, _ = self.attacked(norm, some)
        for field in ("adversarial", "survived", "queries"):
            np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[some], err_msg=field)

    def test_the_seed_changes_it(self, norm):
        first, second = (self.attacked(norm, seed=seed)[3] for seed in (0, 1))
        assert (first.adversarial != second.adversarial).any()

    def test_only_the_first_queries_of_a_longer_search_are_made_by_a_shorter_one(self, norm):
        short, *_, outcome, _ = self.attacked(norm, np.array([2]), queries=60)
        long, *_ = self.attacked(norm, np.array([2]), queries=400)
        assert outcome.queries[0] <= 60
        asked = np.concatenate(short.seen)
        np.testing.assert_array_equal(asked, np.concatenate(long.seen)[: len(asked)])
