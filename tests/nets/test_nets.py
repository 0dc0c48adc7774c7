"""The networks are plain PyTorch and have the shapes and sizes of the papers they follow."""

import pytest
import torch
from torch import nn

from hardbit import nets
from hardbit.nets import register
from hardbit_deploy.errors import HardbitError


@pytest.mark.parametrize("name", ["lenet", "resnet8", "resnet20"])
def test_a_network_maps_a_batch_of_its_images_to_logits(name):
    network = nets.build(name).eval()
    assert network(torch.zeros(3, *network.input_shape)).shape == (3, network.classes)


def test_resnet20_has_twenty_layers_and_the_published_size():
    network = nets.build("resnet20")
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    projections = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(layers) - len(projections) == 20
    parameters = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for m in projections for p in m.parameters()
    )
    assert parameters == pytest.approx(0.27e6, rel=0.02)  # He et al. 2016, table 6


def test_options_reach_the_network():
    assert nets.build("lenet", channels=(3, 5), hidden=7, classes=4).fc2.out_features == 4


def test_an_unknown_network_or_option_is_refused_with_the_known_ones():
    with pytest.raises(HardbitError, match=r"no network 'lenett'.*lenet, mobilenetv2, resnet18"):
        nets.build("lenett")
    with pytest.raises(HardbitError, match=r"no option 'chanels'.*channels"):
        nets.build("lenet", chanels=(1, 2))


@pytest.mark.parametrize(
    "options",
    [{"channels": (16,)}, {"channels": (-1, 4)}, {"hidden": -1}, {"input_shape": (1, 28)}, {"classes": "ten"}],
)
def test_options_that_make_no_network_are_refused(options):
    with pytest.raises(HardbitError, match=r"^network: no network 'lenet' can be made of these options"):
        nets.build("lenet", **options)


def test_registering_a_name_twice_warns(monkeypatch):
    from hardbit.nets import registry

    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    nets.names()
    with pytest.warns(UserWarning, match="'lenet' replaces another"):
        register("lenet")(nn.Identity)
