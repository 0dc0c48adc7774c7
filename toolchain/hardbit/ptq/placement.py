"""Where quantizers go in a float graph, which layers become integer, and why the rest stays in float.

The rules are those of ONNX Runtime's fusions: codes into every layer, codes out of every Conv and of every sum of
feature maps, a fresh quantizer behind an average. A Relu or Clip that alone reads a layer belongs to the layer.
A Gemm without one may end in numbers, so logits are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from hardbit.graph.canonical_form import FLOAT_OPERATORS, OPERATORS
from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.graph.quantized_layers import VALUE_MOVING
from hardbit.ptq.float_reasons import DECIDES_A_SIGN, NOT_CONSTANT, PREPROCESSING, reason_for
from hardbit.ptq.tensor_shapes import Shape

__all__ = ["Placement", "QuantizedTensor", "place"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_POOLS = ("AveragePool", "GlobalAveragePool")
_PICKS = frozenset(
    ["DepthToSpace", "Expand", "Gather", "GlobalMaxPool", "Pad", "Slice", "SpaceToDepth", "Squeeze", "Unsqueeze"]
)
"""Operators whose results are values of their input, or 0: codes of the same scale hold them exactly."""
_BEFORE_A_SIGN = frozenset(
    ["Add", "BatchNormalization", "Clip", "Div", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Sub", "Transpose"]
)


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor that is quantized, and the names of the nodes that read its codes.

    `of_pixels`: nothing but preprocessing lies before it. `wide`: 8 bits, whatever the network's width. `signs`: it
    holds -1 and +1. `like`: the tensor whose scale it takes over. `limits`: what an activation function cuts it to.
    """

    name: str
    readers: tuple[str, ...]
    of_pixels: bool = False
    wide: bool = False
    signs: bool = False
    like: str | None = None
    limits: tuple[float, float] = (-np.inf, np.inf)


@dataclass(frozen=True)
class Placement:
    """`layers`: names of the integer layers, the `wide` ones among them with 8-bit weights; `tensors` in graph order;
    `float_reasons` by node name; `saturations`: Clips that the quantizer behind them makes needless."""

    layers: tuple[str, ...]
    wide: frozenset[str]
    tensors: tuple[QuantizedTensor, ...]
    float_reasons: dict[str, str]
    saturations: tuple[str, ...]


def place(graph: OnnxGraph, shapes: dict[str, Shape]) -> Placement:
    """The placement for a prepared float graph (see `preparation`); `graph` is only read."""
    return _Placer(graph, shapes).placement()


