"""Quantized ONNX files as other tools write them: by onnxruntime.quantization, and by hand."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from lowering_examples import images_for


class _Batch(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray) -> None:
        self.batches = iter([{"image": pixels}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantized_by_onnxruntime(
    model: onnx.ModelProto,
    form: QuantFormat,
    activations: QuantType = QuantType.QUInt8,
    weights: QuantType = QuantType.QInt8,
    *,
    per_channel: bool = False,
    **options: bool,
) -> onnx.ModelProto:
    """What quantize_static makes of a float `model`, calibrated on blocks of grey."""
    images = images_for(model, 16)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, source)
        logging.disable(logging.WARNING)
        try:
            quantize_static(
                source,
                target,
                _Batch(((images.astype(np.float32) - 128) / 256).astype(np.float32)),
                quant_format=form,
                activation_type=activations,
                weight_type=weights,
                per_channel=per_channel,
                extra_options=options,
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(target)
