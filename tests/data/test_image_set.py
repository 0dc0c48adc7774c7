"""Splits of an image set, and the sets by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardbit.data import ImageSet, carve_validation, load_images
from hardbit_deploy.errors import HardbitError


def numbered(count: int) -> ImageSet:
    """A set whose labels and pixels tell which image is which."""
    numbers = np.arange(count)
    return ImageSet(
        np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (count, 1, 2, 2)),
        numbers.astype(np.int64),
        tuple(map(str, numbers)),
        "numbered",
    )


@given(st.integers(2, 200), st.data())
def test_a_validation_split_takes_every_image_exactly_once(total, data):
    count = data.draw(st.integers(1, total - 1))
    seed = data.draw(st.integers(0, 2**32))
    rest, validation = carve_validation(numbered(total), count, seed)
    assert len(validation) == count
    assert sorted([*rest.labels, *validation.labels]) == list(range(total))
    assert np.all(np.diff(rest.labels) > 0)
    assert np.array_equal(validation.images[:, 0, 0, 0], validation.labels.astype(np.uint8))
    again = carve_validation(numbered(total), count, seed)
    assert np.array_equal(again[1].labels, validation.labels)


def test_the_seed_decides_the_split():
    splits = {tuple(carve_validation(numbered(100), 10, seed)[1].labels) for seed in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize("count", [0, 10, 11, -1])
def test_a_split_that_leaves_nothing_is_refused(count):
    with pytest.raises(HardbitError, match="cannot be carved from 10 images; ask for 1 to 9"):
        carve_validation(numbered(10), count, 0)


def test_more_images_than_there_are():
    assert len(numbered(10).first(10)) == 10
    with pytest.raises(HardbitError, match="11 images are asked for, there are 10"):
        numbered(10).first(11)


def test_unknown_sets_and_splits_are_named():
    with pytest.raises(HardbitError, match="there is no data set 'cifar'; known"):
        load_images("cifar", "test")
    with pytest.raises(HardbitError, match="there is no split 'validation'"):
        load_images("fashion-mnist", "validation")
