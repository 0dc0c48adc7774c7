"""The Square attack: plain references image by image, closed forms on linear classifiers, and what it depends on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle_examples import build_bundle
from hardbit_deploy.attacks import ThreatModel, margins, square
from hardbit_deploy.attacks.randomness import random_words
from hardbit_deploy.attacks.square import share_of_image
from hardbit_deploy.attacks.squares import below, bits, pyramid, signed_pyramids, squares_in
from hardbit_deploy.engines import Target, open_target
from linear_examples import LinearEngine, linear_logits, linear_target

SHAPE = (2, 8, 9)
RADII = {"linf": 6.0, "l2": 40.5}
STREAM = 1 << 32


def images_of(count: int, seed: int = 0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def labels_of(target: Target, images):
    return target.engine.infer(images).argmax(axis=1)


def length(adversarial, images, norm: str):
    delta = (adversarial.astype(np.int64) - images.astype(np.int64)).reshape(len(images), -1)
    return np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))


def words_of(place: int, block: int, count: int, columns: int, seed: int = 0):
    return random_words(seed, STREAM, np.array([place]), block=block, words=count, columns=columns)[:, :, 0]


def side_of(query: int, queries: int, height: int, width: int, least: int) -> int:
    """The authors' table: half the share after 10, 50, 200, ... of 10,000 queries."""
    share = 0.8
    for limit in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        if query / queries * 10_000 > limit:
            share /= 2
    side = max(least, round(math.sqrt(share * height * width)))
    side += 1 - side % 2 if least == 3 else 0
    return min(side, height, width)


