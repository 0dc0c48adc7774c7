"""The activation quantizers of a Brevitas module through the fused operation, for training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brevitas.nn as qnn
from torch import Tensor, nn

from hardbit.quantize.quantizers import (
    activation_numerics,
    activation_scale,
    is_activation_quantizer,
    is_weight_layer,
)
from hardbit.train.fused.clip import Clip
from hardbit.train.fused.operators import activate

__all__ = ["clip_of", "fast_activations"]


def clip_of(quantizer: Any, *, smooth: bool = False) -> Clip:
    """What an activation quantizer of Brevitas applies to each number."""
    return Clip.of(activation_numerics(quantizer), relu=isinstance(quantizer, qnn.QuantReLU), smooth=smooth)


@contextmanager
def fast_activations(module: nn.Module) -> Iterator[None]:
    """Within it the activation quantizers of `module` run as fused operations, to the same bits, and no layer wraps its
    results in Brevitas' QuantTensor. A quantizer that is being calibrated stays as it is."""
    activations: list[Any] = [m for m in module.modules() if is_activation_quantizer(m)]
    fast = [m for m in activations if not activation_scale(m).observing]
    proxies: list[Any] = [m.weight_quant for m in module.modules() if is_weight_layer(m)]
    for layer in fast:
        object.__setattr__(layer, "forward", _forward(clip_of(layer)))
    for proxy in proxies:
        proxy.skip_create_quant_tensor = True
    try:
        yield
    finally:
        for layer in fast:
            del layer.forward
        for proxy in proxies:
            proxy.skip_create_quant_tensor = False


def _forward(clip: Clip) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return activate(x, clip)

    return forward
