"""Flags win over the sidecar file, the sidecar over defaults; what is not known is refused by its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from hardbit.importing.request import numbers_of, read_request, shape_of
from hardbit_deploy.errors import HardbitError

SIDECAR = """\
[preprocessing]
layout = "nhwc"
scale = "1/255"
mean = [0.5, 0.4, 0.3]
std = 0.25

[network]
name = "signs"
image_shape = [3, 30, 30]
classes = ["stop", "go"]
sign = "identity"

[data]
calibrate = "npz:train.npz"
set = "npz:test.npz"
count = 100

[quantization]
calibration = "mse"
bits = 4

[threat_model]
norm = "l2"
eps_255 = 128

[suite]
name = "quick"
"""


def request_of(folder: Path, text: str | None, **given: object) -> object:
    if text is not None:
        (folder / "net.toml").write_text(text)
    return read_request(folder / "net.onnx", given)


def test_the_sidecar_says_everything(tmp_path: Path) -> None:
    request = request_of(tmp_path, SIDECAR, eps_255=None)
    assert request.preprocessing.layout == "nhwc"
    assert request.preprocessing.scale == pytest.approx(1 / 255)
    assert (request.preprocessing.mean, request.preprocessing.std) == ((0.5, 0.4, 0.3), (0.25,))
    assert (request.model_name, request.image_shape, request.class_names) == ("signs", (3, 30, 30), ("stop", "go"))
    assert (request.calibrate, request.data, request.count) == ("npz:train.npz", "npz:test.npz", 100)
    assert (request.calibration, request.bits, request.suite, request.sign) == ("mse", 4, "quick", "identity")
    assert (request.norm, request.eps_255) == ("l2", 128.0)


def test_flags_win(tmp_path: Path) -> None:
    request = request_of(tmp_path, SIDECAR, eps_255=2.0, layout="nchw", data="cifar10", mean=(0.1,))
    assert (request.eps_255, request.data, request.norm) == (2.0, "cifar10", "l2")
    assert (request.preprocessing.layout, request.preprocessing.mean) == ("nchw", (0.1,))
    assert request.preprocessing.std == (0.25,)


def test_without_a_sidecar_the_images_of_the_calibration_are_judged_too(tmp_path: Path) -> None:
    request = request_of(tmp_path, None, calibrate="mnist")
    assert (request.data, request.split, request.bits, request.suite) == ("mnist", "test", 8, "standard")
    assert request.model_name == "net"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[prepocessing]\nscale = 1", "[prepocessing]"),
        ("[preprocessing]\nscales = 1", "'scales'"),
        ("[preprocessing]\nscale = [1, 2]", "scale"),
        ("[data]\ncount = 'ten'", "count"),
        ("[network]\nimage_shape = [3, 30]", "image_shape"),
        ("[quantization]\nbits = true", "bits"),
        ("scale = 1", "outside of a table"),
        ("[preprocessing", "not TOML"),
        ("[network]\nname = 'Ä b'", "name is"),
        ("[network]\nsign = 'soft'", "sign is"),
    ],
)
def test_mistakes_are_one_line_with_their_place(text: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(HardbitError) as caught:
        request_of(tmp_path, text, calibrate="mnist")
    assert place in str(caught.value)


def test_calibration_images_have_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match="--calibrate"):
        request_of(tmp_path, None)


def test_numbers_and_shapes_on_the_command_line() -> None:
    assert numbers_of("1/255") == (pytest.approx(1 / 255),)
    assert numbers_of("0.5,1/4,3") == (0.5, 0.25, 3.0)
    assert shape_of("3,32,32") == (3, 32, 32)
    for wrong in ("", "a", "1/0", "1,,2"):
        with pytest.raises(ValueError):
            numbers_of(wrong)
    for wrong in ("3,32", "3,32,32,1", "3,0,32", "c,h,w"):
        with pytest.raises(ValueError):
            shape_of(wrong)
