"""Slice and Gather: bounds of any kind, backward, with repetitions; and what they may not pick."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import helper

from gradient_reference import check_rule, differentiate, for_all, one_operator
from hardbit.graph.gradient import UnsupportedOperator

MANY = pytest.mark.parametrize("examples", [40, pytest.param(400, marks=pytest.mark.slow)])
SHAPE = (2, 3, 4, 5)
EVERYTHING = np.iinfo(np.int64).max


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(*values):
    return np.array(values, np.int64)


@st.composite
def slices(draw):
    """Bounds for some axes, any step, and at least one value left of each."""
    axes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True))
    chosen = []
    for axis in axes:
        size = SHAPE[axis]
        step = draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        start = draw(st.integers(0, size - 1))
        if step > 0:
            end = draw(st.sampled_from([*range(start + 1, size + 1), EVERYTHING]))
        else:
            end = draw(st.sampled_from([*range(start), -size - 1, -EVERYTHING]))
        start = start - size if draw(st.booleans()) else start
        chosen.append((axis - 4 if draw(st.booleans()) else axis, start, end, step))
    return chosen


@MANY
def test_slice(examples):
    def holds(chosen):
        axes, starts, ends, steps = (integers(*values) for values in zip(*chosen, strict=True))
        index = [slice(None)] * 4
        for axis, start, end, step in chosen:
            index[axis] = slice(start, None if step < 0 and end < -SHAPE[axis] else min(end, 99), step)
        picked = [np.arange(size)[index[axis]] for axis, size in enumerate(SHAPE)]

        def by_torch(image):
            for axis, places in enumerate(picked):
                image = image.index_select(axis, torch.tensor(places.copy()))
            return image

        node = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"], name="slice")
        constants = {"s": starts, "e": ends, "a": axes, "t": steps}
        check_rule([node], draws(*SHAPE), by_torch, constants, in_double=True)

    for_all(slices(), holds, examples)


def test_a_slice_of_leading_axes_by_default_that_takes_the_whole_batch():
    node = helper.make_node("Slice", ["x", "s", "e"], ["y"], name="slice")
    check_rule([node], draws(2, 5), lambda i: i[:, 1:3], {"s": integers(0, 1), "e": integers(EVERYTHING, 3)})


@st.composite
def gathers(draw):
    axis = draw(st.integers(1, 3))
    size = SHAPE[axis]
    shape = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    indices = draw(st.lists(st.integers(-size, size - 1), min_size=4, max_size=4))[: int(np.prod(shape, dtype=int))]
    return axis if draw(st.booleans()) else axis - 4, np.array(indices, np.int64).reshape(shape)


@MANY
def test_gather(examples):
    def holds(case):
        axis, indices = case
        places = torch.from_numpy(np.asarray(indices % SHAPE[axis]))
        where = axis % 4

        def by_torch(image):
            picked = image.index_select(where, places.flatten())
            return picked.reshape(*SHAPE[:where], *indices.shape, *SHAPE[where + 1 :])

        node = helper.make_node("Gather", ["x", "i"], ["y"], name="gather", axis=axis)
        check_rule([node], draws(*SHAPE), by_torch, {"i": indices}, in_double=True)

    for_all(gathers(), holds, examples)


@pytest.mark.parametrize(
    ("node", "constants", "message"),
    [
        (helper.make_node("Gather", ["x", "i"], ["y"], name="odd"), {"i": integers(0)}, "Gather along the batch"),
        (
            helper.make_node("Slice", ["x", "s", "e", "a"], ["y"], name="odd"),
            {"s": integers(1), "e": integers(EVERYTHING), "a": integers(0)},
            "Slice of the batch",
        ),
        (
            helper.make_node("Slice", ["x", "s", "e", "a"], ["y"], name="odd"),
            {"s": integers(0), "e": integers(1), "a": integers(0)},
            "Slice of the batch",
        ),
    ],
)
def test_picking_images_out_of_the_batch_is_refused(node, constants, message):
    model = one_operator([node], draws(3, 4), (1, 4), constants)
    with pytest.raises(UnsupportedOperator, match=f"odd.*{message}"):
        differentiate(model, "y", "x")
