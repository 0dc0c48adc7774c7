"""Training in several processes that act as one: each takes its rows of every batch, and all hold the same weights.

Every process draws order, augmentation and noise for the *global* batch, alike, and works on its own rows of it. Losses
and gradients are sums of parts, and BatchNorm normalises by the global batch, so that `n` processes take the step that
one would take, up to the order of floating-point sums. A step reads:

    batch = data[index]                               # the global batch
    mine = world.share(batch)
    with world.synchronised(module):
        loss = world.part_of_mean(loss_of(module(mine)), rows=len(mine), of=len(batch))
    loss.backward()
    world.sum_gradients(module)
    value = world.total(loss.item())                   # the mean over the global batch, on every process

Boundary: starts no process (torchrun does) and writes no file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hardbit.processes import place
from hardbit_deploy.errors import HardbitError

__all__ = ["LostPeerError", "World", "is_first_to_fail"]

_PATIENCE = timedelta(hours=1)  # of a process that waits for a living one, such as for a download


class LostPeerError(HardbitError):
    """Another process of the same training ended. It says itself why, unless it was killed."""

    exit_code = 70  # EX_SOFTWARE


@dataclass(frozen=True)
class World:
    """The processes of one training: this one's number `rank` of `size`, and the device that it computes on.

    World() is a process alone: nothing is sent anywhere, and every method costs nothing.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def from_environment(cls, device: str = "auto") -> World:
        """Join the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK); a world of one without torchrun.

        `device` "auto" is this process's own GPU where there is CUDA, else the CPU; "cpu" and "cuda" insist. Raises
        HardbitError where a process has no GPU of its own. A second call joins nothing again.
        """
        here = place()
        own = _own_device(device, here.local_rank)
        if here.size == 1:
            return cls(device=own)
        if not dist.is_initialized():
            if own.type == "cuda":
                torch.cuda.set_device(own)
            with _peers_may_be_lost():
                backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
                dist.init_process_group(
                    backend, store=_store(), rank=here.rank, world_size=here.size, timeout=_PATIENCE
                )
        return cls(here.rank, here.size, own)

    @property
    def is_leader(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's rows of a global batch of `count`; shares differ by one row at most.

        Raises HardbitError where a process would have none.
        """
        if count < self.size:
            raise HardbitError(
                f"a batch of {count} cannot be shared by {self.size} processes",
                where="training.batch_size",
                remedy="start fewer processes, or take larger batches",
            )
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a global batch that every process drew alike."""
        return batch[self.rows(len(batch))]

    def part_of_mean(self, mean: Tensor, rows: int, of: int) -> Tensor:
        """A loss that is a mean over `rows` own rows, as its part of the mean over the global batch of `of` rows.

        The parts must be weighed before the backward pass and not the gradients after it: through a synchronised
        BatchNorm every process's gradient holds terms of all losses.
        """
        return mean if self.size == 1 else mean * (rows / of)

    def sum_gradients(self, module: nn.Module) -> None:
        """Replace every parameter's gradient by its sum over the processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.sum_in_place(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def total(self, value: float) -> float:
        """The sum of every process's `value`, in float64."""
        if self.size == 1:
            return value
        return float(self.sum_in_place(torch.tensor(value, dtype=torch.float64)))

    def sum_in_place(self, tensor: Tensor) -> Tensor:
        """`tensor` becomes its sum over the processes, the same bits on each; outside autograd."""
        if self.size > 1:
            with _peers_may_be_lost():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Every process's `tensor`, stacked in the order of ranks; outside autograd."""
        if self.size == 1:
            return tensor[None]
        rows = [torch.empty_like(tensor) for _ in range(self.size)]
        with _peers_may_be_lost():
            dist.all_gather(rows, tensor)
        return torch.stack(rows)

    @contextmanager
    def synchronised(self, *modules: nn.Module) -> Iterator[None]:
        """In the body, BatchNorm that normalises by the batch does so by the global one, also for the gradients."""
        from hardbit.train.global_batch_norm import synchronised

        if self.size == 1:
            yield
            return
        with synchronised(self, modules):
            yield

    def copy_from_leader(self, module: nn.Module) -> None:
        """Parameters and buffers become those of the leader."""
        if self.size == 1:
            return
        with torch.no_grad(), _peers_may_be_lost():
            for tensor in module.state_dict().values():
                dist.broadcast(value := tensor.contiguous(), src=0)
                tensor.copy_(value)

    def told_by_leader(self, document: Any = None) -> Any:
        """The JSON `document` that the leader gives, on every process; a follower waits for it."""
        if self.size == 1:
            return document
        return json.loads(self.bytes_from_leader(json.dumps(document).encode()))

    def bytes_from_leader(self, content: bytes = b"") -> bytes:
        """The `content` that the leader gives, on every process; a follower waits for it."""
        if self.size == 1:
            return content
        with _peers_may_be_lost():
            dist.broadcast(length := torch.tensor(len(content)), src=0)
            if not length:
                return b""
            received = torch.empty(int(length), dtype=torch.uint8)
            if self.is_leader:
                received = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(received, src=0)
        return received.numpy().tobytes()

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.total(0.0)

    def close(self) -> None:
        """Leave; for a training that went well: a process that failed has to say so before it is missed."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def is_first_to_fail() -> bool:
    """Whether this process may say what went wrong: true in the first that asks, and in a process alone.

    What fails in one process ends all, and what is wrong with a recipe fails in each: one message says it.
    """
    if place().size == 1:
        return True
    try:
        return bool(_store().add("failures", 1) == 1)
    except RuntimeError:  # the process that keeps the store is gone
        return False


@cache
def _store() -> dist.Store:
    """Where torchrun lets its processes meet, and where they count failures.

    torchrun keeps one store for all its restarts: addresses of processes that are gone must not be met again.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=_PATIENCE))
    return dist.PrefixStore(f"hardbit/attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def _peers_may_be_lost() -> Iterator[None]:
    """What the collectives raise when a process at the other end is gone."""
    try:
        yield
    except RuntimeError as error:
        raise LostPeerError(
            f"another process of this training ended ({str(error).splitlines()[0][:120]})",
            where="training",
            remedy="the same command goes on from the last checkpoint",
        ) from error


def _own_device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise HardbitError("PyTorch finds no GPU here", where="training.device", remedy='say device = "cpu"')
    if local_rank >= torch.cuda.device_count():
        raise HardbitError(
            f"process {local_rank + 1} of this machine has no GPU of its own: there are {torch.cuda.device_count()}",
            where="torchrun",
            remedy="start as many processes as there are GPUs",
        )
    return torch.device("cuda", local_rank)
