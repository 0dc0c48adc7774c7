"""The shadow of a quantized network: the same function of the image, prepared for being attacked.

While an adversary works the weights stand still, and nobody asks for their gradients. So the weights are quantized once
per `refresh`; neighbours of the graph run as one operation (`hardbit.train.fusion`); BatchNorm follows a declared
policy and updates nothing; gradients flow to the image alone. A module that has no faster form stands in the shadow as
a frozen copy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from hardbit.train.distributed import World
from hardbit.train.fused import RELU
from hardbit.train.fusion import Chain, chains_of
from hardbit.train.shadow_parts import FrozenChain, Part, Policy, part_of
from hardbit_deploy.errors import HardbitError

__all__ = ["Shadow"]

_POLICIES = ("batch", "running", "folded")
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SURROGATES = ("straight-through", "smooth")


class Shadow:
    """A frozen picture of a quantized `module`, taken anew by `refresh`.

    `batch_norm`: "batch" normalises by the batch as training does, over the rows of all processes of `world`; "running"
    by the running statistics as evaluation does; "folded" as well, as one factor and one shift per channel that are
    applied with the quantizer behind. `surrogate`: "smooth" clips activations without rounding them.

    `precision` "float32": logits and gradients have the bits of the module, but for "folded", where a value on the
    border between two codes may fall to the other side. "bfloat16": weights, activations and gradients have eight
    significant bits between the layers. Codes of up to 8 bits are exact in it, and so are weights of up to 4 bits; what
    a convolution gives is rounded before it is normalised and quantized. BatchNorm by running statistics is always
    folded in it; BatchNorm's own arithmetic is float32, and so is the last layer.
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
        world = world or World()
        by_batch = batch_norm == "batch"
        fuses_norms = batch_norm == "folded" or (precision == "bfloat16" and not (by_batch and world.size > 1))
        self._policy = Policy(_PRECISIONS[precision], by_batch, surrogate == "smooth", world, fuses_norms)
        self._module = module
        self._parts: list[Part] = []
        self._values: dict[str, str] = {}
        self._network = self._picture()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over weights, scales and statistics of the module. To be called after every step of the optimizer."""
        for part in self._parts:
            part.refresh()
        for name, path in self._values.items():
            value = _attribute(self._module, path).detach()
            setattr(self._network, name, value.to(self._policy.dtype, copy=True))

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 (n, classes) of centred `images` float32 (n, channels, height, width)."""
        if self._policy.fuses_norms and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self._network(images)
        return logits.float()

    def _picture(self) -> fx.GraphModule:
        """The module's graph over frozen parts."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        logits: Any = graph.graph_copy(self._module.graph, copies)
        graph.output(logits)
        root = nn.Module()
        chains = chains_of(self._module, with_norms=self._policy.fuses_norms)
        alone = set(copies) - {node for chain in chains for node in chain.nodes}
        modules: dict[str, str] = {}
        for node, copied in copies.items():
            path = str(node.target)
            if node in alone and node.op == "call_module":
                if path not in modules:
                    exact = replace(self._policy, dtype=torch.float32)  # bfloat16 logits would be too coarse
                    part = part_of(self._module.get_submodule(path), exact if copied is logits else self._policy)
                    modules[path] = self._add(part, root)
                copied.target = modules[path]
            elif node.op == "get_attr":
                copied.target = f"value_{len(self._values)}"
                self._values[copied.target] = path
                root.register_buffer(copied.target, torch.empty(0))
        for chain in chains:
            self._fuse(chain, graph, copies, root)
        return fx.GraphModule(root, graph)

    def _fuse(self, chain: Chain, graph: fx.Graph, copies: dict[fx.Node, fx.Node], root: nn.Module) -> None:
        """Replace the nodes of `chain` in the copied graph by one."""
        norm, clip, then = (self._called(node) for node in (chain.norm, chain.clip, chain.then))
        part = FrozenChain(norm, clip, then, self._policy)
        operands = [copies[node] for node in (chain.x, chain.other) if node is not None]
        end = copies[chain.nodes[-1]]
        with graph.inserting_after(end):
            fused = graph.call_module(self._add(part, root), tuple(operands))
        end.replace_all_uses_with(fused)
        for node in reversed(chain.nodes):
            graph.erase_node(copies[node])
            copies[node] = fused

    def _called(self, node: fx.Node | None) -> Any:
        """The module that `node` calls; a function can only be ReLU."""
        if node is None:
            return None
        return self._module.get_submodule(str(node.target)) if node.op == "call_module" else RELU

    def _add(self, part: Part, root: nn.Module) -> str:
        name = f"part_{len(self._parts)}"
        self._parts.append(part)
        root.add_module(name, part)
        return name


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value


def _check_known(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise HardbitError(f"there is no {what} '{word}'", where="shadow", remedy=f"known: {', '.join(known)}")
