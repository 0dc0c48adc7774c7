"""Quantization as something that is applied to a plain module: quantizers are placed on its FX graph by a profile.

The order is quantize -> calibrate -> (train) -> freeze -> (train) -> `hardbit.graph.export`. Every scale is chosen so
that the arithmetic of the network is exact in float32 (see `hardbit.quantize.scales`).
"""

from hardbit.quantize.bits import Bits
from hardbit.quantize.calibration import calibrate
from hardbit.quantize.freezing import fold_batch_norm, freeze
from hardbit.quantize.placement import quantize
from hardbit.quantize.profiles import PROFILES, Profile, get_profile
from hardbit.quantize.requantize import requantize, start_from
from hardbit.quantize.state import load_state
from hardbit.quantize.unfolding import start_with_batch_norm

__all__ = [
    "PROFILES",
    "Bits",
    "Profile",
    "calibrate",
    "fold_batch_norm",
    "freeze",
    "get_profile",
    "load_state",
    "quantize",
    "requantize",
    "start_from",
    "start_with_batch_norm",
]
