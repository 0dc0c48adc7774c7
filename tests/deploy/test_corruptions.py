"""Corruptions: each against a direct formula, and what holds of all of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hardbit_deploy.attacks.corruptions import (
    BLUR_PIXELS,
    CONTRAST,
    JPEG_QUALITY,
    KINDS,
    NOISE_255,
    SEVERITIES,
    corrupt,
    quantization_table,
)
from hardbit_deploy.errors import HardbitError


def pictures(count: int = 4, shape=(3, 19, 28), seed: int = 0):
    """Smooth pictures with edges and some noise, as photographs have."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    made = np.empty((count, *shape))
    for image, channel in itertools.product(range(count), range(shape[0])):
        waves = np.sin(rows * rng.uniform(0.1, 0.9) + columns * rng.uniform(0.1, 0.9) + rng.uniform(0, 6))
        edge = (rows * rng.uniform(-1, 1) + columns > rng.uniform(0, shape[2])) * rng.uniform(20, 80)
        made[image, channel] = 110 + 50 * waves + edge + rng.normal(0, 3, shape[1:])
    return np.clip(made, 0, 255).astype(np.uint8)


def direct_dct(block):
    """The definition in ITU-T T.81 A.3.3, term by term."""
    out = np.zeros((8, 8))
    for u, v in itertools.product(range(8), range(8)):
        factor = (1 / math.sqrt(2) if u == 0 else 1) * (1 / math.sqrt(2) if v == 0 else 1) / 4
        for x, y in itertools.product(range(8), range(8)):
            across = math.cos((2 * x + 1) * u * math.pi / 16) * math.cos((2 * y + 1) * v * math.pi / 16)
            out[u, v] += factor * block[x, y] * across
    return out


def direct_inverse(coefficients):
    out = np.zeros((8, 8))
    for x, y in itertools.product(range(8), range(8)):
        for u, v in itertools.product(range(8), range(8)):
            factor = (1 / math.sqrt(2) if u == 0 else 1) * (1 / math.sqrt(2) if v == 0 else 1) / 4
            across = math.cos((2 * x + 1) * u * math.pi / 16) * math.cos((2 * y + 1) * v * math.pi / 16)
            out[x, y] += factor * coefficients[u, v] * across
    return out


