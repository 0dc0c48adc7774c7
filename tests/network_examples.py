"""Every network that hardbit ships, narrow and for small images, so that tests see all of them in seconds."""

from __future__ import annotations

import functools

from torch import fx

from hardbit.quantize import freeze
from quantized_examples import calibrated

OPTIONS = {
    "lenet": {"channels": (4, 6), "hidden": 12, "input_shape": (1, 12, 12)},
    "mobilenetv2": {"width": 8, "input_shape": (3, 16, 16)},
    "resnet18": {"width": 4, "input_shape": (3, 16, 16)},
    "resnet20": {"width": 4, "input_shape": (3, 16, 16)},
    "resnet8": {"width": 4, "input_shape": (3, 16, 16)},
    "vgg-small": {"width": 4, "input_shape": (3, 16, 16)},
    "vit": {"width": 16, "depth": 2, "heads": 2, "patch": 4, "input_shape": (3, 16, 16)},
    "wrn-16-4": {"width": 2, "input_shape": (3, 16, 16)},
}
WITH_FLOAT_PARTS = frozenset({"vit"})
"""Networks that compute between quantizers what only floats can hold."""


def input_shape(architecture: str) -> tuple[int, ...]:
    return OPTIONS[architecture]["input_shape"]


@functools.cache
def tiny_twin(architecture: str, bits: int) -> fx.GraphModule:
    """The frozen network with random weights, lively statistics and calibrated scales. Not to be changed."""
    return freeze(calibrated(architecture, bits, **OPTIONS[architecture])).eval()
