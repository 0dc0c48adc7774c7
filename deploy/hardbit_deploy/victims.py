"""Images that are attacked, with what an attack needs to know of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.threat_model import ThreatModel

__all__ = ["Victims", "outside"]


@dataclass(frozen=True)
class Victims:
    """`images` uint8 (n, channels, height, width), their `labels` int64 (n,) and places in the data set int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: Any) -> Victims:
        """Some of them: rows by number, by a mask, or a slice."""
        return Victims(self.images[rows], self.labels[rows], self.indices[rows])


def outside(adversarial: NDArray[np.uint8], images: NDArray[np.uint8], threat_model: ThreatModel) -> NDArray[np.bool_]:
    """Which images leave the ball, bool (n,): from the bytes alone, in plain arithmetic that shares nothing with the
    attacks. Bytes cannot leave [0, 255]."""
    delta = (adversarial.astype(np.int64) - images).reshape(len(images), math.prod(images.shape[1:]))
    if threat_model.norm == "linf":
        return np.asarray(np.abs(delta).max(axis=1, initial=0) > threat_model.eps_255)
    return np.asarray((delta * delta).sum(axis=1) > threat_model.eps_255**2)
