"""Pictures of any size to bytes of one shape: both rules against arithmetic done by hand, and what is refused."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hardbit.data.pictures import covering, read_picture, resized
from hardbit_deploy.errors import HardbitError
from published_examples import picture


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_resizing_is_bilinear_interpolation_as_pillow_does_it_without_its_low_pass_filter(
    rows, columns, height, width, seed
):
    """Pillow's affine transform samples at pixel centres and rounds down."""
    original = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8))
    affine = (columns / width, 0.0, 0.0, 0.0, rows / height, 0.0)
    expected = original.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    found = resized(original, height, width)
    assert found.dtype == np.uint8
    difference = found.astype(int) - np.asarray(expected)
    assert set(np.unique(difference)) <= {0, 1}


def test_resizing_by_hand():
    ramp = Image.fromarray(np.array([[0, 40, 80, 120]], np.uint8))
    assert resized(ramp, 1, 2).tolist() == [[20, 100]]  # half-way between the outer pairs
    assert resized(ramp, 3, 8)[2].tolist() == [0, 10, 30, 50, 70, 90, 110, 120]  # quarters between, edges repeat


def test_a_picture_of_the_right_size_is_left_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for rule in (resized, covering):
        assert np.array_equal(rule(Image.fromarray(pixels), 32, 32), pixels)


@pytest.mark.parametrize(("rows", "columns", "factor"), [(64, 64, 2), (96, 96, 3), (64, 200, 2), (200, 64, 2)])
def test_covering_cuts_out_the_middle_and_averages_where_it_shrinks(rows, columns, factor):
    """A fine chequerboard becomes even grey; an even colour outside the middle square is never seen."""
    board = np.indices((rows, columns)).sum(0) % 2 * 100 + 50
    side, top, left = min(rows, columns), (rows - min(rows, columns)) // 2, (columns - min(rows, columns)) // 2
    pixels = np.full((rows, columns), 255, np.uint8)
    pixels[top : top + side, left : left + side] = board[:side, :side]
    found = covering(Image.fromarray(pixels), side // factor, side // factor)
    inner = found[2:-2, 2:-2].astype(int)
    assert np.abs(inner - 100).max() <= 10
    assert found.max() < 160


def test_a_picture_is_taken_as_a_viewer_shows_it():
    red = Image.new("RGB", (4, 2), (200, 0, 0))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    red.save(buffer, "JPEG", exif=exif)
    assert read_picture(buffer, "x", 3).size == (2, 4)
    buffer = io.BytesIO()
    red.quantize(2).save(buffer, "GIF")
    assert read_picture(buffer, "x", 3).getpixel((0, 0)) == (200, 0, 0)
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(buffer, "PNG")
    assert read_picture(buffer, "x", 3).getpixel((0, 0)) == (10, 20, 30)
    grey = read_picture(io.BytesIO(picture(np.full((2, 2), 77, np.uint8), "PNG")), "x", 3)
    assert grey.getpixel((0, 0)) == (77, 77, 77)
    assert read_picture(io.BytesIO(picture(np.asarray(red), "PNG")), "x", 1).mode == "L"


def sixteen_bits():
    return picture(np.zeros((4, 4), np.uint16), "PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x: this picture cannot be read"),
        (b"hello", "x: this picture cannot be read: cannot identify image file"),
        (picture(np.zeros((40, 40, 3), np.uint8), "PNG")[:60], "x: this picture cannot be read"),
        (picture(np.zeros((40, 40, 3), np.uint8), "JPEG")[:300], "x: this picture cannot be read"),
        (sixteen_bits(), r"x: it has more than 8 bits a channel \(I;16\); convert it to 8 bits"),
    ],
    ids=["empty", "text", "half a PNG", "half a JPEG", "16 bits"],
)
def test_what_no_picture_can_be_made_of_is_named(content, message):
    with pytest.raises(HardbitError, match=message):
        read_picture(io.BytesIO(content), "x", 3)


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(HardbitError, match="this picture cannot be read: Image size"):
        read_picture(io.BytesIO(picture(np.zeros((40, 40), np.uint8), "PNG")), "x", 1)
