"""The range that each tensor takes on calibration images, by one of four calibrators.

`max` takes all that was seen, `percentile` all but a few outliers on either side, `entropy` the range whose quantized
histogram is nearest to the whole one (Kullback-Leibler; Migacz, GTC 2017), `mse` the range of least squared error.
Histograms, percentile and entropy are onnxruntime.quantization's; the search for the least error is in
`least_squares`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hardbit.ptq.least_squares import least_squares_range
from hardbit_deploy.errors import HardbitError

__all__ = ["CALIBRATIONS", "Calibration", "Range", "calibrated_ranges"]

Calibration = Literal["max", "percentile", "entropy", "mse"]
CALIBRATIONS: tuple[str, ...] = get_args(Calibration)
Range = tuple[float, float]
PERCENTILE = 99.999  # of all values; half of the rest on either side
BINS = {"max": 128, "percentile": 2048, "entropy": 1024, "mse": 2048}
LARGEST_BATCH = 32
_BATCH_VALUES = 3 << 15  # of pixels: what all tensors of a batch take in memory is some hundred times that


def calibrated_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], images: NDArray[np.uint8], calibration: str, levels: int
) -> dict[str, Range]:
    """(low, high) of each of `tensors`, float tensors of the float classifier `model`, on `images` uint8
    (n, channels, height, width), for quantizers of so many `levels`.

    Raises HardbitError for an unknown calibration, without images, or where a tensor is not finite.
    """
    if calibration not in CALIBRATIONS:
        raise HardbitError(
            f"there is no calibration '{calibration}'", "calibration", f"known: {', '.join(CALIBRATIONS)}"
        )
    if not len(images):
        raise HardbitError("there are no images to calibrate with", "calibration", "give a few hundred images")
    if not tensors:
        return {}
    collector = _collector(calibration, levels)
    session = _session_with_outputs(model, tensors)
    batch = int(np.clip(_BATCH_VALUES // images[0].size, 1, LARGEST_BATCH))
    for start in range(0, len(images), batch):
        pixels = (images[start : start + batch].astype(np.float32) - 128) / 256
        values = session.run(list(tensors), {"image": pixels})
        for name, value in zip(tensors, values, strict=True):
            if not np.isfinite(value).all():
                raise HardbitError("the network computes what is no finite number", name, "repair the network")
        _quietly(collector.collect, dict(zip(tensors, values, strict=True)))
    histograms = collector.get_histogram_dict()
    if calibration == "max":
        return {name: (float(histograms[name][2]), float(histograms[name][3])) for name in tensors}
    if calibration == "mse":
        return {name: least_squares_range(histograms[name][0], histograms[name][1], levels) for name in tensors}
    if calibration == "entropy":
        return {name: _entropy_range(collector, histograms[name], levels) for name in tensors}
    found = _quietly(collector.compute_collection_result)
    return {name: (float(found[name][0]), float(found[name][1])) for name in tensors}


def _collector(calibration: str, levels: int) -> Any:
    """ONNX Runtime's collector; of signed values, whose histogram it keeps over [-largest, largest]."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    return HistogramCollector(
        method="entropy" if calibration == "entropy" else "percentile",
        symmetric=False,
        num_bins=BINS[calibration],
        num_quantized_bins=levels,
        percentile=PERCENTILE,
        scenario="same",
    )


def _entropy_range(collector: Any, histogram: Any, levels: int) -> Range:
    """The histogram reaches as far below 0 as above: of what is never negative, all levels are on one half of it.

    Zeros are not counted, as in NVIDIA's pytorch-quantization: every scale holds them exactly, and where a Relu or a
    dark image makes most numbers 0, they alone would decide.
    """
    counts, edges, *rest = histogram
    zero = int(np.searchsorted(edges, 0.0, side="right")) - 1
    counts = counts.copy()
    counts[zero] = counts[zero + 1] if zero + 1 < len(counts) else 0
    histogram = (counts, edges, *rest)
    low, high = collector.get_entropy_threshold(histogram, levels if histogram[2] < 0 else 2 * levels)
    return float(low), float(high)


def _quietly(function: Any, *arguments: object) -> Any:
    """Call a function of onnxruntime.quantization, which prints what it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def _session_with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {value.name for value in watched.graph.output}
    for name in tensors:
        if name not in present:
            watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
