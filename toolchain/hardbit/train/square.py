"""The Square attack (Andriushchenko et al. 2020, L-inf) for training: a batch at once, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["draw_squares", "square_search"]

_FIRST_SHARE = 0.8  # of the image's area that the first square covers, as in the paper for L-inf
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the share is halved; fewer queries run through the same schedule faster."""


def draw_squares(images: Tensor, queries: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """The stripes to start from, -1 or 1 of shape (n, channels, 1, width); then for every query the place of a square
    as two fractions, (n, queries, 2), and its sign in each channel, (n, queries, channels)."""
    count, channels, _, width = images.shape
    device = images.device
    stripes = torch.randint(0, 2, (count, channels, 1, width), generator=generator, device=device)
    places = torch.rand((count, queries, 2), generator=generator, device=device)
    signs = torch.randint(0, 2, (count, queries, channels), generator=generator, device=device)
    return stripes * 2 - 1, places, signs * 2 - 1


def square_search(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float,
    draws: tuple[Tensor, ...],
    limits: tuple[float, float],
) -> Tensor:
    """`images` (n, channels, height, width) with squares of +-eps wherever they lowered the margin or left it equal.

    `labels` int64 (n,), pixels within `limits`; one query an image in each step.
    """
    stripes, places, signs = draws
    queries = places.shape[1]
    with torch.no_grad():
        best = (images + eps * stripes).clamp(*limits)
        lowest = _margin(network(best), labels)
        for query in range(queries):
            inside = _squares(images, places[:, query], _side(images, query, queries))
            candidate = torch.where(inside, images + eps * signs[:, query, :, None, None], best).clamp(*limits)
            margin = _margin(network(candidate), labels)
            better = margin <= lowest
            best = torch.where(better.view(-1, 1, 1, 1), candidate, best)
            lowest = torch.where(better, margin, lowest)
    return best


def _squares(images: Tensor, places: Tensor, side: int) -> Tensor:
    """True inside a square of `side` pixels an image, (n, 1, height, width)."""
    height, width = images.shape[2:]
    top = (places[:, 0] * (height - side + 1)).long()[:, None]
    left = (places[:, 1] * (width - side + 1)).long()[:, None]
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)


def _side(images: Tensor, query: int, queries: int) -> int:
    """Pixels of a square's side at this query."""
    halvings = sum(query * 10_000 > after * queries for after in _HALVED_AFTER)
    height, width = images.shape[2:]
    side = round(math.sqrt(_FIRST_SHARE / 2**halvings * height * width))
    return min(max(side, 1), height, width)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other, (n,)."""
    right = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return right.squeeze(1) - others.amax(1)
