"""The shapes of a traced network's tensors, found by running it on blank images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hardbit.quantize.operators import node_place, operator_of
from hardbit_deploy.errors import HardbitError

__all__ = ["Shape", "tensor_shapes"]

Shape = tuple[int, ...]
_BATCH = 5


def tensor_shapes(module: fx.GraphModule, input_shape: Sequence[int]) -> dict[fx.Node, Shape]:
    """The shape behind the batch of every tensor, for images (channels, height, width); a constant has its own.

    Raises HardbitError for images that the network does not take, and for a node that moves the batch from the first
    axis: its place is named.
    """
    was_training = module.training
    module.eval()
    run = _Shapes(module)
    try:
        with torch.no_grad():
            run.run(torch.zeros(_BATCH, *input_shape))
    except RuntimeError as error:
        raise HardbitError(
            f"the network does not take images of shape {tuple(input_shape)}: {str(error).splitlines()[0]}",
            where=run.place,
        ) from error
    finally:
        module.train(was_training)
    return run.shapes


class _Shapes(fx.Interpreter):
    """Runs the module node by node, knows where it is, and keeps the shapes."""

    place = "image"

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.place = node_place(n)
        value = super().run_node(n)
        if not isinstance(value, Tensor):
            return value
        shape = tuple(value.shape)
        if n.op == "get_attr":
            self.shapes[n] = shape
        elif shape[:1] != (_BATCH,):
            raise HardbitError(
                f"{operator_of(self.module, n)} gives a tensor of shape {shape} for {_BATCH} images",
                where=self.place,
                remedy="leave the batch on the first axis",
            )
        else:
            self.shapes[n] = shape[1:]
        return value
