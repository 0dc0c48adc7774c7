"""What share of a training step goes into its batch: rows of the uint8 images, flip and crop, centred pixels in
channels_last, and the adversary's noise. All of it happens in batch, on the device that holds the images, in the
process that trains; nothing is loaded from disk after the start.

One pinned core, contenders interleaved, medians of CPU time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from benchmarks.test_attack_speed import interleaved_medians, one_core  # noqa: F401 (a fixture)
from hardbit.quantize import Bits
from hardbit.train import Adversary, Phase, TrainingPlan
from hardbit.train.adversary import centred, draw_noise
from hardbit.train.augmentation import augment
from hardbit.train.distributed import World
from hardbit.train.network import Blueprint, Trainee
from hardbit.train.step import Update
from quantized_examples import random_images

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_core")]

BATCH, IMAGES = 128, 20_000


@dataclass(frozen=True)
class Case:
    """A network of `hardbit.nets` at W4A4, trained in bfloat16, and the part of its step that its batch may take."""

    architecture: str
    input_shape: tuple[int, int, int]
    adversary: Adversary
    limit: float


CASES = {
    "lenet, 28x28, FGSM": Case("lenet", (1, 28, 28), Adversary("fgsm", 25.0), 0.15),
    "resnet20, 32x32, N-FGSM": Case("resnet20", (3, 32, 32), Adversary("n-fgsm", 8.0), 0.03),
    "resnet20, 32x32, PGD-7": Case("resnet20", (3, 32, 32), Adversary("pgd", 8.0, steps=7), 0.01),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_share_of_a_step(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    medians = interleaved_medians(prepare_and_update(CASES[name]))
    share = medians["prepare"] / sum(medians.values())
    with capsys.disabled():
        print(f"\n{name}, batch {BATCH}: batch {1e3 * medians['prepare']:.1f} ms, update "
              f"{1e3 * medians['update']:.1f} ms, share of the batch {100 * share:.1f} %")  # fmt: skip
    assert share < CASES[name].limit


def prepare_and_update(case: Case) -> dict[str, Callable[[], None]]:
    """The two halves of a step of `hardbit.train.epoch`."""
    images, labels = torch.from_numpy(random_images(IMAGES, case.input_shape)), torch.arange(IMAGES) % 10
    phase = Phase(1, case.adversary, optimizer="sgd", learning_rate=1e-3)
    plan = TrainingPlan((phase,), inner_precision="bfloat16", outer_precision="bfloat16", augmentation=("flip", "crop"))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(IMAGES, generator=generator)
    trainee = Trainee.begin(
        Blueprint(case.architecture, {}, "onnxruntime", Bits(4, 4)),
        plan,
        torch.device("cpu"),
        lambda: iter([centred(images[:BATCH])]),
    )
    trainee.module.train()
    update_network = Update(trainee, phase, World())
    batch: list[tuple[torch.Tensor, ...]] = []

    def prepare() -> None:
        start = 0 if not batch else (len(batch) * BATCH) % (IMAGES - BATCH)
        index = order[start : start + BATCH]
        pixels = centred(augment(images[index], plan.augmentation, generator))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        batch.append((pixels, labels[index], *draw_noise(pixels, case.adversary, generator)))

    def update() -> None:
        pixels, target, *noise = batch[-1]
        update_network(
            pixels,
            target,
            batch=BATCH,
            step=0,
            adversary=case.adversary,
            noise=tuple(noise),
            learning_rate=phase.learning_rate,
        )

    return {"prepare": prepare, "update": update}
