"""Fake quantization in one pass over memory, by a small C library that is built when it is first needed."""

from hardbit.train.fused.activations import fast_activations
from hardbit.train.fused.operators import fake_quantize, is_fused
from hardbit.train.fused.support import supports_bfloat16

__all__ = ["fake_quantize", "fast_activations", "is_fused", "supports_bfloat16"]
