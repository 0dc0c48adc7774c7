"""One recipe, several processes: the first runs the steps and writes their results, the others train with it.

The first says when training begins, or that there is nothing to train, and hands its checkpoint over: the others need
no folder of its, and write nothing. Each reads recipe and images itself, so that they must be the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hardbit.processes import place
from hardbit.recipe import Recipe
from hardbit_deploy.errors import HardbitError

if TYPE_CHECKING:
    from hardbit.train.distributed import World

__all__ = ["begin", "dismiss", "follow"]


def begin(recipe: Recipe, images_sha256: str, run_dir: Path) -> World:
    """The first process trains `recipe` in `run_dir` from here on; the others wait for this in `follow`."""
    from hardbit.train.checkpoint import CHECKPOINT
    from hardbit.train.distributed import World

    world = World.from_environment(recipe.training.device)
    checkpoint = run_dir / CHECKPOINT
    world.told_by_leader({"recipe": recipe.training_digest(), "images": images_sha256})
    world.bytes_from_leader(checkpoint.read_bytes() if checkpoint.is_file() else b"")
    return world


def dismiss(recipe: Recipe) -> None:
    """The first process has nothing to train."""
    from hardbit.train.distributed import World

    world = World.from_environment(recipe.training.device)
    world.told_by_leader(None)
    world.close()


def follow(recipe: Recipe) -> None:
    """Train with the first process, if it trains.

    Raises HardbitError where this process reads another recipe or other images than the first.
    """
    from hardbit.steps.train import TrainingData, train_network
    from hardbit.train.checkpoint import CHECKPOINT
    from hardbit.train.distributed import World

    world = World.from_environment(recipe.training.device)
    told = world.told_by_leader()
    if told is None:
        world.close()
        return
    checkpoint = world.bytes_from_leader()
    data = TrainingData.load(recipe)  # after the first process, which downloads them where that is needed
    mine = {"recipe": recipe.training_digest(), "images": data.sha256}
    for what, digest in told.items():
        if mine[what] != digest:
            raise HardbitError(
                f"process {place().rank} reads other {what} than process 0",
                where=recipe.name,
                remedy="let every machine hold the same files",
            )
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint:
            (Path(folder) / CHECKPOINT).write_bytes(checkpoint)
        train_network(recipe, data, Path(folder), world)
    world.close()
