"""The networks have the sizes of their papers, or of the usual CIFAR forms of them, and docs/networks.md says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from hardbit import nets

PAGE = Path(__file__).parents[2] / "docs/networks.md"
PUBLISHED = {
    "resnet18": (11.17e6, 0.01),  # the form for CIFAR-10 without the stem of ImageNet
    "wrn-16-4": (2.75e6, 0.01),  # Zagoruyko & Komodakis 2016
    "mobilenetv2": (2.24e6, 0.01),  # Sandler et al. 2018 with ten classes in place of a thousand
    "vgg-small": (4.66e6, 0.01),  # LQ-Nets, six convolutions of 128 to 512 channels
}


def parameters(architecture: str) -> int:
    return sum(p.numel() for p in nets.build(architecture).parameters())


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_parameters(architecture):
    expected, tolerance = PUBLISHED[architecture]
    assert parameters(architecture) == pytest.approx(expected, rel=tolerance)


def test_the_vision_transformer_is_small_enough_to_be_trained_on_two_cores():
    assert 200e3 <= parameters("vit") <= 300e3


@pytest.mark.parametrize("architecture", nets.names())
def test_a_batch_of_images_becomes_logits(architecture):
    network = nets.build(architecture, **({} if architecture == "lenet" else {"width": 24})).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, *network.input_shape)).shape == (2, 10)


def test_depths():
    def layers(architecture, kind=nn.Conv2d | nn.Linear):
        network = nets.build(architecture, width=8)
        return {name for name, module in network.named_modules() if isinstance(module, kind)}

    assert len([name for name in layers("resnet18") if "shortcut" not in name]) == 18
    assert len(layers("wrn-16-4", nn.Conv2d)) == 16  # that paper counts the convolutions, those of shortcuts included
    assert len(layers("mobilenetv2")) == 1 + 2 + 16 * 3 + 1 + 1
    assert len(layers("vgg-small")) == 7


def test_the_page_on_networks_lists_them_with_their_sizes():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \|", PAGE.read_text(encoding="utf-8"), flags=re.M))
    assert {name: int(count.replace(",", "")) for name, count in rows.items()} == {
        n: parameters(n) for n in nets.names()
    }
