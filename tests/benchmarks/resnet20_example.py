"""ResNet-20 in every form that the benchmarks compare: float, Brevitas twin, INT8 engine and attack graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from hardbit import nets
from hardbit.graph.export import export_canonical
from hardbit.graph.gradient import build_attack_graph
from hardbit.graph.gradient.integer_cotangents import with_integer_cotangents
from hardbit.quantize import freeze
from hardbit.targets import lower
from quantized_examples import calibrated, random_images

INPUT_SHAPE = (3, 32, 32)
CLASSES = 10


@dataclass(frozen=True)
class Forms:
    """`floating` and `twin` take centred float images; the files take bytes. `integer` is the attack graph whose
    backward pass runs in integers, which networks of 8 bits have."""

    floating: nn.Module
    twin: nn.Module
    engine: Path
    attack: Path
    integer: Path | None
    images: NDArray[np.uint8]


def resnet20_forms(bits: int, folder: Path, count: int) -> Forms:
    """Random weights, scales calibrated, at one width throughout (8-bit first and last layer), with `count` images."""
    torch.manual_seed(0)
    floating = nets.build("resnet20").eval()
    twin = freeze(calibrated("resnet20", bits)).eval()
    for module in (floating, twin):
        module.requires_grad_(False)
    canonical = export_canonical(twin, INPUT_SHAPE)
    engine, attack = folder / f"engine{bits}.onnx", folder / f"attack{bits}.onnx"
    onnx.save(lower(canonical, "onnxruntime"), engine)
    exact, images = build_attack_graph(canonical), random_images(count, INPUT_SHAPE)
    onnx.save(exact, attack)
    integer = None
    if (model := with_integer_cotangents(exact, images)) is not None:
        integer = folder / f"integer{bits}.onnx"
        onnx.save(model, integer)
    return Forms(floating, twin, engine, attack, integer, images)


def resnet20_canonical(bits: int) -> onnx.ModelProto:
    """The canonical graph of the same network."""
    return export_canonical(freeze(calibrated("resnet20", bits)).eval(), INPUT_SHAPE)
