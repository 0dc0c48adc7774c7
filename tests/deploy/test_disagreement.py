"""The attack on agreement: it finds what noise does not, stays in the ball, and finds nothing between equals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import bundle_examples
import canonical_examples
from bundle_examples import smooth_images
from hardbit.targets import lower
from hardbit_deploy import engines
from hardbit_deploy.agreement_search import agreement_row
from hardbit_deploy.attacks import ThreatModel
from hardbit_deploy.attacks.disagreement import Disagreement, disagreement
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.check import CheckOptions, check
from hardbit_deploy.engines import Target
from hardbit_deploy.statistics import clopper_pearson_upper
from hardbit_deploy.summary import result_summary
from linear_examples import LinearEngine, LinearGradient, linear_target

SHAPE = (1, 12, 12)
LINF, L2 = ThreatModel("linf", 8.0), ThreatModel("l2", 60.0)


def rounded_differently(apart: float) -> Target:
    """Two linear classifiers of small weights, of which the engine's logits are raised by up to `apart`."""
    weights = np.random.default_rng(0).normal(size=(10, 144)).astype(np.float32) * np.float32(0.3)
    bias = np.random.default_rng(1).uniform(0, apart, 10).astype(np.float32)
    return Target(LinearEngine(weights, SHAPE, bias), LinearGradient(weights, SHAPE)).activate()


