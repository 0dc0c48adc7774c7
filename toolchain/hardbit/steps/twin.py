"""The PyTorch twin on bytes, and whether a canonical graph computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hardbit.steps.step import StepError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Agreement", "canonical_logits", "require_agreement", "twin_logits"]

LARGEST_LOGIT_DIFFERENCE = 1e-4
LARGEST_FLIP_RATE = 0.01
LARGEST_TYPICAL_DIFFERENCE = 0.02
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


@dataclass(frozen=True)
class Agreement:
    """Labels that differ between twin and canonical graph, and the largest difference of a logit."""

    flips: int
    difference: float


def require_agreement(
    twin: NDArray[np.float32],
    canonical: NDArray[np.float32],
    images: str,
    float_parts: Sequence[Mapping[str, str]] = (),
    rounding_places: Sequence[Mapping[str, str]] = (),
) -> Agreement:
    """How two networks' logits, float32 (n, classes), agree. Raises StepError where they are not the same network.

    `images` says in words which images these are, `float_parts` what the network computes in float and why
    (`hardbit.targets.float_nodes`), `rounding_places` where its integer arithmetic may round in float32
    (`hardbit.graph.rounding`). Without any, every label is equal and every logit within LARGEST_LOGIT_DIFFERENCE. With
    some, a quantizer behind such a place may see either side of a border between codes: labels may differ on
    LARGEST_FLIP_RATE of the images, and logits by more than the bound on half of them; with float parts the bound is
    LARGEST_TYPICAL_DIFFERENCE of the logits' range.
    """
    differences = np.abs(twin.astype(np.float64) - canonical).max(1)
    found = Agreement(int((twin.argmax(1) != canonical.argmax(1)).sum()), float(differences.max()))
    places = [*float_parts, *rounding_places]
    flips = max(1, int(LARGEST_FLIP_RATE * len(twin))) if places else 0
    bound = LARGEST_LOGIT_DIFFERENCE
    if float_parts:
        bound = max(bound, LARGEST_TYPICAL_DIFFERENCE * float(twin.max() - twin.min()))
    judged = float(np.median(differences)) if places else found.difference
    if found.flips > flips or not judged <= bound or not np.isfinite(found.difference):
        exception = ""
        if places:
            exception = (
                f" ({judged:.3g} on half of them), as {len(places)} places may round differently, such as "
                f"'{places[0]['name']}': {places[0]['reason']}"
            )
        raise StepError(
            f"the canonical graph is not the trained network: on {len(twin)} {images} images {found.flips} labels "
            f"differ and the largest logit difference is {found.difference:.3g}, allowed are {flips} and "
            f"{bound:.3g}{exception}",
            where="export",
            remedy="this is a defect of hardbit.graph.export: please report it with the recipe",
        )
    return found
