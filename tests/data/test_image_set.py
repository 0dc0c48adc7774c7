"""Splits of an image set, and the sets by name."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
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


@given(st.lists(st.integers(0, 12), min_size=2, max_size=120), st.data())
def test_groups_are_never_parted_and_as_few_are_taken_as_hold_enough(groups, data):
    images = replace(numbered(len(groups)), groups=np.array(groups, np.int64))
    count, seed = data.draw(st.integers(1, len(groups) - 1)), data.draw(st.integers(0, 2**32))
    largest = max(groups.count(group) for group in groups)
    assume(len(groups) - count >= largest)  # else the last group drawn may be the last there is
    rest, validation = carve_validation(images, count, seed)
    assert count <= len(validation) < count + largest
    assert not set(rest.groups) & set(validation.groups)
    assert sorted([*rest.labels, *validation.labels]) == list(range(len(groups)))
    assert np.array_equal(images.groups[validation.labels], validation.groups)
    assert np.array_equal(carve_validation(images, count, seed)[1].labels, validation.labels)


def test_a_split_of_one_group_is_refused():
    images = replace(numbered(10), groups=np.zeros(10, np.int64))
    with pytest.raises(HardbitError, match="a validation split of 3 whole groups leaves nothing of 10 images"):
        carve_validation(images, 3, 0)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(HardbitError, match=r"10 images have groups int64 \(9,\)"):
        replace(numbered(10), groups=np.zeros(9, np.int64))


def test_more_images_than_there_are():
    assert len(numbered(10).first(10)) == 10
    with pytest.raises(HardbitError, match="11 images are asked for, there are 10"):
        numbered(10).first(11)


def test_unknown_sets_and_splits_are_named():
    with pytest.raises(HardbitError, match="there is no data set 'cifar'; known"):
        load_images("cifar", "test")
    with pytest.raises(HardbitError, match="there is no split 'validation'"):
        load_images("fashion-mnist", "validation")
