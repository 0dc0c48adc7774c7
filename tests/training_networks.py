"""Small quantized networks of every kind that the trainer meets, with images and labels, for its tests."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hardbit.quantize import Bits, freeze
from hardbit.train.adversary import centred
from quantized_examples import calibrated, random_images

LABELS = torch.arange(8) % 10


@dataclass(frozen=True)
class Kind:
    """An architecture with its options at some widths, frozen or not."""

    architecture: str
    bits: Bits
    options: tuple[tuple[str, object], ...] = ()
    is_frozen: bool = False
    profile: str = "onnxruntime"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, 28, 28) if self.architecture == "lenet" else (3, 32, 32)


W4A4, FLOAT = Bits(4, 4), Bits(32, 32, 32, 32)
KINDS = {
    "lenet": Kind("lenet", W4A4),
    "lenet, frozen": Kind("lenet", W4A4, is_frozen=True),
    "lenet, float": Kind("lenet", FLOAT),
    "lenet, W1A1": Kind("lenet", Bits(1, 1)),
    "resnet8": Kind("resnet8", W4A4),
    "resnet8, float": Kind("resnet8", FLOAT),
    "resnet8, weights alone": Kind("resnet8", Bits(4, 32)),
    "resnet8, tensorrt": Kind("resnet8", Bits(8, 7), (("width", 8),), profile="tensorrt"),
    "mobilenetv2": Kind("mobilenetv2", W4A4, (("width", 4),)),
    "wrn-16-4": Kind("wrn-16-4", W4A4, (("width", 2),)),
    "vgg-small": Kind("vgg-small", Bits(2, 2), (("width", 4),)),
    "vit": Kind("vit", Bits(8, 8), (("width", 24), ("depth", 1))),
}
KINDS_IN_LAYOUTS = [(name, torch.channels_last) for name in KINDS]
KINDS_IN_LAYOUTS += [("lenet", torch.contiguous_format), ("resnet8", torch.contiguous_format)]


def module_of(name: str, memory_format: torch.memory_format = torch.contiguous_format) -> fx.GraphModule:
    """The quantized network, calibrated, its weights laid out as the trainer does or as PyTorch does."""
    kind = KINDS[name]
    module = calibrated(kind.architecture, kind.bits, profile=kind.profile, **dict(kind.options))
    if kind.is_frozen:
        module = freeze(module)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return module


def images_of(name: str, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Eight centred images."""
    return _images(KINDS[name].shape).contiguous(memory_format=memory_format)


@functools.cache
def _images(shape: tuple[int, int, int]) -> Tensor:
    return centred(torch.from_numpy(random_images(len(LABELS), shape)))