class _Placer:
    def __init__(self, graph: OnnxGraph, shapes: dict[str, Shape]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.before_sign = _tensors_before_signs(graph)
        self.layers = [node for node in graph.nodes if self._is_integer_layer(node)]
        self.sums = [node for node in graph.nodes if self._is_integer_sum(node)]
        heavy = [node for node in graph.nodes if node.op_type in _LAYERS]
        self.with_layers_before = _reached(graph, {node.output[0] for node in heavy})
        self.wanted: dict[str, None] = {}

    def placement(self) -> Placement:
        for node in self.layers:
            self.wanted[self._root(node.input[0])] = None
            after = self._after(node)
            if node.op_type == "Conv" or (after != node.output[0] and not self.graph.is_output(after)):
                self.wanted[after] = None
        for node in self.sums:
            self.wanted.update(dict.fromkeys([*map(self._root, node.input), self._after(node)]))
        order = {name: index for index, name in enumerate(self._tensors())}
        tensors = tuple(self._tensor(name) for name in sorted(self.wanted, key=order.__getitem__))
        saturations = tuple(clip.name for tensor in tensors if (clip := self._saturation(tensor.name)) is not None)
        ends = [node for node in self.layers if not self._leads_to_layers(node)]
        starts = [node for node in self.layers if node.input[0] not in self.with_layers_before]
        reasons = {
            node.name: reason
            for node in self.graph.nodes
            if node.name not in saturations and (reason := self._float_reason(node)) is not None
        }
        wide = frozenset(node.name for node in [*starts, *ends])
        return Placement(tuple(node.name for node in self.layers), wide, tensors, reasons, saturations)

    def _is_integer_layer(self, node: onnx.NodeProto) -> bool:
        weights = self.graph.operand(node, 1) if node.op_type in ("Conv", "Gemm") else None
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if weights is None or self.graph.is_constant(node.input[0]) or (has_bias and not self._bias_fits(node)):
            return False
        if node.op_type == "Gemm":
            after = self._after(node)  # a Relu that is not quantized would take the Gemm with it into float
            ends_well = after == node.output[0] or after not in self.before_sign
            return ends_well and not attribute(node, "transA", 0) and bool(attribute(node, "transB", 0))
        return weights.ndim == 4 and node.output[0] not in self.before_sign

    def _bias_fits(self, node: onnx.NodeProto) -> bool:
        bias, weights = self.graph.operand(node, 2), self.graph.operand(node, 1)
        return bias is not None and weights is not None and bias.shape == weights.shape[:1]

    def _is_integer_sum(self, node: onnx.NodeProto) -> bool:
        """A sum of two feature maps of one shape; a sum of vectors or tokens stays a sum of floats."""
        shapes = [self.shapes.get(name) for name in node.input]
        return (
            node.op_type == "Add"
            and shapes[0] is not None
            and len(shapes[0]) == 4
            and shapes[0] == shapes[1]
            and not any(self.graph.is_constant(name) for name in node.input)
            and node.output[0] not in self.before_sign
        )

    def _root(self, tensor: str) -> str:
        """The tensor whose values, moved at most, `tensor` holds."""
        node = self.graph.producer(tensor)
        while node is not None and node.op_type in VALUE_MOVING:
            tensor = node.input[0]
            node = self.graph.producer(tensor)
        return tensor

    def _after(self, node: onnx.NodeProto) -> str:
        """The result of `node`, or of the Relu or constant Clip that alone reads it."""
        result = node.output[0]
        readers = self.graph.consumers(result)
        if len(readers) == 1 and not self.graph.is_output(result) and self._is_activation(readers[0]):
            return readers[0].output[0]
        return result

    def _is_activation(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Relu" or (node.op_type == "Clip" and _limits(self.graph, node) is not None)

    def _saturation(self, tensor: str) -> onnx.NodeProto | None:
        """The Clip that makes `tensor` and is left to its quantizer: that of a layer or an integer sum."""
        clip = self.graph.producer(tensor)
        if clip is None or clip.op_type != "Clip" or _limits(self.graph, clip) is None:
            return None
        before = self.graph.producer(clip.input[0])
        heavy = before is not None and any(before is node for node in (*self.layers, *self.sums))
        return clip if heavy and before is not None and self._after(before) == tensor else None

    def _tensor(self, name: str) -> QuantizedTensor:
        producer, readers = self.graph.producer(name), self.graph.consumers(name)
        if name in self.before_sign:  # its exact numbers go on to the sign
            readers = [node for node in readers if any(node is layer for layer in self.layers)]
        clip = self._saturation(name)
        limits = None if clip is None else _limits(self.graph, clip)
        of_pixels = name not in self.with_layers_before
        operator = "" if producer is None else producer.op_type
        return QuantizedTensor(
            name,
            tuple(node.name for node in readers),
            of_pixels=of_pixels,
            wide=of_pixels or operator in _POOLS,
            signs=operator == "Sign",
            like=self._picked_from(name),
            limits=limits or (-np.inf, np.inf),
        )

    def _picked_from(self, tensor: str) -> str | None:
        """The quantized tensor whose values, or zeros, `tensor` holds by way of operators that pick."""
        node, picked = self.graph.producer(tensor), False
        while node is not None and (node.op_type in VALUE_MOVING or self._picks(node)):
            picked = picked or node.op_type in _PICKS
            tensor = node.input[0]
            if tensor in self.wanted and tensor not in self.before_sign:
                return tensor if picked else None
            node = self.graph.producer(tensor)
        return None

    def _picks(self, node: onnx.NodeProto) -> bool:
        filling = self.graph.operand(node, 2) if node.op_type == "Pad" else None
        return node.op_type in _PICKS and (filling is None or not filling.any())

    def _float_reason(self, node: onnx.NodeProto) -> str | None:
        operator = node.op_type
        if operator in ("Conv", "Gemm", "MatMul"):
            if any(node is layer for layer in self.layers):
                return None
            if node.output[0] in self.before_sign:
                return DECIDES_A_SIGN
            return (
                NOT_CONSTANT if operator != "MatMul" and self.graph.operand(node, 1) is None else reason_for(operator)
            )
        if operator == "Add":
            if any(node is integer for integer in self.sums):
                return None
        elif operator in OPERATORS and operator not in FLOAT_OPERATORS and operator != "Clip":
            return None
        return PREPROCESSING if self._is_preprocessing(node) else reason_for(operator)

    def _is_preprocessing(self, node: onnx.NodeProto) -> bool:
        return bool(self.layers) and node.output[0] not in self.with_layers_before and self._leads_to_layers(node)

    def _leads_to_layers(self, node: onnx.NodeProto) -> bool:
        reached = _reached(self.graph, {node.output[0]})
        return any(layer.input[0] in reached for layer in self.layers)

    def _tensors(self) -> Iterator[str]:
        yield from (value.name for value in self.graph.inputs)
        yield from (name for node in self.graph.nodes for name in node.output)


def _limits(graph: OnnxGraph, clip: onnx.NodeProto) -> tuple[float, float] | None:
    """The constant bounds of a Clip around 0, infinite where absent; None if they are computed or leave out 0."""
    bounds = [-np.inf, np.inf]
    for index in (1, 2):
        if len(clip.input) > index and clip.input[index]:
            value = graph.operand(clip, index)
            if value is None:
                return None
            bounds[index - 1] = float(value.item())
    low, high = bounds
    return (low, high) if low <= 0 <= high and low < high else None


def _reached(graph: OnnxGraph, tensors: set[str]) -> set[str]:
    """`tensors` and every tensor that depends on them."""
    found = set(tensors)
    for node in graph.nodes:
        if any(name in found for name in node.input):
            found.update(node.output)
    return found


def _tensors_before_signs(graph: OnnxGraph) -> set[str]:
    """What a Sign reads, back to the layers whose results it decides."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op_type == "Sign" or (node.op_type in _BEFORE_A_SIGN and node.output[0] in found):
            found.update(name for name in node.input if name and not graph.is_constant(name))
    return found
