"""A shipped network twice: a PyTorch module on images in [0, 1], as peers take it, and an engine with its attack graph,
as hardbit takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.recipe import load_recipe
from hardbit.steps.train import load_trained_twin
from hardbit.targets import lower
from hardbit_deploy.engines import Engine, Gradient
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeGradient

MODELS = Path(__file__).parents[1] / "models"


@dataclass(frozen=True)
class Both:
    """Only images that the network gets right; `floats` are `images` as peers take them."""

    module: nn.Module
    engine: Engine
    gradient: Gradient
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def floats(self) -> torch.Tensor:
        return torch.from_numpy(self.images).float() / 255

    @property
    def truth(self) -> torch.Tensor:
        return torch.from_numpy(self.labels)


class UnitInterval(nn.Module):
    """A network of hardbit's input, (pixel - 128) / 256, on images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images * 255 - 128) / 256)


def shipped_network(folder: Path, count: int, name: str = "fashion-cnn-float") -> Both:
    """`count` images at most, less those that the network gets wrong; engine and gradient are active."""
    recipe = load_recipe(MODELS / name)
    twin = load_trained_twin(recipe, recipe.weights_path).eval().requires_grad_(False)
    canonical = export_canonical(twin, recipe.network.input_shape)
    files = {"engine": lower(canonical, "onnxruntime"), "attack": build_attack_graph(canonical)}
    for name, model in files.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    shape, classes = recipe.network.input_shape, recipe.network.classes
    engine = OnnxRuntimeEngine(folder / "engine.onnx", shape, classes).activate()
    gradient = OnnxRuntimeGradient(folder / "attack.onnx", shape, classes).activate()
    with np.load(MODELS / "fashion-cnn-w4a4/images.npz") as data:
        images, labels = (np.ascontiguousarray(data[key][:count]) for key in ("images", "labels"))
    right = engine.infer(images).argmax(axis=1) == labels
    return Both(UnitInterval(twin).eval(), engine, gradient, images[right], labels[right].astype(np.int64))


def keeps(module: nn.Module, points: torch.Tensor, truth: torch.Tensor) -> NDArray[np.bool_]:
    """Whether the module gives points in [0, 1] their label."""
    with torch.no_grad():
        return (module(points).argmax(dim=1) == truth).numpy()
