"""What the attacker may change: the first thing that every result names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from hardbit_deploy.errors import HardbitError

__all__ = ["NORMS", "Norm", "ThreatModel"]

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = ("linf", "l2")


@dataclass(frozen=True)
class ThreatModel:
    """A ball around the image, in grey levels: `linf` bounds every byte's change, `l2` the Euclidean norm of all.

    `eps_255` is eps times 255: an eps of 8/255 in L-inf is 8.0, an eps of 0.5 in L2 is 127.5. The attacker knows the
    bundle (architecture, weights, scales), the engine receives bytes and the engine decides.
    """

    norm: Norm
    eps_255: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise HardbitError(
                f"norm {self.norm!r} is not known", where="threat_model.norm", remedy="choose one of linf, l2"
            )
        if not (math.isfinite(self.eps_255) and self.eps_255 >= 0):
            raise HardbitError(
                f"eps_255 is {self.eps_255!r}",
                where="threat_model.eps_255",
                remedy="give a number of grey levels, zero or more",
            )

    @classmethod
    def of(cls, norm: str, eps_255: float) -> ThreatModel:
        """Build from values that came out of a file; raises HardbitError for a norm that is not known."""
        return cls(cast(Norm, norm), float(eps_255))

    def at(self, eps_255: float) -> ThreatModel:
        """The same norm with another radius."""
        return ThreatModel(self.norm, eps_255)

    def grey_radius(self, values_per_image: int) -> float:
        """The eps at which every image can be turned into uniform middle grey, so that nothing of it need be left."""
        return 128.0 if self.norm == "linf" else 128.0 * math.sqrt(values_per_image)

    def to_document(self) -> dict[str, str | float]:
        return {"norm": self.norm, "eps_255": self.eps_255}
