"""Agreement of the canonical graph with the twin: what passes, and what the error says."""

import numpy as np
import pytest

from hardbit.steps.step import StepError
from hardbit.steps.twin import require_agreement

LOGITS = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.5]], np.float32)


def test_equal_logits_agree():
    assert require_agreement(LOGITS, LOGITS.copy(), "clean") == 0


def test_a_difference_within_bounds_is_reported():
    assert require_agreement(LOGITS, LOGITS + np.float32(5e-5), "clean") == pytest.approx(5e-5, rel=0.01)


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
