"""Loading tensors into a quantized module."""

from __future__ import annotations

from collections.abc import Mapping

import brevitas.config
from torch import Tensor, nn

__all__ = ["load_state"]


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`module.load_state_dict(tensors)` without Brevitas' habit of building every quantizer anew on the way.

    The rebuilt quantizer would take its scale module from the injector that first made it: in a deep copy, the
    original's.
    """
    rebuilds = brevitas.config.REINIT_ON_STATE_DICT_LOAD
    brevitas.config.REINIT_ON_STATE_DICT_LOAD = False
    try:
        module.load_state_dict(dict(tensors))
    finally:
        brevitas.config.REINIT_ON_STATE_DICT_LOAD = rebuilds