def labels_differ(target: Target, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    differ: NDArray[np.bool_] = target.engine.infer(images).argmax(1) != target.gradient.logits(images).argmax(1)
    return differ


def attack(target: Target, images: NDArray[np.uint8], model: ThreatModel = LINF, **settings: int) -> Disagreement:
    return disagreement(target.engine, target.gradient, images, model, **settings)


# --- strength ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [LINF, L2], ids=["linf", "l2"])
def test_flips_that_no_image_and_no_noise_shows_are_found(model: ThreatModel) -> None:
    """Logits apart by at most 0.002, gaps of some tenths: of clean images and as many random points none differs."""
    target, images = rounded_differently(0.002), smooth_images(32, SHAPE)
    found = attack(target, images, model)
    noise = [
        random_start(images, model, seed=0, stream=stream, indices=np.arange(32))
        for stream in range(found.points // 32)
    ]
    by_noise = np.any([labels_differ(target, points) for points in [images, *noise]], axis=0)
    assert by_noise.mean() < 0.1
    assert found.flipped.mean() > 0.7
    assert np.array_equal(labels_differ(target, found.images), found.flipped)


def test_each_phase_brings_the_two_greatest_logits_nearer() -> None:
    target, images = linear_target(), smooth_images(24, SHAPE)

    def gap(steps: int, queries: int) -> float:
        logits = np.sort(target.engine.infer(attack(target, images, steps=steps, queries=queries).images), axis=1)
        return float(np.median(logits[:, -1] - logits[:, -2]))

    clean = np.sort(target.engine.infer(images), axis=1)
    walked, climbed = gap(20, 0), gap(20, 60)
    assert walked < 0.05 * float(np.median(clean[:, -1] - clean[:, -2]))
    assert climbed < walked / 2


def test_the_largest_difference_grows_where_there_is_one_to_find() -> None:
    """A fault in one weight: the difference of logits grows with that pixel, and the local search turns it up."""
    target = linear_target()
    faulty = target.engine
    assert isinstance(faulty, LinearEngine)
    faulty.weights = faulty.weights.copy()
    faulty.weights[:, 70] += np.float32(5.0)
    images = np.full((4, *SHAPE), 129, np.uint8)
    found = attack(target, images, queries=200)
    at_image = np.abs(faulty.infer(images) - target.gradient.logits(images)).max(axis=1)
    assert (found.difference > 2 * at_image).all()


# --- between equals ---------------------------------------------------------------------------------------------------


def test_between_equals_nothing_is_found() -> None:
    target = linear_target()
    found = attack(target, smooth_images(16, SHAPE))
    assert not found.flipped.any()
    assert not found.difference.any()
    assert found.points > 16 * 80


def test_a_lowered_network_agrees_with_its_attack_graph_everywhere(tmp_path: Path) -> None:
    row = agreement_row(bundle_examples.build_bundle(tmp_path / "b", count=24))
    assert (row["name"], row["images"], row["label_flips"], row["max_logit_difference"]) == ("disagreement", 24, 0, 0.0)
    assert row["flips_upper_bound"] == clopper_pearson_upper(0, 24)


# --- a planted fault --------------------------------------------------------------------------------------------------


def one_bias_off_by_one() -> onnx.ModelProto:
    """The engine graph, with one unit in the last place of an accumulator too many in one channel of `fc2`."""
    engine = lower(canonical_examples.plain_cnn(), "onnxruntime")
    last = next(node for node in engine.graph.node if node.name == "fc2")
    dequantize = next(node for node in engine.graph.node if node.output[0] == last.input[2])
    bias = next(tensor for tensor in engine.graph.initializer if tensor.name == dequantize.input[0])
    codes = numpy_helper.to_array(bias).copy()
    codes[::2] += 1
    bias.CopyFrom(numpy_helper.from_array(codes, bias.name))
    return engine


def test_an_engine_that_is_off_by_one_is_exposed(tmp_path: Path) -> None:
    """No clean image has another label, and the row says that images exist which do."""
    model = {"norm": "linf", "eps_255": 16.0}
    faulty = bundle_examples.build_bundle(tmp_path / "b", engine=one_bias_off_by_one(), count=40, threat_model=model)
    with engines.open_target(faulty) as target:
        assert not labels_differ(target, np.array(faulty.images)).any()
    row = agreement_row(faulty)
    assert row["label_flips"] > 0
    assert row["max_logit_difference"] > 0
    assert row["flips_upper_bound"] == clopper_pearson_upper(row["label_flips"], 40)


# --- rules of every attack --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [LINF, L2, ThreatModel("linf", 2.7)], ids=["linf", "l2", "linf 2.7"])
def test_every_point_lies_in_the_ball(model: ThreatModel) -> None:
    target, images = rounded_differently(0.01), smooth_images(12, SHAPE)
    images[:4], images[4:8] = 0, 255
    found = attack(target, images, model, queries=24)
    engine = target.engine
    assert isinstance(engine, LinearEngine)
    looked_at = [batch.astype(int) - images for batch in engine.seen]
    if model.norm == "linf":
        assert max(int(np.abs(delta).max()) for delta in looked_at) == math.floor(model.eps_255)
    else:
        assert max(float((delta**2).sum(axis=(1, 2, 3)).max()) for delta in looked_at) <= model.eps_255**2
    assert found.images.dtype == np.uint8
    assert found.points == sum(len(batch) for batch in engine.seen)


def test_what_is_found_depends_neither_on_flights_nor_on_neighbours() -> None:
    images, whole = smooth_images(10, SHAPE), rounded_differently(0.01)
    together = attack(whole, images, seed=3, queries=20)
    whole.engine.images_in_flight = 3
    flown = attack(whole, images, seed=3, queries=20)
    alone = disagreement(
        whole.engine, whole.gradient, images[7:], LINF, seed=3, queries=20, indices=np.arange(7, 10, dtype=np.int64)
    )
    assert np.array_equal(together.images, flown.images)
    assert np.array_equal(together.difference, flown.difference)
    assert np.array_equal(together.images[7:], alone.images)
    assert not np.array_equal(together.images, attack(whole, images, seed=4, queries=20).images)


def test_logits_that_are_no_numbers_count_as_apart() -> None:
    target = linear_target()
    engine = target.engine
    assert isinstance(engine, LinearEngine)
    engine.bias = np.full(10, np.nan, np.float32)
    found = attack(target, smooth_images(3, SHAPE), steps=2, queries=2)
    assert (found.difference == np.finfo(np.float32).max).all()


def test_no_images_are_no_work() -> None:
    found = attack(linear_target(), np.zeros((0, *SHAPE), np.uint8))
    assert found.points == 0
    assert found.images.shape == (0, *SHAPE)


# --- in a result ------------------------------------------------------------------------------------------------------


def test_a_result_has_the_row_beside_the_others_and_no_alarm_counts_it(tmp_path: Path) -> None:
    model = {"norm": "linf", "eps_255": 16.0}
    faulty = bundle_examples.build_bundle(tmp_path / "b", engine=one_bias_off_by_one(), count=40, threat_model=model)
    options = CheckOptions(latency=None, workers=1, square_queries=0, steps=1)
    document = check(faulty.path, None, tmp_path / "out", options)
    row = document["agreement"][-1]
    assert row["name"] == "disagreement"
    assert row["label_flips"] > 0
    parity = next(alarm for alarm in document["alarms"] if alarm["name"] == "parity")
    assert "disagreement" not in parity["reason"]
    assert "disagreement" in result_summary(document)
