"""A small vision transformer (Dosovitskiy et al. 2021) in the plain form of Beyer et al. (2022, arXiv:2205.01580): the
mean of all tokens in place of a class token.

The hidden layers have ReLU and not GELU: its codes are unsigned, so that a few-bit quantizer wastes none on the sliver
of negative values that GELU lets through, and an integer engine runs both linear layers and the ReLU between them
without leaving integers. (Mirzadeh et al. 2023, arXiv:2310.04564, find no loss from ReLU in transformers.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardbit.nets.registry import register

__all__ = ["ViT"]

_EXPANSION = 2


class Attention(nn.Module):
    """Multi-head self-attention over tokens (n, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = (self.heads, -1)
        query = self.query(x).unflatten(2, split).permute(0, 2, 1, 3)  # (n, heads, tokens, channels)
        key = self.key(x).unflatten(2, split).permute(0, 2, 3, 1)  # (n, heads, channels, tokens)
        value = self.value(x).unflatten(2, split).permute(0, 2, 1, 3)
        attention = torch.softmax(query @ key * self.scale, dim=-1)
        return self.out((attention @ value).permute(0, 2, 1, 3).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, _EXPANSION * width)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(_EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.relu(self.fc1(self.norm2(x))))


@register("vit")
class ViT(nn.Module):
    """`width` channels a token, a token for every `patch` x `patch` pixels, `depth` blocks of `heads` heads."""

    def __init__(
        self,
        width: int = 96,
        depth: int = 3,
        heads: int = 6,
        patch: int = 4,
        classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        channels, height, image_width = self.input_shape
        if height % patch or image_width % patch:
            raise ValueError(f"images of {height}x{image_width} cannot be cut into patches of {patch}x{patch}")
        if width % heads:
            raise ValueError(f"a width of {width} cannot be shared by {heads} heads")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, (height // patch) * (image_width // patch), width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.blocks(tokens)).mean(1))
