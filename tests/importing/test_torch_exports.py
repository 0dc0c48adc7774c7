"""Networks as PyTorch exports them for one image: heads merged with the batch, class tokens, padding, upsampling."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from hardbit.graph.gradient import build_attack_graph
from hardbit.importing import import_network
from hardbit.ptq import quantize_network
from hardbit.targets import lower
from importing_examples import logits_of, pixels

torch = pytest.importorskip("torch")
nn = torch.nn


class Transformer(nn.Module):
    """Patches, a class token, two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.places = (nn.Parameter(torch.randn(1, length, 16)) for length in (1, 5))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = self.patches(image).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(len(image), -1, -1), rows], 1) + self.places
        return self.head(self.encoder(rows)[:, 0])


class SequenceFirst(nn.Module):
    """Attention whose batch is the second axis, and in its own matrix products the faster half of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.MultiheadAttention(16, 4)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = self.patches(image).flatten(2).permute(2, 0, 1)
        mixed, _ = self.attention(rows, rows, rows, need_weights=False)
        return self.head(self.norm(mixed + rows).mean(0))


class Mixture(nn.Module):
    """What mobile networks are made of: depthwise layers, squeeze and excite, hard swish, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, stride=2, bias=False)
        self.second_norm, self.squeeze = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(4, 10)
        for norm in (self.norm, self.second_norm):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        functional = nn.functional
        maps = functional.hardswish(self.norm(self.first(image)))
        maps = functional.interpolate(maps, scale_factor=2, mode="bilinear")
        maps = functional.silu(self.second_norm(self.depthwise(functional.pad(maps, (1, 1, 1, 1)))))
        maps = maps * torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(maps, 1)))
        left, right = maps.chunk(2, 1)
        maps = functional.gelu(self.up(torch.cat([left, right.abs()], 1)))
        return self.head(maps.view(maps.size(0), maps.size(1), -1).amax(-1))


NETWORKS = {"transformer": Transformer, "sequence first": SequenceFirst, "mixture": Mixture}


def compare(name: str, folder: Path, *, dynamo: bool, dynamic: bool = False) -> None:
    """The import computes what the module does, and goes all the way to an engine and its attack graph."""
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    path, image = folder / "net.onnx", torch.rand(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(module, (image,), path, dynamo=True, external_data=False, verbose=False)
        else:
            axes = {"x": {0: "batch"}} if dynamic else None
            torch.onnx.export(
                module, (image,), path, dynamo=False, opset_version=14, input_names=["x"], dynamic_axes=axes
            )
    images = pixels(5)
    network = import_network(path)
    with torch.no_grad():
        expected = module(torch.from_numpy(images / 255).float()).numpy()
    np.testing.assert_allclose(logits_of(network, images), expected, atol=2e-5)
    canonical = quantize_network(network.model, images)
    lower(canonical, "onnxruntime")
    build_attack_graph(canonical)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["one image", "any number"])
def test_a_module_by_way_of_torchscript(name: str, dynamic: bool, tmp_path: Path) -> None:
    compare(name, tmp_path, dynamo=False, dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_module_by_way_of_torch_export(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    compare(name, tmp_path, dynamo=True)
