"""LeNet-style network for 28x28 images: two strided convolutions, two fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hardbit.nets.registry import register

__all__ = ["LeNet"]


@register("lenet")
class LeNet(nn.Module):
    """Strided 4x4 convolutions in place of pooling, as in Wong & Kolter (2018), with BatchNorm.

    `channels` are the widths of the two convolutions, `hidden` that of the first fully connected layer.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        hidden: int = 100,
        classes: int = 10,
        input_shape: Sequence[int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        depth, height, width = self.input_shape
        first, second = channels
        self.conv1 = nn.Conv2d(depth, first, 4, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(first, second, 4, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.relu2 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(second * (height // 4) * (width // 4), hidden, bias=False)
        self.bn3 = nn.BatchNorm1d(hidden)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(image)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.fc1(self.flatten(x))))
        return self.fc2(x)
