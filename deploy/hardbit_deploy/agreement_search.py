"""The attack on the agreement of engine and attack graph, as a row of a result beside the others.

Boundary: the row stands for itself: a search for flips says nothing of their share, so that no alarm counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hardbit_deploy import engines
from hardbit_deploy.attacks.disagreement import disagreement
from hardbit_deploy.bundle import Bundle
from hardbit_deploy.engines.base import Target
from hardbit_deploy.statistics import clopper_pearson_upper

__all__ = ["SEARCHED_IMAGES", "agreement_row"]

SEARCHED_IMAGES = 64  # each is some hundred points: seconds for a ResNet-20


def agreement_row(
    bundle: Bundle,
    limit: int | None = None,
    seed: int = 0,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    open_target: Callable[[Bundle], Target] = engines.open_target,
) -> dict[str, Any]:
    """Search around the bundle's first images (`limit`, at most SEARCHED_IMAGES) and return the row `disagreement`.

    `images` were searched around, `points` compared; `label_flips` are images for which a point of two labels was
    found, `flips_upper_bound` the exact bound (95 %) of the share of images for which this search finds one.
    """
    count = min(limit or SEARCHED_IMAGES, SEARCHED_IMAGES, len(bundle.images))
    images = np.array(bundle.images[:count])
    report("search for disagreement", 0, count)
    with open_target(bundle) as target:
        found = disagreement(target.engine, target.gradient, images, bundle.manifest.threat_model, seed=seed)
    flips = int(np.count_nonzero(found.flipped))
    return {
        "name": "disagreement",
        "images": count,
        "label_flips": flips,
        "flips_upper_bound": clopper_pearson_upper(flips, count),
        "max_logit_difference": float(found.difference.max()),
        "points": found.points,
    }
