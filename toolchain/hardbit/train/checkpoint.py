"""Checkpoints: one safetensors file, written whole or not at all, never unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hardbit.train.averaging import WeightAverage
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import write_atomically

__all__ = ["Checkpoint", "load_optimizer", "read_checkpoint", "write_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` epochs: tensors of module and optimizer, and one record an epoch."""

    epoch: int
    digest: str
    history: list[dict[str, Any]]
    module: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    average_updates: int


def write_checkpoint(
    path: Path,
    *,
    epoch: int,
    digest: str,
    history: list[dict[str, Any]],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> None:
    """Write the state; `digest` names the recipe that it belongs to."""
    tensors = {f"module/{name}": value.contiguous() for name, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value.contiguous()
    if average:
        tensors |= {f"average/{name}": value.contiguous() for name, value in average.state.items()}
    metadata = {"epoch": str(epoch), "digest": digest, "history": json.dumps(history)}
    metadata["average_updates"] = str(average.updates if average else 0)
    write_atomically(path, save(tensors, metadata))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, None where there is none; raises HardbitError for a file that is not one."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        module = {n.removeprefix("module/"): t for n, t in tensors.items() if n.startswith("module/")}
        optimizer = {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
        average = {n.removeprefix("average/"): t for n, t in tensors.items() if n.startswith("average/")}
        return Checkpoint(
            int(metadata["epoch"]),
            metadata["digest"],
            json.loads(metadata["history"]),
            module,
            optimizer,
            average,
            int(metadata.get("average_updates", 0)),
        )
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise HardbitError(
            f"this is not a checkpoint of hardbit ({error})",
            where=str(path),
            remedy="delete it to train from the start",
        ) from error


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the saved tensors back; parameters are numbered as the optimizer numbers them."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
