"""How fast Square queries an INT8 engine, against the plain loop and against peers where they are installed.

Peers are given the engine, and auto-attack the float PyTorch network too: that is what its users attack. It gets the
layout and the size of batches at which PyTorch was seen to be fastest.

One pinned core, contenders interleaved, medians of CPU time. Nothing is asserted on speed: the table is the result.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.resnet20_example import resnet20_forms
from benchmarks.test_attack_speed import interleaved_medians, one_core  # noqa: F401 (a fixture)
from hardbit.data import load_images
from hardbit.graph.export import export_canonical
from hardbit.recipe import load_recipe
from hardbit.steps.train import load_trained_twin
from hardbit.targets import lower
from hardbit_deploy.attacks import ThreatModel, square
from hardbit_deploy.attacks.square import share_of_image
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_core")]

MODELS = Path(__file__).parents[2] / "models"
QUERIES = 200
FLOAT_BATCH = 32
# So small a ball that hardly an image falls: all make all queries, and a second of one contender is one of another.
RADII_255 = {"linf": 2.0, "l2": 24.0}


class EngineModule(nn.Module):
    """The engine as peers take a network: floats in [0, 1] in, rounded to bytes, logits out."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        super().__init__()
        self.engine = engine
        self.device_of = nn.Parameter(torch.zeros(1))  # they ask a parameter for its device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.engine.infer((images * 255).round().to(torch.uint8).numpy()))


class FloatModule(nn.Module):
    """A float network, whose images are (pixel - 128) / 256, as peers take one; channels last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(((images * 255 - 128) / 256).contiguous(memory_format=torch.channels_last))


def plain_square(
    engine: OnnxRuntimeEngine, images: NDArray[np.uint8], labels: NDArray[np.int64], eps: float, queries: int
) -> None:
    """The loop that a reader of the paper writes in numpy, and writes well: float images, standing images only, one
    image after the other where squares are placed."""
    rng = np.random.default_rng(0)
    clean = images.astype(np.float32)
    count, channels, height, width = images.shape

    def margin(points: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = engine.infer(np.rint(points).astype(np.uint8))
        rows = np.arange(len(truth))
        right = logits[rows, truth].copy()
        logits[rows, truth] = -np.inf
        return right - logits.max(axis=1)

    best = np.clip(clean + eps * rng.choice([-1, 1], (count, channels, 1, width)), 0, 255).astype(np.float32)
    lowest = margin(best, labels)
    for query in range(1, queries):
        standing = np.flatnonzero(lowest > 0)
        side = max(1, round(math.sqrt(share_of_image(query, queries) * height * width)))
        points = best[standing]
        for row, image in enumerate(standing):
            top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            window = np.s_[:, top : top + side, left : left + side]
            points[row][window] = clean[image][window] + eps * rng.choice([-1, 1], (channels, 1, 1))
        np.clip(points, 0, 255, out=points)
        found = margin(points, labels[standing])
        better = found <= lowest[standing]
        best[standing[better]], lowest[standing[better]] = points[better], found[better]


def contenders_of(
    engine: OnnxRuntimeEngine, network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> dict[str, Callable[[], object]]:
    floats, truth = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    module, floating = EngineModule(engine), FloatModule(network)
    own_truth = floating(floats).argmax(dim=1)

    def in_batches(attack: Any) -> None:
        for part in torch.arange(len(floats)).split(FLOAT_BATCH):
            attack.perturb(floats[part], own_truth[part])

    def alone() -> None:
        for _ in range(QUERIES):
            engine.infer(images)

    found: dict[str, Callable[[], object]] = {"the engine alone": alone}
    for norm, radius in RADII_255.items():
        model = ThreatModel(norm, radius)
        found[f"hardbit, {norm}"] = lambda m=model: square(engine, images, labels, m, queries=QUERIES)
    found["plain loop, linf"] = lambda: plain_square(engine, images, labels, RADII_255["linf"], QUERIES)
    if importlib.util.find_spec("torchattacks"):
        from torchattacks import Square

        for norm, radius in RADII_255.items():
            attack = Square(module, norm={"linf": "Linf", "l2": "L2"}[norm], eps=radius / 255, n_queries=QUERIES)
            found[f"torchattacks, {norm}"] = lambda a=attack: a(floats, truth)
    if importlib.util.find_spec("pyautoattack"):
        from pyautoattack.square import SquareAttack

        for norm, radius in RADII_255.items():
            name = {"linf": "Linf", "l2": "L2"}[norm]
            peer = SquareAttack(module, norm=name, eps=radius / 255, n_queries=QUERIES, device="cpu")
            found[f"auto-attack, {norm}"] = lambda p=peer: p.perturb(floats, truth)
            usual = SquareAttack(floating, norm=name, eps=radius / 255, n_queries=QUERIES, device="cpu")
            found[f"auto-attack, float PyTorch, {norm}"] = lambda p=usual: in_batches(p)
    return found


def show(title: str, medians: dict[str, float], images: int, capsys: pytest.CaptureFixture[str]) -> None:
    ceiling = images / medians["the engine alone"]
    with capsys.disabled():
        print(f"\n{title}: images a second of CPU time with {QUERIES} queries each, one core")
        for name, seconds in medians.items():
            print(f"  {name:34s} {images / seconds:8.1f}  {images / seconds / ceiling:6.1%} of the engine alone")


@pytest.mark.timeout(1800)
def test_square_on_the_shipped_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, count = load_recipe(MODELS / "fashion-cnn-w4a4"), 256
    in_float = load_recipe(MODELS / "fashion-cnn-float")
    network = load_trained_twin(in_float, in_float.weights_path)
    canonical = export_canonical(load_trained_twin(recipe, recipe.weights_path), recipe.network.input_shape)
    file = tmp_path / "engine.onnx"
    file.write_bytes(lower(canonical, "onnxruntime").SerializeToString())
    images = np.array(load_images(recipe.evaluation_set, "test", count).images)
    with OnnxRuntimeEngine(file, recipe.network.input_shape, recipe.network.classes) as engine:
        labels = engine.infer(images).argmax(axis=1)
        medians = interleaved_medians(contenders_of(engine, network, images, labels))
    show("fashion-cnn-w4a4, 28x28", medians, count, capsys)


@pytest.mark.timeout(1800)
def test_square_on_resnet20(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forms = resnet20_forms(8, tmp_path, 32)
    with OnnxRuntimeEngine(forms.engine, (3, 32, 32), 10) as engine:
        labels = engine.infer(forms.images).argmax(axis=1)
        medians = interleaved_medians(contenders_of(engine, forms.floating, forms.images, labels))
    show("ResNet-20 W8A8, 32x32", medians, len(forms.images), capsys)
