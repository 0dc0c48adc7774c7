"""What a step of adversarial training costs: PGD-7 and one update, ResNet-20 W4A4 at batch 128, against the loops that
everybody writes; and what its halves cost, one gradient of the attack and one update.

One pinned core, contenders interleaved, medians of CPU time. Here speed is asserted, as ratios within the run: at most
1/4 of the naive Brevitas loop and 2/3 of the float loop, in float32 alone at most 1/2 of the naive loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.resnet20_example import INPUT_SHAPE
from benchmarks.test_attack_speed import interleaved_medians, one_core  # noqa: F401 (a fixture)
from hardbit import nets
from hardbit.quantize import Bits
from hardbit.train import Adversary, Phase, TrainingPlan
from hardbit.train.adversary import centred, draw_noise
from hardbit.train.distributed import World
from hardbit.train.fused import supports_bfloat16
from hardbit.train.fused.operators import is_fused
from hardbit.train.network import Blueprint, Trainee
from hardbit.train.shadow import Shadow
from hardbit.train.step import Update
from hardbit.train.training_form import TrainingForm
from quantized_examples import calibrated, random_images

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_core")]

BATCH, STEPS = 128, 7
EPS, STEP = 8 / 256, 2.5 * 8 / 256 / STEPS
IMAGES = centred(torch.from_numpy(random_images(BATCH, INPUT_SHAPE)))
CHANNELS_LAST = IMAGES.contiguous(memory_format=torch.channels_last)
LABELS = torch.arange(BATCH) % 10
Network = Callable[[Tensor], Tensor]
LEARNING_RATE = 0.001


def naive_step(network: nn.Module) -> Callable[[], None]:
    """PGD by loss.backward() on whatever has a gradient, then the update: NCHW, float32, training mode throughout."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True)

    def attack() -> Tensor:
        delta = (torch.rand_like(IMAGES) * 2 - 1) * EPS
        for _ in range(STEPS):
            delta.requires_grad_(True)
            F.cross_entropy(network(IMAGES + delta), LABELS).backward()
            assert delta.grad is not None
            delta = (delta.detach() + STEP * delta.grad.sign()).clamp(-EPS, EPS)
            delta = (IMAGES + delta).clamp(-0.5, 127 / 256) - IMAGES
        return IMAGES + delta

    def step() -> None:
        adversarial = attack()
        optimizer.zero_grad()
        F.cross_entropy(network(adversarial), LABELS).backward()
        optimizer.step()

    return step


def hardbit_step(bits: Bits, **plan_options: Any) -> Callable[[], None]:
    """The update of hardbit's own training loop; BatchNorm by the batch in both halves, unless the plan differs."""
    adversary = Adversary("pgd", 8.0, steps=STEPS)
    phase = Phase(1, adversary, learning_rate=LEARNING_RATE, optimizer="sgd")
    plan = TrainingPlan((phase,), **plan_options)
    blueprint = Blueprint("resnet20", {}, "onnxruntime", bits)
    trainee = Trainee.begin(blueprint, plan, torch.device("cpu"), lambda: iter([CHANNELS_LAST]))
    trainee.module.train()
    update, generator = Update(trainee, phase, World()), torch.Generator().manual_seed(0)

    def step() -> None:
        noise = draw_noise(CHANNELS_LAST, adversary, generator)
        update(
            CHANNELS_LAST, LABELS, batch=BATCH, step=0, adversary=adversary, noise=noise, learning_rate=LEARNING_RATE
        )

    return step


@pytest.mark.timeout(1800)
def test_a_pgd_7_step_of_resnet20(capsys: pytest.CaptureFixture[str]) -> None:
    w4a4 = Bits(4, 4)
    naive, floating = "Brevitas, loss.backward()", "float, loss.backward()"
    fast, exact = "hardbit, bfloat16 in both halves", "hardbit, float32"
    contenders = {
        naive: naive_step(calibrated("resnet20", w4a4)),
        floating: naive_step(nets.build("resnet20")),
        exact: hardbit_step(w4a4, inner_precision="float32"),
        "hardbit, bfloat16 attack": hardbit_step(w4a4, inner_precision="bfloat16"),
        fast: hardbit_step(w4a4, inner_precision="bfloat16", outer_precision="bfloat16"),
        "the same, BatchNorm folded in the attack": hardbit_step(
            w4a4, inner_precision="bfloat16", outer_precision="bfloat16", inner_batch_norm="folded"
        ),
        "hardbit, float network, bfloat16 in both halves": hardbit_step(
            Bits(32, 32, 32, 32), inner_precision="bfloat16", outer_precision="bfloat16"
        ),
    }
    medians = interleaved_medians(contenders)
    show(capsys, f"PGD-{STEPS} step, ResNet-20 W4A4, batch {BATCH}", medians, naive, floating)
    if is_fused(torch.zeros(1), torch.float32):
        assert medians[exact] <= medians[naive] / 2
        if supports_bfloat16():
            assert medians[fast] <= medians[naive] / 4
            assert medians[fast] <= medians[floating] * 2 / 3


@pytest.mark.timeout(1800)
def test_the_halves_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    module, floating = in_channels_last(calibrated("resnet20", 4)).train(), in_channels_last(nets.build("resnet20"))
    naive, plain = "attack: Brevitas, loss.backward()", "attack: float, loss.backward()"
    contenders = {
        naive: backward(calibrated("resnet20", 4).train(), IMAGES),
        plain: backward(nets.build("resnet20"), IMAGES),
        "attack: float, autograd.grad, channels_last": input_gradient(floating),
    }
    for precision in ("float32", "bfloat16"):
        for policy in ("batch", "running", "folded"):
            shadow = Shadow(module, batch_norm=policy, precision=precision)
            contenders[f"attack: shadow, {precision}, {policy}"] = input_gradient(shadow)
    contenders["refresh of the shadow"] = Shadow(module, precision="bfloat16").refresh
    update = "update: Brevitas, channels_last"
    contenders[update] = backward(module, CHANNELS_LAST, of_images=False)
    contenders["update: float, channels_last"] = backward(floating, CHANNELS_LAST, of_images=False)
    for precision in ("float32", "bfloat16"):
        form = TrainingForm(module, precision=precision)
        contenders[f"update: training form, {precision}"] = backward(form, CHANNELS_LAST, of_images=False)
    show(capsys, f"ResNet-20 W4A4, batch {BATCH}", interleaved_medians(contenders), naive, plain)


def in_channels_last(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last)


def backward(network: Network, images: Tensor, *, of_images: bool = True) -> Callable[[], None]:
    """A pass forward and one backward to everything that has a gradient."""
    return lambda: F.cross_entropy(network(images.clone().requires_grad_(of_images)), LABELS).backward()


def input_gradient(network: Network) -> Callable[[], None]:
    """The gradient of the images alone."""

    def step() -> None:
        pixels = CHANNELS_LAST.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(pixels), LABELS), pixels)

    return step


def show(capsys: pytest.CaptureFixture[str], title: str, medians: dict[str, float], naive: str, floating: str) -> None:
    with capsys.disabled():
        print(f"\n{title}, one core: CPU ms, over Brevitas, over float")
        for name, seconds in medians.items():
            ratios = f"{seconds / medians[naive]:6.2f} {seconds / medians[floating]:6.2f}"
            print(f"  {name:48s} {1e3 * seconds:8.1f} {ratios}")
