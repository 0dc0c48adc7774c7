"""What stands for the derivative of a Sign, where a network has one: the choice by which the attack gets further.

Clipped, as most binary networks are trained (Courbariaux et al. 2016, arXiv:1602.02830), gives no direction where sums
are larger than 1, and in networks without BatchNormalization nearly all are. Which of the two misleads less is not seen
in the graph, so both climb a few images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["SIGNS", "has_sign", "stronger_sign"]

SIGNS = ("clipped", "identity")
_IMAGES, _STEPS = 64, 10


def has_sign(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "Sign" for node in model.graph.node)


def stronger_sign(
    model: onnx.ModelProto, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int, threat_model: Any
) -> tuple[str, dict[str, int]]:
    """The better of `SIGNS` ("clipped" where they are equal) for a float or canonical graph, and for each how many of
    the first 64 images are right after PGD-10 with it. `images` are uint8 (n, channels, height, width)."""
    from hardbit.graph.gradient import build_attack_graph
    from hardbit_deploy.attacks.transfer import last_iterates
    from hardbit_deploy.engines.onnxruntime import OnnxRuntimeGradient

    images, labels = images[:_IMAGES], labels[:_IMAGES]
    standing: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="hardbit-sign-") as folder:
        for sign in SIGNS:
            graph = Path(folder) / f"{sign}.onnx"
            attack = build_attack_graph(model, straight_through="clipped" if sign == "clipped" else "identity")
            graph.write_bytes(attack.SerializeToString())
            _, channels, height, width = images.shape
            with OnnxRuntimeGradient(graph, (channels, height, width), classes) as gradient:
                made = last_iterates(
                    gradient, images, labels, threat_model, _STEPS, loss="cross_entropy", restart=0, seed=0
                )
                standing[sign] = int((gradient.logits(made).argmax(1) == labels).sum())
    return min(SIGNS, key=standing.__getitem__), standing
