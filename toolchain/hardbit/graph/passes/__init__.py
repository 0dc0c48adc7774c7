"""Rewrites of ONNX graphs, one pass a file; each states what it requires, ensures and keeps."""

from __future__ import annotations

from hardbit.graph.passes.base import Pass, PassContractError, ValuePreserving, run_passes
from hardbit.graph.passes.bytes_in import BytesIn
from hardbit.graph.passes.codes_in import CodesIn
from hardbit.graph.passes.dequantize_late import DequantizeLate
from hardbit.graph.passes.float_biases import FloatBiases
from hardbit.graph.passes.float_clips import FloatClips
from hardbit.graph.passes.half_floats import HalfFloats
from hardbit.graph.passes.integer_biases import IntegerBiases
from hardbit.graph.passes.keep_float_weights import KeepFloatWeights
from hardbit.graph.passes.plain_scales import PlainScales
from hardbit.graph.passes.quantize_image import QuantizeImage
from hardbit.graph.passes.remove_identities import RemoveIdentities
from hardbit.graph.passes.remove_noop_clips import RemoveNoopClips
from hardbit.graph.passes.signed_activations import SignedActivations
from hardbit.graph.passes.strip_initializer_inputs import StripInitializerInputs
from hardbit.graph.passes.unsigned_activations import UnsignedActivations
from hardbit.graph.passes.widen_weight_codes import WidenWeightCodes

__all__ = [
    "BytesIn",
    "CodesIn",
    "DequantizeLate",
    "FloatBiases",
    "FloatClips",
    "HalfFloats",
    "IntegerBiases",
    "KeepFloatWeights",
    "Pass",
    "PassContractError",
    "PlainScales",
    "QuantizeImage",
    "RemoveIdentities",
    "RemoveNoopClips",
    "SignedActivations",
    "StripInitializerInputs",
    "UnsignedActivations",
    "ValuePreserving",
    "WidenWeightCodes",
    "run_passes",
]
