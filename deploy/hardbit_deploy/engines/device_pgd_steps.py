"""The steps of a climb at one batch size and in one norm: launches with constant addresses, captured and replayed.

A step reads one buffer of iterates and writes the other, so the even and the odd steps are two sequences.

Boundary: launches; copies nothing to or from the host, and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hardbit_deploy.engines.cuda_graphs import GraphDriver, ReplayedLaunches
from hardbit_deploy.engines.cuda_memory import Arena
from hardbit_deploy.engines.cuda_pgd import PgdKernels
from hardbit_deploy.engines.tensorrt_execution import capturable
from hardbit_deploy.engines.tensorrt_plan import LoadedPlan

__all__ = ["ITERATES", "ClimbSteps", "own_name"]

ITERATES = ("iterate_even", "iterate_odd")
_SHARED = ("image", "engine_logits")  # inputs of the attack graph that the climb already has


def own_name(tensor: str) -> str | None:
    """The region of an input or output of the attack graph that is its own; None for what it shares."""
    return None if tensor in _SHARED else f"gradient/{tensor}"


class ClimbSteps:
    """Contexts of both networks on either buffer, and what is launched in a step."""

    def __init__(
        self,
        engine: LoadedPlan,
        gradient: LoadedPlan,
        graphs: GraphDriver,
        kernels: PgdKernels,
        arena: Arena,
        stream: Any,
        batch: int,
        norm: str,
    ) -> None:
        self._engine, self._gradient, self._kernels = engine, gradient, kernels
        self._arena, self._batch, self._norm, self._stream = arena, batch, norm, int(stream.handle)
        workspace, logits = arena.address("workspace"), arena.address("logits")
        own = {name: arena.address(region) for name in gradient.tensors if (region := own_name(name)) is not None}
        self._contexts = []
        for iterate in ITERATES:
            image = arena.address(iterate)
            judge = engine.context(batch, {"image": image, "logits": logits}, workspace)
            guide = gradient.context(batch, {**own, "image": image, "engine_logits": logits}, workspace)
            self._contexts.append((judge, guide))
        self._replayed = [self._replay(graphs, partial(self._step, turn), turn) for turn in (0, 1)]
        self._last = [self._replay(graphs, partial(self._judge, turn), turn) for turn in (0, 1)]

    def run(self, steps: int) -> None:
        """From the start in the even buffer, `steps` steps and the last iterate's judgement."""
        at = self._arena.address
        self._kernels.begin(at("settings"), at("best_margin"), at("standing"), self._batch)
        if self._norm == "linf":
            self._kernels.begin_linf(self._batch, at("iterate_even"), at("shadow"))
        else:
            self._kernels.begin_l2(self._batch, at("iterate_even"), at("pixels"), at("shadow"))
        for step in range(steps):
            self._replayed[step % 2].run()
        self._last[steps % 2].run()

    def close(self) -> None:
        """The graphs first: they were captured from the contexts."""
        for replayed in (*self._replayed, *self._last):
            replayed.close()
        # What is launched knows its steps, and steps know what is launched: taken apart, contexts go here and now.
        self._replayed.clear()
        self._last.clear()
        self._contexts.clear()

    def _step(self, turn: int) -> None:
        self._judge(turn)
        self._gradient.enqueue(self._contexts[turn][1], self._stream)
        at = self._arena.address
        self._kernels.step(
            self._norm,
            self._batch,
            settings=at("settings"),
            gradient=at("gradient/gradient"),
            pixels=at("pixels"),
            standing=at("standing"),
            iterate=at(ITERATES[turn]),
            shadow=at("shadow"),
            following=at(ITERATES[1 - turn]),
        )

    def _judge(self, turn: int) -> None:
        self._engine.enqueue(self._contexts[turn][0], self._stream)
        at = self._arena.address
        self._kernels.judge(
            self._batch,
            logits=at("logits"),
            labels=at("labels"),
            iterate=at(ITERATES[turn]),
            standing=at("standing"),
            best_margin=at("best_margin"),
            best_logits=at("best_logits"),
            best_iterate=at("best_iterate"),
        )

    def _replay(self, graphs: GraphDriver, enqueue: Callable[[], None], turn: int) -> ReplayedLaunches:
        return ReplayedLaunches(
            graphs,
            self._stream,
            enqueue,
            lambda: all(capturable(context, self._stream) for context in self._contexts[turn]),
        )
