"""Agreement of the canonical graph with the twin: what passes, and what the error says."""

import numpy as np
import pytest

from hardbit.steps.step import StepError
from hardbit.steps.twin import Agreement, require_agreement

LOGITS = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.5]], np.float32)


def test_equal_logits_agree():
    assert require_agreement(LOGITS, LOGITS.copy(), "clean") == Agreement(flips=0, difference=0)


def test_a_difference_within_bounds_is_reported():
    found = require_agreement(LOGITS, LOGITS + np.float32(5e-5), "clean")
    assert found.flips == 0
    assert found.difference == pytest.approx(5e-5, rel=0.01)


def test_a_label_that_differs_is_an_error_with_numbers():
    other = LOGITS.copy()
    other[2] = [0.6, 0.5]
    with pytest.raises(
        StepError, match=r"on 3 adversarial images 1 labels differ and the largest logit difference is 0\.6"
    ):
        require_agreement(LOGITS, other, "adversarial")


@pytest.mark.parametrize("wrong", [2e-4, np.nan])
def test_logits_apart_are_an_error_even_with_equal_labels(wrong):
    with pytest.raises(StepError, match="0 labels differ") as caught:
        require_agreement(LOGITS, LOGITS + np.array([[0, wrong], [0, 0], [0, 0]], np.float32), "clean")
    assert caught.value.exit_code == 70


FLOAT_PARTS = [{"name": "norm", "reason": "no integer kernel does that"}]


def many_logits(count=400):
    return np.random.default_rng(0).normal(size=(count, 10)).astype(np.float32)


def test_with_float_parts_codes_that_moved_on_some_images_are_counted_and_allowed():
    twin = many_logits()
    canonical = twin + np.float32(1e-6)
    canonical[:40] += np.random.default_rng(1).normal(size=(40, 10)).astype(np.float32) * 0.05
    found = require_agreement(twin, canonical, "clean", FLOAT_PARTS)
    assert found.flips == (twin.argmax(1) != canonical.argmax(1)).sum() <= 4
    with pytest.raises(StepError, match=r"allowed are 0 and 0\.0001"):
        require_agreement(twin, canonical, "clean")


def test_too_many_labels_apart_are_an_error_that_names_a_float_part_and_its_reason():
    twin = many_logits()
    canonical = twin.copy()
    canonical[:5] = -canonical[:5]
    with pytest.raises(StepError, match=r"5 labels differ .* allowed are 4 .*as 1 places .*'norm': no integer kernel"):
        require_agreement(twin, canonical, "clean", FLOAT_PARTS)


@pytest.mark.parametrize("change", [0.3, np.nan])
def test_another_network_is_an_error_even_with_equal_labels(change):
    twin = many_logits()
    twin[np.arange(400), twin.argmax(1)] += 100
    canonical = twin + np.float32(change) * twin.max()
    with pytest.raises(StepError, match="not the trained network: on 400 clean images"):
        require_agreement(twin, canonical, "clean", FLOAT_PARTS)


WIDE = [{"name": "conv9", "reason": "its sums can outgrow the whole numbers of float32"}]


def test_where_sums_may_round_a_few_images_may_differ_and_the_others_may_not():
    twin = many_logits()
    canonical = twin.copy()
    canonical[:40] += np.float32(0.01)
    assert require_agreement(twin, canonical, "clean", (), WIDE).difference == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(StepError, match=r"allowed are 4 and 0\.0001 \(0\.01 on half .*'conv9': its sums can outgrow"):
        require_agreement(twin, twin + np.float32(0.01), "clean", (), WIDE)
