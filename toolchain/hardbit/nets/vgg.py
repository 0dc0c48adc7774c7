"""VGG-small: the plain convolutional network on which few-bit quantizers are compared (Simonyan & Zisserman 2015, with
the six convolutions of Zhang et al. 2018, LQ-Nets, arXiv:1807.10029)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hardbit.nets.registry import register

__all__ = ["VGGSmall"]


@register("vgg-small")
class VGGSmall(nn.Module):
    """Three stages of two 3x3 convolutions and a 2x2 maximum each, the widths doubling, and one linear layer.

    Height and width of the images are multiples of 8.
    """

    def __init__(self, width: int = 128, classes: int = 10, input_shape: Sequence[int] = (3, 32, 32)) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        inputs, height, image_width = self.input_shape
        if height % 8 or image_width % 8:
            raise ValueError(f"images of {height}x{image_width} cannot be halved three times")
        layers: list[nn.Module] = []
        for outputs in (width, 2 * width, 4 * width):
            layers += [*_convolution(inputs, outputs), *_convolution(outputs, outputs), nn.MaxPool2d(2)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs * (height // 8) * (image_width // 8), classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.flatten(self.features(image)))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
