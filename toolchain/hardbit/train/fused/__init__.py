"""Fused operations of training, by a small C library that is built when it is first needed."""

from hardbit.train.fused.clip import NOTHING, RELU, Clip, clip_of
from hardbit.train.fused.operators import Normalisation, activate, fake_quantize
from hardbit.train.fused.support import supports_bfloat16

__all__ = [
    "NOTHING",
    "RELU",
    "Clip",
    "Normalisation",
    "activate",
    "clip_of",
    "fake_quantize",
    "supports_bfloat16",
]
