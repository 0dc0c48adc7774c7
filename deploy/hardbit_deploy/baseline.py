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

# What makes attacks stronger or weaker; a seed does not.
SAME_SUITE_KEYS = ("steps", "restarts", "losses", "surrogates", "square_queries", "attacks", "transfer")


@dataclass(frozen=True)
class Baseline:
    """A result document and its per-image records."""

    path: Path
    document: Mapping[str, Any]
    records: Mapping[str, NDArray[Any]]

    def refuse_other_conditions(self, document: Mapping[str, Any]) -> None:
        """Raise HardbitError where a comparison with the run of `document` would be of data or attacks, not networks.

        `document` needs `threat_model`, `suite` and `evaluation` only, so that this can be asked before hours of work.
        """
        parts = (
            ("threat_model", ("norm", "eps_255")),
            ("suite", SAME_SUITE_KEYS),
            ("evaluation", ("data_set", "split")),
        )
        for part, keys in parts:
            earlier, current = self.document.get(part), document.get(part) or {}
            known = earlier if isinstance(earlier, Mapping) else {}
            if part == "suite" and isinstance(earlier, Mapping):
                known = {"attacks": []} | dict(known)  # results of before there were further attacks do not say so
            for key in keys:
                if key in current and known.get(key) != current[key]:
                    self._refuse(f"was made with {key} {known.get(key, 'unknown')}, this run with {current[key]}")

    def refuse_other_images(self, index: NDArray[np.int64], label: NDArray[np.int64]) -> None:
        """Raise HardbitError unless the records hold exactly the images of these indices, with these labels."""
        for earlier, current in zip(
            self._sorted(self.records), self._sorted({"index": index, "label": label}), strict=True
        ):
            if not np.array_equal(earlier, current):
                counts = f"{len(earlier):,} against {len(current):,}"
                same = "the same number, other indices or labels"
                self._refuse(f"holds other images: {same if len(earlier) == len(current) else counts}")

    def compare(self, records: Mapping[str, NDArray[Any]], name: str) -> PairedComparison:
        """Pair outcome `name` ("clean" or "worst_case") by image index; raises HardbitError if the images differ."""
        self.refuse_other_images(records["index"], records["label"])
        earlier = self.records[name][np.argsort(self.records["index"])]
        return compare_paired(earlier, records[name][np.argsort(records["index"])])

    @staticmethod
    def _sorted(records: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        order = np.argsort(records["index"])
        return records["index"][order], records["label"][order]

    def _refuse(self, reason: str) -> None:
        raise HardbitError(
            f"the baseline {reason}",
            where=str(self.path),
            remedy="check the baseline again on the same images with the same attacks",
        )


def load_baseline(path: str | Path) -> Baseline:
    """Load result.json (or its folder) and the records beside it. Raises HardbitError."""
    path = Path(path)
    document = load_result(path)
    if not document["attacks"]:
        raise HardbitError(
            f"the baseline was never attacked: its verdict is {document['verdict'].get('name', 'unknown')}",
            where=str(path),
            remedy="name a result with attacks",
        )
    records = load_records(path, document)
    kinds = {"index": np.integer, "label": np.integer, "clean": np.bool_, "worst_case": np.bool_}
    count = records["index"].shape if "index" in records else ()
    for name, kind in kinds.items():
        if name not in records or records[name].shape != count or not np.issubdtype(records[name].dtype, kind):
            raise HardbitError(
                f"the baseline's records are damaged: {name} is missing or of another kind",
                where=str(path),
                remedy="check the baseline again",
            )
    return Baseline(path, document, records)
