"""An earlier result to compare with, image by image; refused where the two did not see the same images and attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.results import load_records, load_result
from hardbit_deploy.statistics import PairedComparison, compare_paired

__all__ = ["Baseline", "load_baseline"]

SAME_SUITE_KEYS = ("steps", "restarts", "losses")  # what makes attacks stronger or weaker; a seed does not


@dataclass(frozen=True)
class Baseline:
    """A result document and its per-image records."""

    path: Path
    document: Mapping[str, Any]
    records: Mapping[str, NDArray[Any]]

    def refuse_other_conditions(self, threat_model: Mapping[str, Any], suite: Mapping[str, Any]) -> None:
        """Raise HardbitError where a comparison would be of attacks instead of networks: call before hours of work."""
        for key, value in threat_model.items():
            if self.document["threat_model"].get(key) != value:
                self._refuse(f"was attacked with {key} {self.document['threat_model'].get(key)}, this run with {value}")
        for key in SAME_SUITE_KEYS:
            earlier, current = self.document["suite"].get(key), suite.get(key)
            if key in suite and earlier != current:
                self._refuse(f"was attacked with {key} {earlier}, this run with {current}")

    def compare(self, records: Mapping[str, NDArray[Any]], name: str) -> PairedComparison:
        """Pair outcome `name` ("clean" or "worst_case") by image index; raises HardbitError if the images differ."""
        earlier_order, order = np.argsort(self.records["index"]), np.argsort(records["index"])
        for key in ("index", "label"):
            if not np.array_equal(self.records[key][earlier_order], records[key][order]):
                self._refuse(f"holds other images: {self._counts(records)}")
        return compare_paired(self.records[name][earlier_order], records[name][order])

    def _counts(self, records: Mapping[str, NDArray[Any]]) -> str:
        earlier, current = len(self.records["index"]), len(records["index"])
        return f"{earlier:,} against {current:,}" if earlier != current else "the same number, other indices or labels"

    def _refuse(self, reason: str) -> None:
        raise HardbitError(
            f"the baseline {reason}",
            where=str(self.path),
            remedy="run the baseline again on the same images with the same attacks",
        )


def load_baseline(path: str | Path) -> Baseline:
    """Load result.json (or its folder) and the records beside it. Raises HardbitError."""
    path = Path(path)
    document = load_result(path)
    if not document["attacks"]:
        raise HardbitError(
            f"the baseline was never attacked: its verdict is {document['verdict']['name']}",
            where=str(path),
            remedy="name a result with attacks",
        )
    return Baseline(path, document, load_records(path, document))
