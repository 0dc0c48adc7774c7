"""The network as a training step computes it: the same parameters and the same function in fewer passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from hardbit.quantize.quantizers import is_weight_layer
from hardbit.train.fused import RELU, Clip, Normalisation, activate, clip_of
from hardbit.train.fusion import Chain, attribute, chains_of, rewritten

__all__ = ["TrainingForm"]


class TrainingForm:
    """Calls a quantized and calibrated `module` in its present mode; gradients reach the module's own parameters, and
    its BatchNorms keep their statistics.

    In float32 logits and gradients have the bits of the module. With `precision` "bfloat16" it runs under autocast, and
    BatchNorm by the batch is fused with the quantizers behind it; not with `separate_norms`, which somebody else may
    have patched.
    """

    def __init__(self, module: fx.GraphModule, *, precision: str = "float32", separate_norms: bool = False) -> None:
        self._module = module
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        chains = chains_of(module, with_norms=precision == "bfloat16" and not separate_norms)
        self._network = rewritten(
            module, chains, fused=self._fused, alone=self._alone, value=lambda path: attribute(module, path)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 (n, classes) of centred `images` float32 (n, channels, height, width)."""
        enabled = self._dtype == torch.bfloat16
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=enabled):
            logits: Tensor = self._network(images)
        return logits.float()

    def _fused(self, chain: Chain) -> nn.Module:
        norm, clip, then = (self._called(node) for node in (chain.norm, chain.clip, chain.then))
        return _LiveChain(norm, clip_of(clip), clip_of(then), self._dtype)

    def _alone(self, node: fx.Node) -> nn.Module:
        module: nn.Module = self._called(node)
        return _LiveLayer(module) if is_weight_layer(module) else module

    def _called(self, node: fx.Node | None) -> Any:
        if node is None:
            return None
        return self._module.get_submodule(str(node.target)) if node.op == "call_module" else RELU


class _LiveLayer(nn.Module):
    """A quantized layer without Brevitas' wrapping of its weights."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self._layer = (layer,)  # not registered: it belongs to the network

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self._layer
        weight = layer.weight_quant.tensor_quant(layer.weight)[0]
        bias = None if layer.bias is None else layer.quant_bias()
        result: Tensor = layer.inner_forward_impl(x, weight, getattr(bias, "value", bias))
        return result


class _LiveChain(nn.Module):
    """A fused chain over a BatchNorm that trains."""

    def __init__(self, norm: Any, clip: Clip, then: Clip, dtype: torch.dtype) -> None:
        super().__init__()
        self._norm = (norm,)
        self._clip, self._then, self._dtype = clip, then, dtype

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        (norm,) = self._norm
        if other is not None:
            other = other.to(self._dtype)
        call = None
        if norm is not None and norm.training:
            mean, variance = torch.empty_like(norm.running_mean), torch.empty_like(norm.running_var)
            call = Normalisation(norm.weight, norm.bias, mean, variance, norm.eps, by_batch=True)
        elif norm is not None:
            x = norm(x)
        y = activate(x, self._clip, normalisation=call, other=other, then=self._then, dtype=self._dtype)
        if call is not None:
            _keep_account(norm, call, x.numel() // x.shape[1])
        return y


@torch.no_grad()
def _keep_account(norm: Any, seen: Normalisation, count: int) -> None:
    """Move the running statistics as BatchNorm does."""
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(seen.mean, momentum)
    norm.running_var.lerp_(seen.variance * (count / max(1, count - 1)), momentum)
