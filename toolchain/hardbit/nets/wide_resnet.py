"""Wide residual networks for 32x32 images (Zagoruyko & Komodakis 2016), with BatchNorm and ReLU before each
convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hardbit.nets.registry import register

__all__ = ["WideResNet", "wrn_16_4"]


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or a 1x1 convolution of the activations where the shape
    changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        branch = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return branch + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """A stem of `width` channels and three stages of `blocks` blocks each, `factor` times as wide as those of a ResNet;
    depth 6 * blocks + 4."""

    def __init__(
        self,
        blocks: int,
        factor: int,
        width: int = 16,
        classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.conv1 = nn.Conv2d(self.input_shape[0], width, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = factor * width * 2**stage
            for block in range(blocks):
                layers.append(PreActivationBlock(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stages(self.conv1(image))))
        return self.fc(self.flatten(self.pool(x)))


@register("wrn-16-4")
def wrn_16_4(width: int = 16, classes: int = 10, input_shape: Sequence[int] = (3, 32, 32)) -> WideResNet:
    """Two blocks a stage, four times as wide."""
    return WideResNet(2, 4, width, classes, input_shape)
