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
from torch import Tensor, fx

from hardbit.train.distributed import World
from hardbit.train.fused import RELU
from hardbit.train.fusion import Chain, attribute, chains_of, rewritten
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
        self._values: dict[str, Tensor] = {}
        chains = chains_of(module, with_norms=fuses_norms)
        self._network = rewritten(module, chains, fused=self._fused, alone=self._alone, value=self._value)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over weights, scales and statistics of the module. To be called after every step of the optimizer."""
        for part in self._parts:
            part.refresh()
        for path, value in self._values.items():
            value.copy_(attribute(self._module, path))

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 (n, classes) of centred `images` float32 (n, channels, height, width)."""
        if self._policy.fuses_norms:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self._network(images)
        return logits.float()

    def _fused(self, chain: Chain) -> Part:
        norm, clip, then = (self._called(node) for node in (chain.norm, chain.clip, chain.then))
        return self._added(FrozenChain(norm, clip, then, self._policy))

    def _alone(self, node: fx.Node) -> Part:
        gives_logits = any(user.op == "output" for user in node.users)
        exact = replace(self._policy, dtype=torch.float32)  # bfloat16 logits would be too coarse
        return self._added(part_of(self._called(node), exact if gives_logits else self._policy))

    def _value(self, path: str) -> Tensor:
        self._values[path] = attribute(self._module, path).detach().to(self._policy.dtype, copy=True)
        return self._values[path]

    def _called(self, node: fx.Node | None) -> Any:
        """The module that `node` calls; a function can only be ReLU."""
        if node is None:
            return None
        return self._module.get_submodule(str(node.target)) if node.op == "call_module" else RELU

    def _added(self, part: Part) -> Part:
        self._parts.append(part)
        return part


def _check_known(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise HardbitError(f"there is no {what} '{word}'", where="shadow", remedy=f"known: {', '.join(known)}")
