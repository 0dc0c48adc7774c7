"""What few bits gain where the engine's only codes are int8 is said, and only there."""

from __future__ import annotations

import pytest

from hardbit_deploy.network_bits import gain_of_few_bits
from hardbit_deploy.summary import result_summary
from report_examples import document


def bits(weights: int, activations: int, **layers: int) -> dict:
    return {"weights": weights, "activations": activations, "first_layer": 8, "last_layer": 8, "layers": layers}


@pytest.mark.parametrize(
    ("widths", "named"),
    [
        (bits(4, 4), "Codes of 4 bits run"),
        (bits(1, 8), "Codes of 1 bit run"),
        (bits(2, 4), "Codes of 2 and 4 bits run"),
        (bits(4, 2, stages=1), "Codes of 1, 2 and 4 bits run"),
    ],
)
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt_rtx"])
def test_few_bits_are_named(target: str, widths: dict, named: str) -> None:
    said = f"{named} as INT8 here: the same values, but neither faster nor smaller than at 8 bits."
    assert gain_of_few_bits(target, widths) == said


@pytest.mark.parametrize(
    ("target", "widths"),
    [("onnxruntime", bits(1, 1)), ("tensorrt", bits(8, 7)), ("tensorrt", bits(32, 32)), ("tensorrt", None)],
)
def test_elsewhere_nothing_is_said(target: str, widths: dict | None) -> None:
    assert gain_of_few_bits(target, widths) == ""


def test_the_summary_says_it_under_its_heading() -> None:
    result = document()
    result["bundle"] = {**result["bundle"], "target": "tensorrt", "network": {"bits": bits(4, 4)}}
    result["environment"] = {**result["environment"], "tensorrt": "10.13"}
    assert result_summary(result).splitlines()[2].startswith("Codes of 4 bits run as INT8 here")
