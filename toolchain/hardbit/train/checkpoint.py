"""Checkpoints: one safetensors file, written whole or not at all, never unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import write_atomically

__all__ = ["CHECKPOINT", "Checkpoint", "load_optimizer", "matching_checkpoint", "optimizer_tensors", "read_checkpoint",
           "write_checkpoint"]  # fmt: skip

CHECKPOINT = "checkpoint.safetensors"
_GROUPS = ("module", "optimizer", "average", "best", "random")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` whole epochs and `step` steps of the next, of the recipe called `digest`.

    `history` has one record an epoch, `sums` what the record of the epoch under way is made of. `best` is the network
    of the epoch that held best so far, numbered `best_epoch` from 1. `random` holds generator states, within an epoch
    only: a whole epoch draws from its number.
    """

    epoch: int
    digest: str
    history: list[dict[str, Any]]
    module: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    average_updates: int = 0
    best: Mapping[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    step: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    random: Mapping[str, Tensor] = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it in place of an earlier one."""
    tensors = {
        f"{group}/{name}": value.detach().contiguous()
        for group in _GROUPS
        for name, value in getattr(checkpoint, group).items()
    }
    metadata = {"digest": checkpoint.digest, "history": json.dumps(checkpoint.history)}
    metadata |= {"epoch": str(checkpoint.epoch), "step": str(checkpoint.step), "sums": json.dumps(checkpoint.sums)}
    metadata |= {"average_updates": str(checkpoint.average_updates), "best_epoch": str(checkpoint.best_epoch)}
    write_atomically(path, save(tensors, metadata))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, None where there is none; raises HardbitError for a file that is not one."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
        return Checkpoint(
            int(metadata["epoch"]),
            metadata["digest"],
            json.loads(metadata["history"]),
            average_updates=int(metadata.get("average_updates", 0)),
            best_epoch=int(metadata.get("best_epoch", 0)),
            step=int(metadata.get("step", 0)),
            sums=json.loads(metadata.get("sums", "{}")),
            **groups,
        )
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise HardbitError(
            f"this is not a checkpoint of hardbit ({error})",
            where=str(path),
            remedy="delete it to train from the start",
        ) from error


def matching_checkpoint(path: Path, digest: str) -> Checkpoint | None:
    """The checkpoint at `path`, None where there is none; raises HardbitError for that of another recipe."""
    saved = read_checkpoint(path)
    if saved is not None and saved.digest != digest:
        raise HardbitError(
            "a checkpoint of another recipe lies here",
            where=str(path),
            remedy="delete it, or train into another folder",
        )
    return saved


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by `number of the parameter/name`."""
    states = optimizer.state_dict()["state"]
    return {f"{i}/{name}": v for i, state in states.items() for name, v in state.items() if isinstance(v, Tensor)}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the saved tensors back; parameters are numbered as the optimizer numbers them."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
