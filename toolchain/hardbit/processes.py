"""Which of several processes this one is, by what torchrun says in the environment; asked without importing PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Place", "place"]

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Process `rank` of `size`, which is process `local_rank` of its machine. The first is the leader."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_leader(self) -> bool:
        return self.rank == 0


def place() -> Place:
    """This process's place among those that torchrun started; a process alone where it started none."""
    if not all(os.environ.get(name) for name in _VARIABLES):
        return Place()
    return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
