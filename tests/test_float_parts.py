"""Networks that users bring with float parts: the same numbers from twin to engine, and gradients of float accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradient_reference import relative_error
from gradient_reference import run as run_graph
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.quantize import Bits, calibrate, freeze, quantize
from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit.train.adversary import centred
from lowering_examples import run
from quantized_examples import give_statistics, random_images

SHAPE = (3, 12, 12)


class Mixer(nn.Module):
    """Tokens and channels mixed by turns, GELU and a gate between: linear layers along two axes of a tensor."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm1 = nn.LayerNorm(16)
        self.tokens1 = nn.Linear(9, 12)
        self.gelu = nn.GELU()
        self.tokens2 = nn.Linear(12, 9)
        self.norm2 = nn.LayerNorm(16, elementwise_affine=False)
        self.channels1 = nn.Linear(16, 32)
        self.channels2 = nn.Linear(32, 16)
        self.layer_scale = nn.Parameter(torch.rand(16))
        self.fc = nn.Linear(16, 10)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        y = self.norm1(x).transpose(-1, -2)
        x = x + self.tokens2(self.gelu(self.tokens1(y))).transpose(1, 2)
        y = self.channels2(F.gelu(self.channels1(self.norm2(x))))
        x = x + self.layer_scale * y
        return self.fc(x.mean(dim=1))


class Pooled(nn.Module):
    """Attention over space as a pool, a BatchNorm behind a maximum, ReLU6 as a function, a mean over two axes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.score = nn.Linear(8, 1)
        self.fc1 = nn.Linear(8, 12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, image):
        x = F.relu6(self.norm(self.pool(F.relu6(self.conv1(image)))))
        x = F.relu6(4 * self.conv2(x))
        pixels = x.flatten(2).permute(0, 2, 1)
        attention = self.score(pixels).softmax(1)
        pooled = (attention.transpose(1, 2) @ pixels).flatten(1)
        return self.fc2(F.relu(self.fc1(pooled + x.mean((2, 3)))))


NETWORKS = pytest.mark.parametrize("network", [Mixer, Pooled])
WIDTHS = [Bits(8, 8), Bits(4, 4), Bits(4, 32), Bits(32, 4), Bits(32, 32, 32, 32)]
FLOAT = WIDTHS[-1]


def made(network, bits):
    """(twin, canonical graph, images uint8, centred images)."""
    torch.manual_seed(0)
    module = quantize(network(), "onnxruntime", bits)
    pixels = random_images(64, SHAPE)
    images = centred(torch.from_numpy(pixels))
    calibrate(module, [images])
    give_statistics(module, images)
    twin = freeze(module).eval()
    return twin, export_canonical(twin, SHAPE), pixels, images


@NETWORKS
@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_twin_canonical_graph_and_engine_agree(network, bits):
    twin, canonical, pixels, images = made(network, bits)
    with torch.no_grad():
        expected = twin(images).numpy()
    assert len(np.unique(expected.round(4), axis=0)) > 32
    engine = lower(canonical, "onnxruntime")
    for logits in (run(canonical, pixels), run(engine, pixels), run(engine, pixels, optimised=True)):
        assert np.mean(logits.argmax(1) == expected.argmax(1)) > 0.95
        assert np.median(np.abs(logits - expected).max(1)) < 1e-4 * np.ptp(expected)


@NETWORKS
def test_gradients_of_the_float_network_have_float_accuracy(network):
    twin, canonical, pixels, images = made(network, FLOAT)
    onehot = np.eye(10, dtype=np.float32)[np.arange(64) % 10]
    engine_logits = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    feeds = {
        "image": pixels,
        "onehot": onehot,
        "engine_logits": engine_logits,
        "own_logits": np.array(False),
        "loss_weights": np.array([1, 0], np.float32),
        "seed": np.zeros_like(engine_logits),
    }
    gradient = run_graph(build_attack_graph(canonical), feeds)["gradient"]
    z, y = torch.from_numpy(engine_logits).double(), torch.from_numpy(onehot).double()
    point = images.double().requires_grad_()
    seed = torch.softmax(z - 1e9 * y, 1) - y
    (expected,) = torch.autograd.grad(twin.double()(point), point, seed)
    assert relative_error(gradient, expected.numpy()) < 1e-5


def test_layers_along_any_axis_are_integer_and_the_rest_is_declared():
    _, canonical, _, _ = made(Mixer, Bits(4, 4))
    assert [node["name"] for node in integer_nodes(canonical)] == [
        "patches",
        "tokens1",
        "tokens2",
        "channels1",
        "channels2",
        "fc",
    ]
    declared = {node["name"]: node["reason"] for node in float_nodes(canonical)}
    assert declared["norm1"].startswith("every row is divided by a deviation")
    assert declared["gelu.erf"] == declared["gelu"] == "a smooth function of floats: no integer kernel does that"
    assert declared["add"] == "a sum of floats"
    assert declared["mul"] == "a product of floats"


def test_a_batch_norm_behind_a_maximum_is_an_integer_layer_of_its_own():
    _, canonical, _, _ = made(Pooled, Bits(4, 4))
    integer = [node["name"] for node in integer_nodes(canonical)]
    assert {"conv1", "norm", "fc1", "fc2"} <= set(integer)


@pytest.mark.parametrize(
    ("bits", "reason"), [(Bits(4, 32), "its activations are float"), (Bits(32, 4), "its weights are float")]
)
def test_layers_of_other_widths_say_which_side_is_float(bits, reason):
    _, canonical, _, _ = made(Mixer, bits)
    assert {"name": "channels1", "reason": reason} in float_nodes(canonical)
