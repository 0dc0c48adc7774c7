"""Images of a report: the bytes that the engine got, and changes that can be seen."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from hardbit.report.pictures import DARKER, LIGHTER, UNCHANGED, amplification, image_uri, perturbation_uri


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_comes_back_byte_for_byte(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 8, 6), dtype=np.uint8)
    assert np.array_equal(decoded(image_uri(image)), image[0] if channels == 1 else image.transpose(1, 2, 0))


def test_grey_changes_are_blue_where_darker_and_orange_where_lighter() -> None:
    clean = np.full((1, 1, 3), 100, np.uint8)
    attacked = np.array([[[75, 100, 125]]], np.uint8)
    darker, same, lighter = decoded(perturbation_uri(clean, attacked, 5))[0].astype(int)
    assert np.abs(darker - DARKER).max() <= 4  # 125 of 127
    assert np.array_equal(same, UNCHANGED)
    assert np.abs(lighter - LIGHTER).max() <= 4


def test_colour_changes_are_drawn_about_mid_grey() -> None:
    clean = np.full((3, 1, 1), 100, np.uint8)
    attacked = np.array([90, 100, 104], np.uint8).reshape(3, 1, 1)
    assert decoded(perturbation_uri(clean, attacked, 10)).ravel().tolist() == [28, 128, 168]


@pytest.mark.parametrize(("largest", "times"), [(0, 127), (1, 127), (2, 63), (25, 5), (127, 1), (255, 1)])
def test_amplification_uses_the_range_and_never_leaves_it(largest: int, times: int) -> None:
    clean = np.zeros((2, 1, 2, 2), np.uint8)
    attacked = clean.copy()
    attacked[1, 0, 0, 0] = largest
    assert amplification(clean, attacked) == times
    assert amplification(attacked, clean) == times
