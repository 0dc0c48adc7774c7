"""Residual networks for 32x32 images in the form of He et al. (2016), section 4.2, with 1x1 projection shortcuts.

ResNet-18 is that of ImageNet with the stem of the small ones: no stride and no pooling before the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hardbit.nets.registry import register

__all__ = ["ResNet", "resnet8", "resnet18", "resnet20"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or a strided 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(branch + self.shortcut(x))


class ResNet(nn.Module):
    """Some stages of `blocks` basic blocks each, the widths doubling; depth 2 * stages * blocks + 2."""

    def __init__(
        self,
        blocks: int,
        width: int = 16,
        classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
        *,
        stages: int = 3,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.conv1 = nn.Conv2d(self.input_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        layers: list[nn.Module] = []
        inputs = width
        for stage in range(stages):
            outputs = width * 2**stage
            for block in range(blocks):
                layers.append(BasicBlock(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn1(self.conv1(image))))
        return self.fc(self.flatten(self.pool(x)))


@register("resnet8")
def resnet8(width: int = 16, classes: int = 10, input_shape: Sequence[int] = (3, 32, 32)) -> ResNet:
    """One block a stage."""
    return ResNet(1, width, classes, input_shape)


@register("resnet20")
def resnet20(width: int = 16, classes: int = 10, input_shape: Sequence[int] = (3, 32, 32)) -> ResNet:
    """Three blocks a stage."""
    return ResNet(3, width, classes, input_shape)


@register("resnet18")
def resnet18(width: int = 64, classes: int = 10, input_shape: Sequence[int] = (3, 32, 32)) -> ResNet:
    """Four stages of two blocks."""
    return ResNet(2, width, classes, input_shape, stages=4)
