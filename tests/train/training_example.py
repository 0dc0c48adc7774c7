"""A tiny training that takes two seconds, also as a program that a test can kill.

`python training_example.py RUN_DIR STOP_AT` trains, prints "reached" in the middle of epoch STOP_AT and waits to be
killed. With a third argument it writes a checkpoint after every step, and averages weights.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from hardbit.quantize import Bits
from hardbit.train import Adversary, Phase, TrainingPlan, TrainingResult, train
from quantized_examples import random_images

PLAN = TrainingPlan(
    phases=(
        Phase(2, Adversary("fgsm", 12.0), learning_rate=4e-3),
        Phase(2, Adversary("pgd", 12.0, steps=2), learning_rate=1e-3, schedule="cosine", frozen=True),
    ),
    seed=3,
    batch_size=32,
    augmentation=("flip",),
)
EVERY_STEP = replace(
    PLAN,
    phases=tuple(replace(phase, ema=0.9) for phase in PLAN.phases),
    checkpoint_minutes=1e-9,
    augmentation=("crop",),
)
OPTIONS = {"channels": (4, 6), "hidden": 12, "classes": 3, "input_shape": (1, 8, 8)}


def problem(count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is a bright band: top, middle or bottom."""
    images = random_images(count, (1, 8, 8), seed=5) // 2
    labels = np.arange(count, dtype=np.int64) % 3
    for index, label in enumerate(labels):
        images[index, 0, 1 + 2 * label : 3 + 2 * label] += 90
    return images, labels


class StopAt:
    """Progress that acts in the middle of an epoch (counted from 1)."""

    def __init__(self, epoch: int, act) -> None:
        self.epoch, self.act, self.current, self.steps = epoch, act, 0, 0

    def epoch_started(self, epoch, epochs, steps, done) -> None:
        self.current, self.steps = epoch + 1, 0

    def step_done(self, loss) -> None:
        self.steps += 1
        if self.current == self.epoch and self.steps == 4:
            self.act()

    def epoch_ended(self, record) -> None:
        pass


def run(run_dir: Path, progress=None, digest: str = "tiny", plan: TrainingPlan = PLAN) -> TrainingResult:
    images, labels = problem()
    return train(
        "lenet", OPTIONS, "onnxruntime", Bits(4, 4), plan, images, labels, run_dir, digest=digest, progress=progress
    )


def _wait_to_be_killed() -> None:
    sys.stdout.write("reached\n")
    sys.stdout.flush()
    time.sleep(120)


if __name__ == "__main__":
    stop = StopAt(int(sys.argv[2]), _wait_to_be_killed)
    run(Path(sys.argv[1]), stop, plan=EVERY_STEP if len(sys.argv) > 3 else PLAN)
