"""Which neighbours become one operation: those whose results nobody else reads."""

import torch
from torch import nn

from hardbit.quantize import Bits, quantize
from hardbit.train.fusion import chains_of
from training_networks import module_of


def kinds(module, *, with_norms):
    """What each chain consists of, as words."""
    roles = ("norm", "clip", "add", "then")
    chains = chains_of(module, with_norms=with_norms)
    return sorted(" ".join(role for role in roles if getattr(chain, role)) for chain in chains)


class Block(nn.Module):
    """A convolution whose ReLU is added to itself, or read twice."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.fc = nn.Linear(3 * 16, 10)
        self.input_shape = (3, 4, 4)
        self._forward = forward

    def forward(self, image):
        return self.fc(torch.flatten(self._forward(self, image), 1))


def test_the_chains_of_residual_networks():
    """Three blocks, two of them with a convolution in the shortcut: one branch joins, the other is the operand."""
    whole = ["clip", *["norm clip"] * 6, *["norm clip add then"] * 3, "clip"]
    assert kinds(module_of("resnet8"), with_norms=True) == sorted(whole)
    assert kinds(module_of("resnet8"), with_norms=False) == sorted(["clip"] * 8 + ["clip add then"] * 3)
    # In float no quantizer stands between BatchNorm and sum, and a ReLU alone is one pass already.
    assert kinds(module_of("resnet8, float"), with_norms=True) == sorted(
        ["norm clip"] * 4 + ["norm add then"] * 3 + ["norm"] * 2
    )
    assert kinds(module_of("resnet8, float"), with_norms=False) == ["add then"] * 3


def test_no_two_chains_share_a_node_and_none_holds_one_that_others_read():
    for name in ("resnet8", "mobilenetv2", "wrn-16-4", "vit"):
        module = module_of(name)
        chains = chains_of(module, with_norms=True)
        nodes = [node for chain in chains for node in chain.nodes]
        assert len(nodes) == len(set(nodes))
        for chain in chains:
            assert all(len(node.users) == 1 for node in chain.nodes[:-1])


def test_what_two_read_ends_a_chain():
    twice = Block(lambda self, x: (y := self.relu(self.bn(self.conv(x)))) + torch.relu(self.conv2(y)))
    twice.conv2 = nn.Conv2d(3, 3, 1)
    module = quantize(twice, "onnxruntime", Bits(4, 4))
    first, *rest = (chain for chain in chains_of(module, with_norms=True) if chain.norm)
    assert not rest
    assert first.add is None  # the second convolution reads it too


def test_a_sum_with_a_constant_stays_alone():
    """The positions that a vision transformer adds are of another shape."""
    module = module_of("vit")
    constants = {node for node in module.graph.nodes if node.op == "get_attr"}
    assert constants
    for chain in chains_of(module, with_norms=True):
        assert not constants & {chain.x, chain.other}
