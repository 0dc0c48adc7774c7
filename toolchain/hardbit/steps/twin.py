"""The PyTorch twin on bytes, and whether a canonical graph computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hardbit.steps.step import StepError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LARGEST_LOGIT_DIFFERENCE", "canonical_logits", "require_agreement", "twin_logits"]

LARGEST_LOGIT_DIFFERENCE = 1e-4
_BATCH = 250


def twin_logits(twin: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits float32 (n, classes) of the twin in evaluation mode for images uint8 (n, channels, height, width)."""
    import torch

    from hardbit.train.adversary import centred

    twin.eval()
    with torch.no_grad():
        parts = [
            twin(centred(torch.from_numpy(np.array(images[start : start + _BATCH])))).numpy()
            for start in range(0, len(images), _BATCH)
        ]
    return np.concatenate(parts).astype(np.float32)


def canonical_logits(canonical: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same of a canonical graph, evaluated operator by operator: ONNX Runtime with its optimisations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(canonical, options, providers=["CPUExecutionProvider"])
    parts = [
        session.run(["logits"], {"image": (images[start : start + _BATCH].astype(np.float32) - 128) / 256})[0]
        for start in range(0, len(images), _BATCH)
    ]
    return np.concatenate(parts)


def require_agreement(twin: NDArray[np.float32], canonical: NDArray[np.float32], images: str) -> float:
    """The largest logit difference. Raises StepError unless every label is equal and the difference is within bounds.

    Both are float32 (n, classes); `images` says in words which images these are.
    """
    flips = int((twin.argmax(1) != canonical.argmax(1)).sum())
    difference = float(np.abs(twin.astype(np.float64) - canonical).max())
    if flips or not difference <= LARGEST_LOGIT_DIFFERENCE:
        raise StepError(
            f"the canonical graph is not the trained network: on {len(twin)} {images} images {flips} labels differ and "
            f"the largest logit difference is {difference:.3g}, allowed are 0 and {LARGEST_LOGIT_DIFFERENCE:g}",
            where="export",
            remedy="this is a defect of hardbit.graph.export: please report it with the recipe",
        )
    return difference
