"""Post-training quantization, and the intake of ONNX files that are quantized already; no torch anywhere."""

from hardbit.ptq.already_quantized import canonical_from_quantized
from hardbit.ptq.network import quantize_network
from hardbit.ptq.ranges import CALIBRATIONS

__all__ = ["CALIBRATIONS", "canonical_from_quantized", "quantize_network"]
