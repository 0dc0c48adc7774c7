"""The Square attack of training against a plain loop over single images, and what it finds on a linear network."""

import numpy as np
import pytest
import torch
from torch import nn

from hardbit.train import Adversary
from hardbit.train.adversary import GREY_LEVEL, HIGH, LOW, centred, perturb
from hardbit.train.square import draw_squares, square_search
from quantized_examples import random_images

EPS = 25 * GREY_LEVEL
SHARES = [(10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256)]


def network(shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    features = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 20), nn.ReLU(), nn.Linear(20, 4)).eval()


def side_of(query: int, queries: int, height: int, width: int) -> int:
    """Side of the square, by the paper's schedule written out."""
    position, halvings = query / queries * 10_000, 0
    for threshold, factor in SHARES:
        if position > threshold:
            halvings = int(np.log2(factor)) + 1
    return max(1, min(round((0.8 / 2**halvings * height * width) ** 0.5), height, width))


def one_image(net, image, label, draws, queries):
    """The attack on one image, query by query."""
    stripes, places, signs = draws
    height, width = image.shape[1:]
    best = np.clip(image + EPS * stripes, LOW, HIGH)

    def margin(candidate):
        with torch.no_grad():
            logits = net(torch.from_numpy(candidate[None].astype(np.float32)))[0].numpy()
        return logits[label] - np.delete(logits, label).max()

    lowest = margin(best)
    for query in range(queries):
        side = side_of(query, queries, height, width)
        top = int(np.float32(places[query, 0]) * np.float32(height - side + 1))
        left = int(np.float32(places[query, 1]) * np.float32(width - side + 1))
        candidate = best.copy()
        window = np.s_[:, top : top + side, left : left + side]
        candidate[window] = np.clip(image[window] + EPS * signs[query][:, None, None], LOW, HIGH)
        found = margin(candidate)
        if found <= lowest:
            best, lowest = candidate, found
    return best


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 14)])
def test_it_is_the_attack_on_each_image_by_itself(shape):
    net, queries = network(shape), 40
    images = centred(torch.from_numpy(random_images(6, shape)))
    labels = net(images).argmax(1)
    draws = draw_squares(images, queries, torch.Generator().manual_seed(1))
    found = square_search(net, images, labels, EPS, draws, (LOW, HIGH))
    for row in range(6):
        own = tuple(part[row].numpy() for part in draws)
        expected = one_image(net, images[row].numpy(), int(labels[row]), own, queries)
        assert np.allclose(found[row].numpy(), expected, atol=1e-6)


def test_a_query_never_raises_the_margin_and_everything_stays_in_the_ball():
    net = network((1, 12, 12))
    images = centred(torch.from_numpy(random_images(32, (1, 12, 12), seed=2)))
    labels = net(images).argmax(1)

    def margins(queries):
        spec = Adversary("square", 25.0, steps=queries)
        found = perturb(net, images, labels, spec, torch.Generator().manual_seed(0))
        assert (found - images).abs().max() <= EPS * (1 + 1e-6)
        assert found.min() >= LOW
        assert found.max() <= HIGH
        with torch.no_grad():
            logits = net(found)
        rows = torch.arange(32)
        right = logits[rows, labels].clone()
        logits[rows, labels] = -torch.inf
        return (right - logits.amax(1)).mean()

    assert margins(200) < margins(20) < margins(1)


def test_no_gradient_is_asked_for():
    net = network((1, 12, 12))
    images = centred(torch.from_numpy(random_images(4, (1, 12, 12))))

    def forward(x):
        assert not torch.is_grad_enabled()
        return net(x)

    spec = Adversary("square", 8.0, steps=3)
    perturb(forward, images, torch.zeros(4, dtype=torch.int64), spec, torch.Generator().manual_seed(0))
