"""How often the gate is right: the same network against itself, and a network that lost two points, over many seeds.

Outcomes are drawn image by image as two evaluations give them: a network again, with other random starts, loses a few
images and gains as many (churn); a worse one loses some more. Records go through the whole judgement.

    python tests/deploy/test_gate_honesty.py 4000

prints the table of docs/gate.md.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hardbit_deploy.baseline import Baseline
from hardbit_deploy.gate import parse_gate
from hardbit_deploy.verdict import judge

GATE = parse_gate({"baseline": {"result": "earlier/result.json"}})  # margin: one point
CLEAN, ROBUST = 0.87, 0.67  # as of fashion-cnn-w4a4
Records = dict[str, NDArray[Any]]


def records(clean: NDArray[np.bool_], robust: NDArray[np.bool_]) -> Records:
    index = np.arange(len(clean), dtype=np.int64)
    return {"index": index, "label": index % 10, "clean": clean, "worst_case": robust}


def pair(rng: np.random.Generator, images: int, churn: float, drop: float) -> tuple[Records, Records]:
    """Two results of the same images: `churn` is the share on which they differ by chance, half of it each way, `drop`
    is what the second one lost besides."""
    luck, which = rng.random(images), rng.random(images)
    clean, robust = luck < CLEAN, luck < ROBUST
    lost = robust & (which < (churn / 2 + drop) / ROBUST)
    gained = clean & ~robust & (which < churn / 2 / (CLEAN - ROBUST))
    return records(clean, robust), records(clean, (robust & ~lost) | gained)


def verdicts(images: int, churn: float, drop: float, gates: int) -> Counter[str]:
    """Verdicts of so many gates, each with a seed of its own."""
    document = {
        "precision": {"status": "integer", "nodes": [], "problems": []},
        "environment": {"machine": "x86_64", "onnxruntime": None},
        "attacks": [{"name": "clean"}],
        "alarms": [],
        "latency": None,
    }
    counts: Counter[str] = Counter()
    for seed in range(gates):
        earlier, current = pair(np.random.default_rng([seed, images]), images, churn, drop)
        _, verdict = judge(document, current, GATE, Baseline(Path("earlier"), document, earlier))
        counts[verdict.name] += 1
    return counts


def test_what_is_drawn_is_what_was_asked_for() -> None:
    earlier, current = pair(np.random.default_rng(0), 1_000_000, 0.02, 0.03)
    before, after = earlier["worst_case"], current["worst_case"]
    assert before.mean() == pytest.approx(ROBUST, abs=0.002)
    assert (before & ~after).mean() == pytest.approx(0.04, abs=0.001)
    assert (after & ~before).mean() == pytest.approx(0.01, abs=0.001)
    assert not (after & ~current["clean"]).any()


@pytest.mark.parametrize("images", [300, 1000, 4000, 10_000])
def test_the_same_result_again_always_passes(images: int) -> None:
    """Seeds are recorded and nothing depends on workers: the same bundle with the same seed is the same bytes."""
    assert verdicts(images, churn=0, drop=0, gates=3) == {"PASS": 3}


def test_another_seed_passes_and_a_two_point_drop_fails() -> None:
    assert verdicts(4000, churn=0.01, drop=0, gates=100)["PASS"] >= 98
    assert verdicts(4000, churn=0.01, drop=0.02, gates=100)["FAIL"] >= 88


@pytest.mark.slow
@pytest.mark.parametrize("churn", [0.0, 0.005, 0.01, 0.02])
def test_over_many_seeds(churn: float) -> None:
    gates = 3000
    assert verdicts(4000, churn, drop=0, gates=gates)["PASS"] >= 0.99 * gates
    worse = verdicts(4000, churn, drop=0.02, gates=gates)
    assert worse["FAIL"] >= 0.9 * gates
    assert worse["PASS"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("images", [1000, 4000])
def test_a_network_that_lost_just_the_margin_passes_in_one_gate_of_twenty(images: int) -> None:
    """What the confidence of 95 % promises, where it is hardest to keep."""
    gates = 3000
    assert verdicts(images, churn=0.02, drop=0.01, gates=gates)["PASS"] <= 0.06 * gates


def table(gates: int) -> str:
    """Shares of PASS and FAIL for the page on gates."""
    lines = ["| images | churn | the same network | one point lost | two points lost |", "|---|---|---|---|---|"]
    for images in (1000, 4000, 10_000):
        for churn in (0.0, 0.005, 0.01, 0.02, 0.04):
            cells = []
            for drop in (0.0, 0.01, 0.02):
                counts = verdicts(images, churn, drop, gates)
                cells.append(f"{100 * counts['PASS'] / gates:.1f} / {100 * counts['FAIL'] / gates:.1f} %")
            lines.append(f"| {images:,} | {100 * churn:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table(int(sys.argv[1]))}\n")