class PlainLinf:
    """One image, as a reader of the paper would write it down; the same random words as the attack."""

    columns = (1, 3)

    def __init__(self, image, eps: float):
        channels, _, width = image.shape
        self.columns = (-(-channels * width // 32), 3)
        self.low = np.clip(image.astype(int) - int(eps), 0, 255)
        self.high = np.clip(image.astype(int) + int(eps), 0, 255)

    def start(self, words):
        channels, _, width = self.low.shape
        point = self.low.copy()
        for channel in range(channels):
            for column in range(width):
                bit = channel * width + column
                if int(words[bit // 32]) >> (bit % 32) & 1:
                    point[channel, :, column] = self.high[channel, :, column]
        return point

    def move(self, point, side: int, words):
        channels, height, width = point.shape
        top, left = int(words[0]) * (height - side + 1) >> 32, int(words[1]) * (width - side + 1) >> 32
        square_of = np.s_[top : top + side, left : left + side]
        for turned in (0, 1):
            moved = point.copy()
            for channel in range(channels):
                end = self.high if (int(words[2]) >> channel & 1) ^ turned else self.low
                moved[channel][square_of] = end[channel][square_of]
            if (moved != point).any():
                return moved
        raise AssertionError("a square that changes nothing either way")

    least = 1


class PlainL2:
    """The same for L2: float64, one channel after the other, windows by slices."""

    least = 3

    def __init__(self, image, eps: float):
        self.image, self.eps = image.astype(float), eps
        channels, height, width = image.shape
        self.size = min(height, width) // 5
        self.tiles = (height // self.size) * (width // self.size)
        self.columns = (-(-(channels + 1) * self.tiles // 32), 5)

    def inside(self, delta, budget: float):
        """Rounding of this reference is only ever compared where it needs no correction."""
        rounded = np.rint(delta)
        return rounded if (rounded**2).sum() <= budget else None

    def start(self, words):
        channels, height, width = self.image.shape
        delta, size = np.zeros(self.image.shape), self.size
        top, left = (height - height // size * size) // 2, (width - width // size * size) // 2
        for tile in range(self.tiles):
            row, column = top + tile // (width // size) * size, left + tile % (width // size) * size
            flags = [
                bool(int(words[k // 32]) >> (k % 32) & 1)
                for k in range(tile * (channels + 1), (tile + 1) * (channels + 1))
            ]
            shape = published_eta(size, flags[0])
            for channel in range(channels):
                delta[channel, row : row + size, column : column + size] = shape * (1 if flags[1 + channel] else -1)
        delta *= self.eps * (1 - 1e-4) / np.linalg.norm(delta)
        return np.clip(delta, -self.image, 255 - self.image)

    def move(self, delta, side: int, words):
        channels, height, width = self.image.shape
        tops = [int(words[k]) * (height - side + 1) >> 32 for k in (0, 2)]
        lefts = [int(words[k]) * (width - side + 1) >> 32 for k in (1, 3)]
        flags = [bool(int(words[4]) >> k & 1) for k in range(channels + 1)]
        first, second = (np.s_[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True))
        moved = delta.copy()
        free = max(self.eps**2 - (delta**2).sum(), 0) / channels
        for channel in range(channels):
            mask = np.zeros((height, width), bool)
            mask[first] = mask[second] = True
            held = (delta[channel][mask] ** 2).sum()
            old = delta[channel][first]
            shape = published_eta(side, flags[0]) * (1 if flags[1 + channel] else -1) + old / max(
                np.linalg.norm(old), 1
            )
            shape *= (1 - 1e-4) * math.sqrt(held + free) / np.linalg.norm(shape)
            moved[channel][second] = 0
            moved[channel][first] = shape
        return np.clip(moved, -self.image, 255 - self.image)


def published_eta(side: int, transposed: bool):
    """The authors' loops: nested rectangles, two of them with opposite signs."""

    def rectangles(height: int, width: int):
        heights = np.zeros((height, width))
        middle = [height // 2, width // 2]
        for ring in range(max(height // 2, width // 2) + 1):
            rows = slice(max(middle[0], 0), min(middle[0] + 2 * ring + 1, height))
            columns = slice(max(middle[1], 0), min(middle[1] + 2 * ring + 1, width))
            heights[rows, columns] += 1 / (ring + 1) ** 2
            middle = [middle[0] - 1, middle[1] - 1]
        return heights / np.linalg.norm(heights)

    shape = np.zeros((side, side))
    if side > 1:
        shape[: side // 2] = rectangles(side // 2, side)
    shape[side // 2 :] = -rectangles(side - side // 2, side)
    shape /= np.linalg.norm(shape)
    return shape.T if transposed else shape


class TestAgainstAPlainLoop:
    QUERIES = 150

    def test_linf_finds_the_same_bytes_on_a_real_engine(self, tmp_path):
        bundle = build_bundle(tmp_path / "b", count=12)
        images, labels = np.array(bundle.images), np.array(bundle.labels)
        with open_target(bundle) as target:
            outcome = square(target.engine, images, labels, ThreatModel("linf", 3.0), queries=self.QUERIES, seed=4)
            for place in range(len(images)):
                plain = PlainLinf(images[place], 3.0)
                best, asked = None, 0
                for query in range(self.QUERIES):
                    if best is None:
                        point = plain.start(words_of(place, 0, 1, plain.columns[0], seed=4)[0])
                    else:
                        block, row = 1 + (query - 1) // 128, (query - 1) % 128
                        words = words_of(place, block, 128, 3, seed=4)[row]
                        point = plain.move(best[1], side_of(query, self.QUERIES, *images.shape[2:], 1), words)
                    margin = margins(target.engine.infer(point[None].astype(np.uint8)), labels[place : place + 1])[0]
                    asked += 1
                    if best is None or margin <= best[0]:
                        best = margin, point
                    if margin < 0:
                        break
                np.testing.assert_array_equal(outcome.adversarial[place], best[1], err_msg=f"image {place}")
                assert (outcome.margin[place], outcome.queries[place]) == (best[0], asked)
        assert 0 < outcome.survived.sum() < len(images)

    def test_l2_makes_the_same_moves(self):
        """Move by move, each from the attack's own bytes: the reference does not round."""
        images = images_of(5)
        moves = squares_in(images, ThreatModel("l2", 300.5))
        plain = [PlainL2(image, 300.5) for image in images]
        places = np.arange(5)
        words = random_words(0, STREAM, places, block=0, words=1, columns=moves.start_columns)[0]
        assert moves.start_columns == plain[0].columns[0]
        moves.start(words)
        for place in range(5):
            expected = plain[place].start(words[:, place])
            np.testing.assert_allclose(moves.bytes[place] - images[place].astype(float), expected, atol=1.01)
        for side in (7, 5, 3, 3, 7):
            words = random_words(0, STREAM, places, block=side, words=1, columns=moves.move_columns)[0]
            before = moves.bytes.astype(float) - images
            moves.move(side, words)
            for place in range(5):
                expected = plain[place].move(before[place], side, words[:, place])
                np.testing.assert_allclose(moves.bytes[place] - images[place].astype(float), expected, atol=1.01)

    def test_the_schedule_is_the_authors(self):
        for queries in (500, 1500, 5000):
            for query in range(1, queries):
                side = max(1, round(math.sqrt(share_of_image(query, queries) * 28 * 28)))
                assert side == side_of(query, queries, 28, 28, 1)

    @pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 25])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_pyramids_are_the_authors(self, side, transposed):
        made = signed_pyramids(side, np.array([[True, False]]), np.array([transposed]))[0]
        np.testing.assert_allclose(made[0], published_eta(side, transposed), atol=1e-6)
        np.testing.assert_allclose(made[1], -published_eta(side, transposed), atol=1e-6)
        assert pyramid(4, 6).shape == (4, 6)


class TestLinearClassifiers:
    """Nothing falls: a bias that no perturbation overcomes, so that the search runs to its end."""

    def attack(self, norm: str, eps: float, queries: int):
        target = linear_target(classes=2, input_shape=(1, 6, 6), seed=1)
        target.engine.bias = np.array([1000, 0], np.float32)
        images = np.random.default_rng(0).integers(100, 156, (10, 1, 6, 6)).astype(np.uint8)
        labels = np.zeros(10, np.int64)
        outcome = square(target.engine, images, labels, ThreatModel(norm, eps), queries=queries)
        clean = margins(target.engine.infer(images), labels)
        return target.engine.weights, images, clean, outcome

    def test_linf_ends_in_the_corner(self):
        weights, images, _, outcome = self.attack("linf", 7, 4000)
        direction = np.sign(weights[1] - weights[0]).reshape(1, 6, 6).astype(int)
        np.testing.assert_array_equal(outcome.adversarial, np.clip(images.astype(int) + 7 * direction, 0, 255))
        assert outcome.survived.all()
        assert (outcome.queries == 4000).all()

    def test_l2_comes_near_the_best_direction(self):
        weights, _, clean, outcome = self.attack("l2", 60, 4000)
        gained = (clean - outcome.margin) / (60 / 256 * np.linalg.norm(weights[0] - weights[1]))
        assert gained.max() <= 1
        assert np.median(gained) > 0.76  # as the published code in floats: 0.76 to 0.87; a random direction a sixth


class TestWhatItDependsOn:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_an_image_gets_the_same_whatever_it_is_batched_with(self, norm):
        target = linear_target(classes=4, input_shape=SHAPE, seed=6)
        images = images_of(60, seed=6)
        labels = labels_of(target, images)
        model, indices = ThreatModel(norm, RADII[norm]), np.arange(100, 160)

        def attack(rows, flight=None):
            target.engine.images_in_flight = flight
            return square(target.engine, images[rows], labels[rows], model, queries=300, seed=3, indices=indices[rows])

        whole = attack(np.arange(60))
        assert 0 < whole.survived.sum() < 60
        some = np.array([41, 7, 20, 59])
        for rows, flight in ((np.arange(60), 7), (some, None), (some[:1], None)):
            part = attack(rows, flight)
            for name in ("adversarial", "survived", "logits", "margin", "queries"):
                np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)

    def test_seed_and_place_change_it(self):
        target = linear_target(classes=4, input_shape=SHAPE)
        image = images_of(1)
        label = labels_of(target, image)
        model = ThreatModel("linf", 1.0)
        found = set()
        for seed, place in [(0, 0), (1, 0), (0, 1)]:
            outcome = square(target.engine, image, label, model, queries=3, seed=seed, indices=np.array([place]))
            found.add(outcome.adversarial.tobytes())
        assert len(found) == 3

    def test_words_of_a_block_do_not_depend_on_the_others(self):
        every = random_words(1, 2, np.arange(9), block=3, words=5, columns=3)
        np.testing.assert_array_equal(
            random_words(1, 2, np.array([7, 2]), block=3, words=5, columns=3), every[:, :, [7, 2]]
        )
        assert not np.isin(every, random_words(1, 2, np.arange(9), block=4, words=5, columns=3)).any()
        assert every.dtype == np.uint32


class TestWhatFalls:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_images_that_fell_are_not_asked_about_again(self, norm):
        target = linear_target(classes=4, input_shape=SHAPE, seed=3)
        images = images_of(80, seed=3)
        labels = labels_of(target, images)
        target.engine.seen.clear()
        outcome = square(target.engine, images, labels, ThreatModel(norm, RADII[norm]), queries=200)
        asked = [len(batch) for batch in target.engine.seen]
        assert asked == [int((outcome.queries > query).sum()) for query in range(len(asked))]
        assert sum(asked) == outcome.queries.sum()
        assert 0 < outcome.survived.sum() < 80
        assert (outcome.queries[outcome.survived] == 200).all()
        again = linear_logits(target.engine.weights, outcome.adversarial)
        np.testing.assert_array_equal(again.argmax(axis=1) == labels, outcome.survived)
        np.testing.assert_array_equal(again, outcome.logits)
        np.testing.assert_array_equal(margins(again, labels), outcome.margin)

    def test_an_engine_that_breaks_down_has_lost_its_label(self):
        class Brittle(LinearEngine):
            def infer_impl(self, images):
                return np.full_like(super().infer_impl(images), np.nan)

        base = linear_target(classes=4, input_shape=SHAPE)
        images, model = images_of(3), ThreatModel("linf", 1.0)
        brittle = Brittle(base.engine.weights, SHAPE).activate()
        outcome = square(brittle, images, labels_of(base, images), model, queries=5)
        assert not outcome.survived.any()
        assert (outcome.queries == 1).all()

    def test_ties_are_accepted_and_a_rise_is_taken_back(self):
        class Counting(LinearEngine):
            """The label's lead depends on the first column alone, in steps of eight bright pixels."""

            def infer_impl(self, images):
                self.seen.append(images.copy())
                bright = (images[:, 0, :, 0] > 128).sum(axis=1)
                return np.stack([10.0 + bright // 4, 0.0 * bright], axis=1).astype(np.float32)

        engine = Counting(np.zeros((2, 64)), (1, 8, 8)).activate()
        images = np.full((20, 1, 8, 8), 128, np.uint8)
        outcome = square(engine, images, np.zeros(20, np.int64), ThreatModel("linf", 9.0), queries=400)
        seen = np.stack([margins(Counting.infer_impl(engine, batch), np.zeros(20, int)) for batch in engine.seen[:400]])
        assert (outcome.margin == seen.min(axis=0)).all()
        assert (outcome.margin == 10).all()
        # Only ties were left long before the end, and the search went on walking.
        assert all((a != b).any(axis=(1, 2, 3)).mean() > 0.5 for a, b in itertools.pairwise(engine.seen[200:400]))

    def test_no_images_is_no_work(self):
        target = linear_target(input_shape=SHAPE)
        outcome = square(target.engine, images_of(0), np.zeros(0, np.int64), ThreatModel("linf", 4.0), queries=9)
        assert outcome.survived.shape == outcome.queries.shape == (0,)


class TestMoves:
    @settings(max_examples=60, deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 5), st.integers(1, 14), st.integers(1, 14)),
        norm=st.sampled_from(["linf", "l2"]),
        eps=st.floats(1, 300),
        seed=st.integers(0, 99),
        extreme=st.booleans(),
    )
    def test_every_point_is_inside_and_every_move_can_be_taken_back(self, shape, norm, eps, seed, extreme):
        rng = np.random.default_rng(seed)
        images = rng.choice(np.array([0, 255], np.uint8), (6, *shape)) if extreme else images_of(6, seed, shape)
        moves, places = squares_in(images, ThreatModel(norm, eps)), np.arange(6)
        moves.start(random_words(seed, 0, places, block=0, words=1, columns=moves.start_columns)[0])
        assert (length(moves.bytes, images, norm) <= eps).all()
        for number, share in enumerate((0.8, 0.4, 0.1, 0.001)):
            words = random_words(seed, 0, places, block=1 + number, words=1, columns=moves.move_columns)[0]
            before = moves.bytes.copy()
            moves.move(moves.side(share), words)
            assert (length(moves.bytes, images, norm) <= eps).all()
            if norm == "linf":
                assert (moves.bytes != before).any(axis=(1, 2, 3)).all()
            rows = np.array([1, 4])
            moves.take_back(rows)
            np.testing.assert_array_equal(moves.bytes[rows], before[rows])
        images, kept = images[[0, 2, 3, 5]], moves.bytes[[0, 2, 3, 5]]
        moves.keep(np.array([True, False, True, True, False, True]))
        np.testing.assert_array_equal(moves.bytes, kept)
        words = random_words(seed, 0, np.arange(4), block=9, words=1, columns=moves.move_columns)[0]
        moves.move(moves.side(0.1), words)
        assert (length(moves.bytes, images, norm) <= eps).all()

    def test_l2_uses_the_whole_ball_again_and_again(self):
        images = np.full((8, 3, 16, 16), 128, np.uint8)
        moves, places = squares_in(images, ThreatModel("l2", 127.5)), np.arange(8)
        moves.start(random_words(0, 0, places, block=0, words=1, columns=moves.start_columns)[0])
        for block in range(1, 200):
            words = random_words(0, 0, places, block=block, words=1, columns=moves.move_columns)[0]
            moves.move(3, words)
        assert (length(moves.bytes, images, "l2") > 120).all()

    def test_numbers_and_bits_are_uniform(self):
        words = random_words(0, 0, np.arange(4000), block=0, words=1, columns=2)[0]
        counts = np.bincount(below(words, 7).ravel(), minlength=7)
        assert len(counts) == 7
        assert (((counts - 8000 / 7) ** 2) / (8000 / 7)).sum() < 22.5  # chi-squared, 6 degrees of freedom, p = 0.001
        drawn = bits(words, 40)
        assert drawn.shape == (4000, 40)
        assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.04
