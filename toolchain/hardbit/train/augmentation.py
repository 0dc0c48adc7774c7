"""Augmentation of a whole batch at once, on bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment"]

_CROP_PADDING = 4


def augment(images: Tensor, kinds: tuple[str, ...], generator: torch.Generator) -> Tensor:
    """`images` uint8 (n, channels, height, width), each mirrored with probability 1/2 ("flip") and shifted by up to
    four pixels, the border filled with zeros ("crop")."""
    if "flip" in kinds:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if "crop" in kinds:
        count, _, height, width = images.shape
        padded = F.pad(images, [_CROP_PADDING] * 4)
        offsets = torch.randint(0, 2 * _CROP_PADDING + 1, (count, 2), generator=generator)
        rows = offsets[:, 0, None] + torch.arange(height)
        columns = offsets[:, 1, None] + torch.arange(width)
        index = torch.arange(count)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return images
