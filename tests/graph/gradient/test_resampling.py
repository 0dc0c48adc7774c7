"""Pad and Resize: against torch where it has the same, else against finite differences of what ONNX Runtime runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional

from gradient_reference import check_adjoint, check_rule, differentiate, for_all, one_operator
from hardbit.graph.gradient import UnsupportedOperator

MANY = pytest.mark.parametrize("examples", [15, pytest.param(200, marks=pytest.mark.slow)])


def draws(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@st.composite
def paddings(draw):
    mode = draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    least = -2 if mode == "constant" else 0
    return mode, [draw(st.integers(least, 3)) for _ in range(4)], draw(st.booleans())


@MANY
def test_padding(examples):
    def holds(case):
        mode, (top, left, bottom, right), by_axes = case
        if by_axes:  # rows last, so the order of the axes counts
            constants = {"p": np.array([left, top, right, bottom]), "a": np.array([-1, 2])}
        else:
            constants = {"p": np.array([0, 0, top, left, 0, 0, bottom, right])}
        inputs = ["x", "p", "v" if mode == "constant" else "", *(["a"] if by_axes else [])]
        constants |= {"v": np.float32(1.5)} if mode == "constant" else {}
        names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}

        def by_torch(image):
            value = 1.5 if mode == "constant" else None
            return functional.pad(image, (left, right, top, bottom), names[mode], value)

        node = helper.make_node("Pad", inputs, ["y"], name="pad", mode=mode)
        check_rule([node], draws(2, 3, 5, 4), by_torch, constants, in_double=min(top, left, bottom, right) >= 0)

    for_all(paddings(), holds, examples)


TORCH_MODES = [
    ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, {"mode": "nearest"}),
    ({"mode": "linear"}, {"mode": "bilinear", "align_corners": False}),
    (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "bilinear", "align_corners": True},
    ),
    ({"mode": "cubic", "cubic_coeff_a": -0.75}, {"mode": "bicubic", "align_corners": False}),
]


@pytest.mark.parametrize(("options", "by_torch"), TORCH_MODES)
@pytest.mark.parametrize("size", [(8, 10), (7, 9), (3, 2)])
def test_resizing_as_torch_does(options, by_torch, size):
    if by_torch["mode"] == "nearest" and size == (7, 9):
        return  # torch rounds the places of its own accord there
    node = helper.make_node("Resize", ["x", "", "", "s"], ["y"], name="resize", axes=[2, 3], **options)
    function = lambda i: functional.interpolate(i, size, **by_torch)  # noqa: E731
    check_rule([node], draws(2, 3, 4, 5), function, {"s": np.array(size)}, tolerance=1e-5)


@st.composite
def resizes(draw):
    """Every mode of coordinates and rounding that ONNX Runtime runs, by scales or by sizes."""
    coordinates = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    options = {
        "mode": draw(st.sampled_from(["nearest", "linear"])),
        "coordinate_transformation_mode": draw(st.sampled_from(coordinates)),
    }
    if options["mode"] == "nearest":
        modes = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        options["nearest_mode"] = draw(st.sampled_from(modes))
    scales = [draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5])) for _ in range(2)]
    return options, scales, draw(st.booleans())


@MANY
def test_inner_products_are_preserved_by_every_way_of_resizing(examples):
    def holds(case):
        options, scales, by_size = case
        x = draws(2, 3, 4, 6)
        if by_size:
            sizes = [int(size * scale) for size, scale in zip(x.shape[2:], scales, strict=True)]
            inputs, constants = ["x", "", "", "s"], {"s": np.array(sizes)}
        else:
            inputs, constants = ["x", "", "s"], {"s": np.array(scales, np.float32)}
        check_adjoint([helper.make_node("Resize", inputs, ["y"], name="resize", axes=[2, 3], **options)], x, constants)

    for_all(resizes(), holds, examples)


@pytest.mark.parametrize(
    ("node", "constants", "message"),
    [
        (helper.make_node("Pad", ["x", "p"], ["y"], name="odd"), {"p": np.array([1, 0, 0, 0])}, "Pad of the batch"),
        (
            helper.make_node("Pad", ["x", "p"], ["y"], name="odd", mode="edge"),
            {"p": np.array([0, -1, 0, 0])},
            "Pad that crops",
        ),
    ],
)
def test_what_is_refused(node, constants, message):
    model = one_operator([node], draws(2, 3), (2, 3 if message.endswith("batch") else 2), constants)
    with pytest.raises(UnsupportedOperator, match=f"odd.*{message}"):
        differentiate(model, "y", "x")


def test_a_padding_that_the_image_fills_is_refused():
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        helper.make_node("Pad", ["x", "p", "m"], ["y"], name="odd"),
    ]
    model = one_operator(nodes, draws(2, 3), (2, 4), {"p": np.array([0, 1, 0, 0])})
    with pytest.raises(UnsupportedOperator, match=r"odd.*constant value depends on the image"):
        differentiate(model, "y", "x")