class TestAgainstTheFormula:
    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_jpeg_of_one_channel(self, severity):
        images = pictures(1, (1, 16, 11))
        table = quantization_table(JPEG_QUALITY[severity - 1])
        wide = np.pad(images[0, 0].astype(float), ((0, 0), (0, 5)), mode="edge")
        expected = np.zeros_like(wide)
        for top, left in itertools.product((0, 8), (0, 8)):
            place = np.s_[top : top + 8, left : left + 8]
            kept = np.rint(direct_dct(wide[place] - 128) / table) * table
            expected[place] = direct_inverse(kept) + 128
        found = corrupt(images, "jpeg", severity, 0, np.arange(1))[0, 0]
        np.testing.assert_allclose(found, np.clip(expected[:, :11], 0, 255), atol=0.51)

    def test_the_dct_is_scipys(self):
        fft = pytest.importorskip("scipy.fft")
        block = pictures(1, (1, 8, 8))[0, 0].astype(float) - 128
        np.testing.assert_allclose(direct_dct(block), fft.dctn(block, norm="ortho"), atol=1e-9)

    def test_colours_that_do_not_change_across_a_block_come_back_within_a_step(self):
        """A flat block has one coefficient in each plane, eight times its value: the table's first step over 16."""
        images = np.broadcast_to(np.array([200, 30, 90], np.uint8)[:, None, None], (1, 3, 8, 8)).copy()
        for severity in SEVERITIES:
            steps = [quantization_table(JPEG_QUALITY[severity - 1], chrominance=c)[0, 0] / 16 for c in (False, True)]
            found = corrupt(images, "jpeg", severity, 0, np.arange(1)).astype(float)
            assert found.std(axis=(2, 3)).max() == 0
            assert np.abs(found - images).max() <= steps[0] + 1.772 * steps[1] + 0.5

    def test_tables_are_those_of_the_independent_jpeg_group(self):
        """Quality 50 is the standard's own table, 100 has steps of one, 25 has twice the steps of 50."""
        np.testing.assert_array_equal(quantization_table(50)[0], [16, 11, 10, 16, 24, 40, 51, 61])
        np.testing.assert_array_equal(quantization_table(50, chrominance=True)[2], [24, 26, 56, 99, 99, 99, 99, 99])
        assert (quantization_table(100) == 1).all()
        np.testing.assert_array_equal(quantization_table(25), np.minimum(2 * quantization_table(50), 255))
        np.testing.assert_array_equal(quantization_table(80)[0], [6, 4, 4, 6, 10, 16, 20, 24])

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_blur(self, severity):
        images = pictures(1, (2, 7, 9))
        deviation = BLUR_PIXELS[severity - 1]
        reach = int(4 * deviation + 0.5)
        offsets = range(-reach, reach + 1)
        weights = {k: math.exp(-(k**2) / (2 * deviation**2)) for k in offsets}
        total = sum(weights.values())
        expected = np.zeros(images.shape[1:])
        for channel, row, column in np.ndindex(*expected.shape):
            for down, across in itertools.product(offsets, offsets):
                place = min(max(row + down, 0), 6), min(max(column + across, 0), 8)
                expected[channel, row, column] += weights[down] * weights[across] / total**2 * images[0, channel][place]
        np.testing.assert_allclose(corrupt(images, "blur", severity, 0, np.arange(1))[0], expected, atol=0.51)

    def test_blur_is_scipys(self):
        ndimage = pytest.importorskip("scipy.ndimage")
        images = pictures(2)
        for severity in SEVERITIES:
            sigma = (0, 0, BLUR_PIXELS[severity - 1], BLUR_PIXELS[severity - 1])
            expected = ndimage.gaussian_filter(images.astype(float), sigma, mode="nearest", truncate=4.0)
            np.testing.assert_allclose(corrupt(images, "blur", severity, 0, np.arange(2)), expected, atol=0.51)

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_contrast(self, severity):
        images = pictures(2)
        means = images.mean(axis=(2, 3), keepdims=True)
        expected = CONTRAST[severity - 1] * (images - means) + means
        np.testing.assert_allclose(corrupt(images, "contrast", severity, 0, np.arange(2)), expected, atol=0.51)

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_noise_is_normal(self, severity):
        images = np.full((20, 3, 32, 32), 128, np.uint8)
        added = corrupt(images, "noise", severity, 0, np.arange(20)).astype(float) - 128
        deviation = math.hypot(NOISE_255[severity - 1], math.sqrt(1 / 12))
        assert abs(added.mean()) < 4 * deviation / math.sqrt(added.size)
        assert abs(added.std() / deviation - 1) < 4 / math.sqrt(2 * added.size)
        assert abs((np.abs(added) < deviation).mean() - 0.6827) < 0.03
        assert np.abs(np.corrcoef(added.reshape(20, -1)) - np.eye(20)).max() < 0.1


class TestAllOfThem:
    @pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 5)])
    @pytest.mark.parametrize("kind", KINDS)
    def test_errors_grow_with_severity(self, kind, shape):
        images = pictures(6, shape)
        errors = []
        for severity in SEVERITIES:
            corrupted = corrupt(images, kind, severity, 0, np.arange(6))
            assert (corrupted.dtype, corrupted.shape) == (np.uint8, images.shape)
            errors.append(np.sqrt(((corrupted.astype(float) - images) ** 2).mean()))
        assert errors[0] > 0.5
        assert all(least < most for least, most in itertools.pairwise(errors))

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_image_gets_the_same_whatever_it_is_batched_with(self, kind):
        images, indices, some = pictures(6), np.arange(40, 46), np.array([4, 1])
        whole = corrupt(images, kind, 3, 7, indices)
        np.testing.assert_array_equal(corrupt(images[some], kind, 3, 7, indices[some]), whole[some])
        assert corrupt(images[:0], kind, 3, 7, indices[:0]).shape == (0, 3, 19, 28)

    def test_noise_follows_seed_and_place(self):
        image = np.full((1, 3, 8, 8), 128, np.uint8)
        made = {corrupt(image, "noise", 1, s, np.array([p])).tobytes() for s, p in ((0, 0), (1, 0), (0, 1))}
        assert len(made) == 3

    def test_images_are_left_as_they_were(self):
        images = pictures(2)
        before = images.copy()
        for kind in KINDS:
            corrupt(images, kind, 5, 0, np.arange(2))
        np.testing.assert_array_equal(images, before)

    @pytest.mark.parametrize(("kind", "severity"), [("fog", 1), ("noise", 0), ("noise", 6)])
    def test_what_is_not_known_is_refused(self, kind, severity):
        with pytest.raises(HardbitError, match="is not known"):
            corrupt(pictures(1), kind, severity, 0, np.arange(1))
