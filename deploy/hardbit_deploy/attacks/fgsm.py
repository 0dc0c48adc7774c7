"""The fast gradient sign method (Goodfellow et al. 2015): one step of the whole eps, without a random start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import iterates_from
from hardbit_deploy.attacks.outcome import AttackOutcome, keeps_label, margins
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine, Gradient

__all__ = ["fgsm"]


def fgsm(
    engine: Engine,
    gradient: Gradient,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    loss: str = "cross_entropy",
    clean_logits: NDArray[np.float32] | None = None,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width); in L2 the step follows the normalised gradient.

    `clean_logits` float32 (n, classes), the engine's on `images`, saves a pass where they are known.
    """
    if clean_logits is None:
        clean_logits = engine.infer(images)
    iterates = iterates_from(images, images, threat_model)
    iterates.step(gradient.gradient(images, labels, clean_logits, loss), threat_model.eps_255)
    logits = engine.infer(iterates.bytes)
    return AttackOutcome(iterates.bytes, keeps_label(logits, labels), logits, margins(logits, labels))
