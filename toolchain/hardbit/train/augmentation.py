"""Augmentation of a whole batch at once, on bytes, on the device that holds them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment"]

_CROP_PADDING = 4


def augment(images: Tensor, kinds: tuple[str, ...], generator: torch.Generator) -> Tensor:
    """`images` uint8 (n, channels, height, width), each mirrored with probability 1/2 ("flip") and shifted by up to
    four pixels, the border filled with zeros ("crop"). The generator is one of the images' device."""
    device = images.device
    if "flip" in kinds:
        mirrored = torch.rand(len(images), generator=generator, device=device) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if "crop" in kinds:
        count, _, height, width = images.shape
        padded = F.pad(images, [_CROP_PADDING] * 4)
        offsets = torch.randint(0, 2 * _CROP_PADDING + 1, (count, 2), generator=generator, device=device)
        rows = offsets[:, 0, None] + torch.arange(height, device=device)
        columns = offsets[:, 1, None] + torch.arange(width, device=device)
        index = torch.arange(count, device=device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return images
