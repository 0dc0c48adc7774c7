"""How robust the network is after each epoch, and whether training is only learning to fool its own adversary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from hardbit.train.adversary import draw_noise, perturb
from hardbit.train.distributed import World
from hardbit.train.plan import Adversary
from hardbit.train.shadow import Shadow

__all__ = ["FALL", "Probe", "is_overfitting"]

FALL = 0.10
"""By how much accuracy under PGD must fall: on 256 images its standard error is 0.03, so three of them."""
_BATCH = 256


@dataclass(frozen=True)
class Probe:
    """Images to measure on, and PGD to measure by: the same images, starts and steps after every epoch.

    `images` are centred float32 (n, channels, height, width), `labels` int64 (n,). The adversary computes in
    `precision`; what it found is judged in float32.
    """

    images: Tensor
    labels: Tensor
    adversary: Adversary
    seed: int
    precision: str = "float32"

    def measure(self, module: fx.GraphModule, world: World) -> dict[str, float]:
        """Accuracies of `module` in evaluation mode: `clean`, `fgsm` (one step of the radius from the image), `pgd`."""
        attacked = judge = Shadow(module, batch_norm="running")
        if self.precision != "float32":
            attacked = Shadow(module, batch_norm="running", precision=self.precision)
        fgsm = replace(self.adversary, kind="fgsm", step_size_255=self.adversary.eps_255, random_start=False)
        kinds = {"clean": replace(self.adversary, kind="none"), "fgsm": fgsm, "pgd": self.adversary}
        generator = torch.Generator(self.images.device).manual_seed(self.seed)
        right = dict.fromkeys(kinds, 0)
        parts = math.ceil(len(self.images) / _BATCH)  # of one size: none too small for all processes to have rows of
        for images, labels in zip(*(whole.tensor_split(parts) for whole in (self.images, self.labels)), strict=True):
            mine = world.share(images), world.share(labels)
            for kind, adversary in kinds.items():
                noise = tuple(map(world.share, draw_noise(images, adversary, generator)))
                found = perturb(attacked, *mine, adversary, noise=noise)
                with torch.no_grad():
                    right[kind] += int((judge(found).argmax(1) == mine[1]).sum())
        return {kind: round(world.total(count) / len(self.images), 4) for kind, count in right.items()}


def is_overfitting(phase: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last of a phase's records shows catastrophic overfitting (Wong et al. 2020).

    It does when accuracy under PGD lies FALL or more below that of an earlier epoch of the phase, while accuracy on the
    training images under the phase's own adversary is no lower than it was there: the network has learned to fool the
    adversary, and not to resist it. Where both fell the learning rate is too high, or the radius still grows, and
    that is not meant.
    """
    last = phase[-1]
    if "pgd" not in last or last["adversary"] == "none":
        return False
    return any(
        last["pgd"] <= before["pgd"] - FALL and last["adversarial_accuracy"] >= before["adversarial_accuracy"]
        for before in phase[:-1]
        if "pgd" in before
    )
