"""MobileNetV2 (Sandler et al. 2018) in the form for 32x32 images: strides of the stem and of the second stage are 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hardbit.nets.registry import register

__all__ = ["MobileNetV2"]

_STEM = 32
_HEAD = 1280
_STAGES = (  # expansion, channels, blocks, stride of the first block; table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise 3x3 one, a 1x1 one that narrows; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widening = _convolution(inputs, hidden, 1) if expansion != 1 else []
        self.layers = nn.Sequential(
            *widening,
            *_convolution(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.is_residual else self.layers(x)


@register("mobilenetv2")
class MobileNetV2(nn.Module):
    """`width` is that of the stem; the other widths of the paper, which are for 32, change with it, in multiples of 8
    from 8 on."""

    def __init__(self, width: int = 32, classes: int = 10, input_shape: Sequence[int] = (3, 32, 32)) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        layers: list[nn.Module] = _convolution(self.input_shape[0], width, 3)
        inputs = width
        for expansion, channels, blocks, first_stride in _STAGES:
            outputs = _scaled(channels, width)
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, first_stride if block == 0 else 1, expansion))
                inputs = outputs
        head = _scaled(_HEAD, width)
        self.features = nn.Sequential(*layers, *_convolution(inputs, head, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(head, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.features(image))))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]


def _scaled(channels: int, width: int) -> int:
    return max(8, round(channels * width / _STEM / 8) * 8)
