"""The structures and functions of kernels.c, for ctypes."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch

from hardbit.train.fused.clip import Clip
from hardbit.train.fused.library import load_library

__all__ = ["AFFINE", "BY_BATCH", "PLAIN", "TYPES", "Activation", "Gradient", "call", "clip_argument", "threads_for"]

PLAIN, AFFINE, BY_BATCH = range(3)
TYPES = {torch.float32: 0, torch.bfloat16: 1}


class _Clip(ctypes.Structure):
    _fields_ = [*((name, c_float) for name in ("scale", "offset", "low", "high", "threshold")), ("rounds", c_int32)]


class Activation(ctypes.Structure):
    """struct activation"""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "other", "y", "mask")),
        *((name, c_int64) for name in ("count", "channels")),
        *((name, c_int32) for name in ("x_type", "y_type", "batch_norm", "threads")),
        ("first", _Clip),
        ("second", _Clip),
        *((name, c_void_p) for name in ("weight", "bias", "mean", "variance")),
        ("epsilon", c_float),
    ]


class Gradient(ctypes.Structure):
    """struct gradient"""

    _fields_ = [(name, c_void_p) for name in ("of_y", "of_x", "of_other", "of_weight", "of_bias")]


@functools.lru_cache(maxsize=256)
def clip_argument(clip: Clip) -> _Clip:
    """struct clip"""
    return _Clip(clip.scale, clip.offset, clip.low, clip.high, clip.threshold, clip.rounds)


def call(name: str, *arguments: ctypes.Structure) -> None:
    """Run a function of the library, which is there; raises MemoryError where it ran out of memory."""
    if getattr(load_library(), name)(*map(ctypes.byref, arguments)):
        raise MemoryError(f"{name} of the fused operations")


def threads_for(count: int) -> int:
    """Threads that pay for `count` numbers: starting one costs as much as some 100,000 numbers."""
    return min(torch.get_num_threads(), 1 + count // 131_072)
