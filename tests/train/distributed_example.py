"""What two processes do in the tests of distributed training: `torchrun ... distributed_example.py WHAT FOLDER`.

"steps" trains every case of CASES and leaves its weights in FOLDER, beside what single steps of NETWORKS left; "killed"
is `hardbit train` whose first process is killed once in the middle of an epoch; "other-images" is `hardbit train` where
the second process reads other images.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from training_example import OPTIONS, PLAN, problem

from hardbit import cli, nets
from hardbit.quantize import Bits
from hardbit.train import Adversary, Phase, TrainingPlan, TrainingResult, train
from hardbit.train.distributed import World

SGD = Phase(1, Adversary("none", 0.0), learning_rate=0.02, optimizer="sgd", weight_decay=1e-3)
PGD = Adversary("pgd", 12.0, steps=3)


def plan_of(*phases: Phase, **others: object) -> TrainingPlan:
    return replace(PLAN, phases=phases, batch_size=33, augmentation=("flip", "crop"), **others)


CASES = {
    "clean": plan_of(SGD),
    "fgsm": plan_of(replace(SGD, adversary=Adversary("fgsm", 12.0))),
    "pgd, averaged": plan_of(replace(SGD, adversary=PGD, ema=0.9, eps_warmup=1)),
    "pgd, adam": plan_of(Phase(1, PGD)),
    "pgd of running statistics": plan_of(replace(SGD, adversary=PGD), inner_batch_norm="running"),
    "pgd, l2": plan_of(replace(SGD, adversary=Adversary("pgd", 100.0, steps=3, norm="l2"))),
    "square": plan_of(replace(SGD, adversary=Adversary("square", 12.0, steps=8))),
    "trades": plan_of(replace(SGD, adversary=PGD, loss="trades")),
    "frozen": plan_of(replace(SGD, adversary=PGD), replace(SGD, adversary=PGD, frozen=True)),
    "fewer bits": plan_of(replace(SGD, adversary=PGD, weights=8, activations=8), replace(SGD, adversary=PGD)),
}
"""Batches of 33, so that the two shares differ."""


def run_case(name: str, run_dir: Path, world: World) -> TrainingResult:
    images, labels = problem()
    return train(
        "lenet", OPTIONS, "onnxruntime", Bits(4, 4), CASES[name], images, labels, run_dir, digest=name, world=world
    )


def both_batch_norms() -> nn.Sequential:
    """Of images and of vectors, one with a cumulative average and no weights."""
    conv, linear = nn.Conv2d(3, 5, 3), nn.Linear(180, 4)
    layers = (conv, nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), linear, nn.BatchNorm1d(4, momentum=None, affine=False))
    return nn.Sequential(*layers)


NETWORKS = {"both": both_batch_norms, "resnet8": lambda: nets.build("resnet8", width=4, input_shape=(3, 8, 8))}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Nine rows, to be shared as four and five."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, 3, 8, 8, generator=generator).double(), torch.arange(9) % 4


def steps_of_batch_norm(name: str, world: World) -> dict[str, torch.Tensor]:
    """What two steps in float64 leave: the last logits, gradients of images and parameters, running statistics, the
    loss."""
    torch.manual_seed(0)
    module, (images, labels) = NETWORKS[name]().double(), batch()
    for _ in range(2):
        pixels = world.share(images).clone().requires_grad_()
        module.zero_grad()
        with world.synchronised(module):
            logits = module(pixels)
            loss = world.part_of_mean(F.cross_entropy(logits, world.share(labels)), rows=len(pixels), of=len(images))
            loss.backward()
        world.sum_gradients(module)
    found = {"logits": logits.detach(), "images": pixels.grad, "loss": torch.tensor(world.total(loss.item()))}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return found | dict(module.named_buffers())


def _steps(folder: Path) -> None:
    world = World.from_environment("cpu")
    for name in CASES:
        result = run_case(name, folder / f"run of {world.rank}", world)
        (folder / f"run of {world.rank}" / "checkpoint.safetensors").unlink(missing_ok=True)
        save_file(
            {n: t.contiguous() for n, t in result.twin.state_dict().items()},
            folder / f"{name} {world.rank}.safetensors",
        )
    for name in NETWORKS:
        save_file(steps_of_batch_norm(name, world), folder / f"steps of {name} {world.rank}.safetensors")
    world.close()


def _train_and_be_killed(folder: Path) -> int:
    from hardbit.train.progress import TerminalProgress

    class Killed(TerminalProgress):
        steps = 0

        def step_done(self, loss: float) -> None:
            Killed.steps += 1
            if Killed.steps == 20:
                os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        sys.modules["hardbit.train.progress"].TerminalProgress = Killed
    return cli.main(["train", str(folder / "recipe.toml"), "--run-dir", str(folder / "run")])


def _train_on_other_images(folder: Path) -> int:
    recipe = "recipe.toml" if os.environ["RANK"] == "0" else "other/recipe.toml"
    return cli.main(["train", str(folder / recipe), "--run-dir", str(folder / "run")])


if __name__ == "__main__":
    what = {"steps": _steps, "killed": _train_and_be_killed, "other-images": _train_on_other_images}[sys.argv[1]]
    sys.exit(what(Path(sys.argv[2])))
