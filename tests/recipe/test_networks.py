"""A recipe can name every network, its defaults make the network that the code makes, and its sizes have to fit."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from hardbit import nets
from hardbit.recipe import Network, RecipeError, parse_recipe
from hardbit.recipe.defaults import INPUT_SHAPES, NETWORK_OPTIONS

RECIPE = """\
name = "x"
[network]
architecture = "{architecture}"
{options}
[data]
set = "cifar10"
[[training.phases]]
epochs = 1
"""


def network(architecture: str, options: str = "") -> Network:
    return parse_recipe(RECIPE.format(architecture=architecture, options=options)).network


def test_the_recipe_knows_the_networks_that_there_are():
    assert sorted(get_args(Network.model_fields["architecture"].annotation)) == nets.names()
    assert sorted(NETWORK_OPTIONS) == sorted(INPUT_SHAPES) == nets.names()


@pytest.mark.parametrize("architecture", nets.names())
def test_defaults_are_those_of_the_code(architecture):
    builder = nets.registry._BUILDERS[architecture]
    defaults = {name: p.default for name, p in inspect.signature(builder).parameters.items()}
    written = NETWORK_OPTIONS[architecture] | {"input_shape": INPUT_SHAPES[architecture], "classes": 10}
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()} == written


@pytest.mark.parametrize("architecture", ["vgg-small", "resnet18", "wrn-16-4", "mobilenetv2", "vit"])
def test_options_of_a_recipe_make_the_network(architecture):
    options = network(architecture, "width = 12").options()
    built = nets.build(architecture, **options)
    assert built.input_shape == (3, 32, 32)
    widths = [p.shape[0] for p in built.parameters() if p.dim() == 4]
    assert widths[0] == 12


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("vit", "heads = 5", r"network.heads: 5 heads cannot share a width of 96"),
        ("vit", "patch = 5", r"network.input_shape: vit divides height and width by 5, which \[32, 32\] do not allow"),
        ("resnet18", "patch = 4", r"network.patch: resnet18 has no 'patch'; its options are width"),
        ("vit", "hidden = 4", r"network.hidden: vit has no 'hidden'; its options are width, depth, heads, patch"),
        ("vgg-small", "input_shape = [3, 28, 28]", r"vgg-small divides height and width by 8, which \[28, 28\]"),
        ("vgg", "", r"network.architecture"),
    ],
)
def test_sizes_that_do_not_fit_are_named_before_anything_is_built(architecture, options, message):
    with pytest.raises(RecipeError, match=message):
        network(architecture, options)
