"""Which layout a shape tells, and one clear line where it tells none or two."""

from __future__ import annotations

import pytest

from hardbit.importing.image_input import find_image
from hardbit.importing.preprocessing import Preprocessing
from hardbit_deploy.errors import HardbitError
from importing_examples import model_of, node


def found(sizes: list, layout: str = "auto", shape: tuple | None = None, kind: int = 1) -> tuple:
    model = model_of([node("Flatten", ["x"], "y")], {}, {"x": sizes}, kind=kind)
    image = find_image(model, Preprocessing(layout=layout), shape)
    return image.shape, image.channels_last


@pytest.mark.parametrize(
    ("sizes", "shape", "expected"),
    [
        (["n", 3, 32, 32], None, ((3, 32, 32), False)),
        ([1, 1, 28, 28], None, ((1, 28, 28), False)),
        (["n", 30, 30, 3], None, ((3, 30, 30), True)),
        ([None, 28, 28, 1], None, ((1, 28, 28), True)),
        (["n", 4, 16, 16], (4, 16, 16), ((4, 16, 16), False)),
        (["n", "h", "w", 3], (3, 20, 24), ((3, 20, 24), True)),
        (["n", 3, "h", "w"], (3, 20, 24), ((3, 20, 24), False)),
        ([1, 784, 1], (1, 28, 28), ((1, 28, 28), False)),
        (["n", 784], (1, 28, 28), ((1, 28, 28), False)),
        (["n", 28, 28], (1, 28, 28), ((1, 28, 28), False)),
        (["n", 3, 3, 3], (3, 3, 3), None),
    ],
)
def test_shapes_that_tell_and_that_do_not(sizes: list, shape: tuple | None, expected: tuple | None) -> None:
    if expected is not None:
        assert found(sizes, shape=shape) == expected
    else:
        with pytest.raises(HardbitError, match="channels first or last"):
            found(sizes, shape=shape)


def test_an_ambiguous_shape_is_settled_by_the_flag() -> None:
    assert found(["n", 3, 8, 3], "nchw") == ((3, 8, 3), False)
    assert found(["n", 3, 8, 3], "nhwc") == ((3, 3, 8), True)
    with pytest.raises(HardbitError, match="channels first or last") as caught:
        found(["n", 3, 8, 3])
    assert "--layout" in caught.value.remedy


def test_a_row_of_colours_needs_the_flag() -> None:
    with pytest.raises(HardbitError, match="channels first or last"):
        found(["n", 3072], shape=(3, 32, 32))
    assert found(["n", 3072], "nhwc", (3, 32, 32)) == ((3, 32, 32), True)


def test_a_row_does_not_tell_its_image() -> None:
    with pytest.raises(HardbitError, match="does not tell the size") as caught:
        found([1, 784, 1])
    assert "--image-shape" in caught.value.remedy


@pytest.mark.parametrize(
    ("sizes", "layout", "shape"),
    [(["n", 3, 32, 32], "auto", (3, 30, 30)), (["n", 3, 32, 32], "nhwc", (3, 32, 32)), ([1, 784], "auto", (3, 28, 28))],
)
def test_images_that_do_not_fit(sizes: list, layout: str, shape: tuple) -> None:
    with pytest.raises(HardbitError, match="the images"):
        found(sizes, layout, shape)


def test_no_batch_and_no_numbers() -> None:
    with pytest.raises(HardbitError, match="no batch of images"):
        found([784], shape=(1, 28, 28))
    with pytest.raises(HardbitError, match="STRING"):
        found(["n", 3, 8, 8], kind=8)
