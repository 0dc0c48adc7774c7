"""The shadow of a quantized network: the same function of the image, prepared for being attacked.

While an adversary works the weights stand still, and nobody asks for their gradients. So the weights are fake-quantized
once per `refresh`, activations run through the fused operation, BatchNorm follows a declared policy and updates
nothing, and gradients flow to the image alone. In float32 logits and gradients have the bits of the module. A module
that has no faster form stands in the shadow as a frozen copy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from hardbit.train.distributed import World
from hardbit.train.shadow_parts import Policy, part_of
from hardbit_deploy.errors import HardbitError

__all__ = ["Shadow"]

_POLICIES = ("batch", "running", "folded")
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SURROGATES = ("straight-through", "smooth")


class Shadow:
    """A frozen picture of a quantized `module`, taken anew by `refresh`.

    `batch_norm`: "batch" normalises by the batch as training does, over the rows of all processes of `world`;
    "running" by the running statistics as evaluation does. `precision`: "float32" or "bfloat16". `surrogate`: "smooth"
    clips activations without rounding them.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        *,
        batch_norm: str = "batch",
        precision: str = "float32",
        surrogate: str = "straight-through",
        world: World | None = None,
    ) -> None:
        _check_known("BatchNorm policy", batch_norm, _POLICIES)
        _check_known("precision", precision, tuple(_PRECISIONS))
        _check_known("surrogate", surrogate, _SURROGATES)
        self._module = module
        self._policy = Policy(_PRECISIONS[precision], batch_norm == "batch", surrogate == "smooth", world or World())
        self._parts: dict[str, Any] = {}
        self._values: dict[str, str] = {}
        self._network = self._picture()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over weights, scales and statistics of the module. To be called after every step of the optimizer."""
        for name, part in self._parts.items():
            part.take(self._module.get_submodule(name))
        for name, path in self._values.items():
            setattr(self._network, name, _attribute(self._module, path).detach().to(self._policy.dtype, copy=True))

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 (n, classes) of centred `images` float32 (n, channels, height, width)."""
        logits: Tensor = self._network(images)
        return logits.float()

    def _picture(self) -> fx.GraphModule:
        """The module's graph over frozen parts."""
        graph = fx.Graph()
        logits: Any = graph.graph_copy(self._module.graph, {})
        graph.output(logits)
        root = nn.Module()
        for node in graph.nodes:
            path = str(node.target)
            if node.op == "call_module":
                if path not in self._parts:
                    exact = replace(self._policy, dtype=torch.float32)  # bfloat16 logits would be too coarse
                    policy = exact if node is logits else self._policy
                    self._parts[path] = part_of(self._module.get_submodule(path), policy)
                node.target = f"part_{list(self._parts).index(path)}"
                root.add_module(node.target, self._parts[path])
            elif node.op == "get_attr":
                node.target = f"value_{len(self._values)}"
                self._values[node.target] = path
                root.register_buffer(node.target, torch.empty(0))
        return fx.GraphModule(root, graph)


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value


def _check_known(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise HardbitError(f"there is no {what} '{word}'", where="shadow", remedy=f"known: {', '.join(known)}")
