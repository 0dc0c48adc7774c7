"""QOperator graphs (QLinearConv, QGemm, QLinearAdd, ...) rewritten to Q/DQ: the same values, said in numbers.

QLinearConv(x, w) is QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w))). Every tensor of codes is followed
with its scale and zero point; what only moves codes (MaxPool, Reshape, ...) moves numbers instead. A kernel that
requantizes in one multiplication may round a number near a border the other way: one code apart, no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit_deploy.errors import HardbitError

__all__ = ["codes_as_numbers"]

_MOVES = frozenset(["Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
_PICKS = frozenset(["Concat", "DepthToSpace", "Expand", "Gather", "Slice", "SpaceToDepth", "Split", "Tile"])
_AT_RUN_TIME = frozenset(["ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger"])


@dataclass
class _Codes:
    """A tensor of codes: scale and zero point by name, and the tensor of its numbers, made when first asked for."""

    scale: str
    zero_point: str
    numbers: str | None = None


def codes_as_numbers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model`, opset 18, in which codes stand between a QuantizeLinear (and an integer Clip) and
    DequantizeLinear only. Raises HardbitError naming the node that has no such form."""
    rewriter = _Rewriter(OnnxGraph(model))
    for node in list(rewriter.graph.nodes):
        rewriter.rewrite(node)
    rewriter.graph.prune()
    rewritten = rewriter.graph.to_model()
    used = {node.domain for node in rewritten.graph.node}
    kept = [entry for entry in rewritten.opset_import if entry.domain in ("", "ai.onnx") or entry.domain in used]
    entries = [helper.make_opsetid(entry.domain, entry.version) for entry in kept]
    del rewritten.opset_import[:]
    rewritten.opset_import.extend(entries)
    return rewritten


class _Rewriter:
    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.codes: dict[str, _Codes] = {}

    def rewrite(self, node: onnx.NodeProto) -> None:
        rule = _RULES.get(node.op_type)
        coded = [name in self.codes for name in node.input]
        if node.op_type == "QuantizeLinear":
            self.codes[node.output[0]] = _Codes(node.input[1], node.input[2] if len(node.input) > 2 else "")
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node)
        elif rule is not None:
            rule(self, node)
        elif node.op_type in _AT_RUN_TIME:
            raise HardbitError(
                f"{node.op_type} finds its scales while it runs: no two images see the same network",
                node.name,
                "quantize the network statically, with calibration images",
            )
        elif node.op_type.startswith("QLinear"):
            raise HardbitError(
                f"the operator {node.op_type} has no rewrite to Q/DQ",
                node.name,
                f"known: {', '.join(sorted(_RULES))}; or save the network as Q/DQ (QuantFormat.QDQ)",
            )
        elif any(coded):
            self._move(node)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        """The numbers that these codes stand for exist already, unless the node reads them by another scale."""
        source = self.codes.get(node.input[0])
        if source is None or source.numbers is None:
            return
        mine = (node.input[1], node.input[2] if len(node.input) > 2 else "")
        if not self._same(mine[0], source.scale) or not self._same(mine[1], source.zero_point):
            raise HardbitError("it reads codes by another scale than that which wrote them", node.name)
        result = node.output[0]
        self.graph.insert_before(
            node, helper.make_node("Identity", [source.numbers], [result], name=f"{node.name}.same")
        )
        self.graph.remove(node)

    def _same(self, ours: str, theirs: str) -> bool:
        values = [self.graph.constant(name) if name else np.zeros((), np.uint8) for name in (ours, theirs)]
        if ours == theirs:
            return True
        if values[0] is None or values[1] is None:
            return False
        return values[0].dtype == values[1].dtype and np.array_equal(values[0].ravel(), values[1].ravel())

    def _move(self, node: onnx.NodeProto) -> None:
        """An operator that moves or cuts codes."""
        if node.op_type == "Clip":
            source = self.codes[node.input[0]]
            if source.numbers is None:
                self.codes[node.output[0]] = _Codes(source.scale, source.zero_point)
                return
        if node.op_type not in _MOVES | _PICKS:
            raise HardbitError(
                f"{node.op_type} computes on codes", node.name, "dequantize them first, or use an operator on codes"
            )
        coded = [name for name in node.input if name in self.codes]
        first = self.codes[coded[0]]
        for name in coded[1:]:
            other = self.codes[name]
            if not self._same(first.scale, other.scale) or not self._same(first.zero_point, other.zero_point):
                raise HardbitError(f"{node.op_type} joins codes of different scales", node.name)
        for index, name in enumerate(list(node.input)):
            if name in self.codes:
                self.graph.set_input(node, index, self.numbers(name, node))
        for index, name in enumerate(list(node.output)):
            numbers = self.graph.unused_name(f"{name}.numbers")
            node.output[index] = numbers
            self.codes[name] = _Codes(first.scale, first.zero_point, numbers)
        self.graph.set_output(node, node.output[0])

    def numbers(self, name: str, reader: onnx.NodeProto) -> str:
        """The tensor of the numbers that the codes `name` stand for."""
        codes = self.codes[name]
        if codes.numbers is None:
            codes.numbers = self.graph.unused_name(f"{name}.numbers")
            inputs = [name, codes.scale] + ([codes.zero_point] if codes.zero_point else [])
            self._before(reader, "DequantizeLinear", inputs, codes.numbers, f"{name}.dequantize")
        return codes.numbers

    def operand(self, node: onnx.NodeProto, index: int, axis: int = 0) -> str:
        """The numbers of the operand whose codes, scale and zero point are the inputs from `index` on."""
        name, scale, zero_point = node.input[index : index + 3]
        if name in self.codes:
            return self.numbers(name, node)
        if not self.graph.is_constant(name):
            raise HardbitError(f"nobody quantized its operand '{name}'", node.name)
        numbers = self.graph.unused_name(f"{name}.numbers")
        factor = self.graph.constant(scale)
        along: dict[str, Any] = {"axis": axis} if factor is not None and factor.size > 1 else {}
        inputs = [name, scale] + ([zero_point] if zero_point else [])
        self._before(node, "DequantizeLinear", inputs, numbers, f"{name}.dequantize", **along)
        return numbers

    def replace(
        self, node: onnx.NodeProto, operator: str, inputs: list[str], scale: str, zero_point: str, **attributes: Any
    ) -> None:
        """Let `operator` and a QuantizeLinear stand for `node`; without a scale the result is numbers."""
        result = node.output[0]
        if scale:
            exact = self.graph.unused_name(f"{result}.exact")
            self._before(node, operator, inputs, exact, node.name, keep_name=True, **attributes)
            parameters = [scale] + ([zero_point] if zero_point else [])
            self._before(node, "QuantizeLinear", [exact, *parameters], result, f"{node.name}.quantize")
            self.codes[result] = _Codes(scale, zero_point)
        else:
            self._before(node, operator, inputs, result, node.name, keep_name=True, **attributes)
        self.graph.remove(node)

    def bias(self, node: onnx.NodeProto, index: int, input_scale: str, weight_scale: str) -> list[str]:
        """The numbers of an int32 bias in units of input scale times weight scale."""
        if len(node.input) <= index or not node.input[index]:
            return []
        scales: list[NDArray[Any]] = []
        for name in (input_scale, weight_scale):
            value = self.graph.constant(name)
            if value is None:
                raise HardbitError(f"its scale '{name}' is computed at run time", node.name)
            scales.append(value.astype(np.float32).reshape(()) if value.size == 1 else value.astype(np.float32))
        unit = np.asarray(scales[0] * scales[1], np.float32)
        name = self.graph.add_constant(f"{node.name}.bias.scale", unit)
        zero = self.graph.add_constant(f"{node.name}.bias.zero_point", np.zeros(unit.shape, np.int32))
        numbers = self.graph.unused_name(f"{node.name}.bias.numbers")
        along: dict[str, Any] = {"axis": 0} if unit.ndim else {}
        inputs = [node.input[index], name, zero]
        self._before(node, "DequantizeLinear", inputs, numbers, f"{node.name}.bias.dequantize", **along)
        return [numbers]

    def _before(
        self,
        place: onnx.NodeProto,
        operator: str,
        inputs: list[str],
        output: str,
        name: str,
        *,
        keep_name: bool = False,
        **attributes: Any,
    ) -> None:
        name = name if keep_name else self.graph.unused_node_name(name)
        self.graph.insert_before(place, helper.make_node(operator, inputs, [output], name=name, **attributes))


Rule = Callable[[_Rewriter, onnx.NodeProto], None]


def _options(node: onnx.NodeProto, *left_out: str) -> dict[str, Any]:
    if attribute(node, "channels_last", 0):
        raise HardbitError(f"{node.op_type} with its channels last", node.name, "save the network with channels first")
    left_out = ("channels_last", *left_out)
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute if entry.name not in left_out}


def _tail(node: onnx.NodeProto, index: int) -> tuple[str, str]:
    """Scale and zero point of the result, empty where left out."""
    given = [*node.input[index : index + 2], "", ""]
    return given[0], given[1]


def _convolution(rewriter: _Rewriter, node: onnx.NodeProto) -> None:
    operands = [rewriter.operand(node, 0), rewriter.operand(node, 3)]
    bias = rewriter.bias(node, 8, node.input[1], node.input[4])
    rewriter.replace(node, "Conv", operands + bias, *_tail(node, 6), **_options(node))


def _product(rewriter: _Rewriter, node: onnx.NodeProto) -> None:
    operands = [rewriter.operand(node, 0), rewriter.operand(node, 3, axis=1)]
    rewriter.replace(node, "MatMul", operands, *_tail(node, 6))


def _gemm(rewriter: _Rewriter, node: onnx.NodeProto) -> None:
    alpha, scale = np.asarray(attribute(node, "alpha", 1.0), np.float32), rewriter.graph.operand(node, 4)
    if alpha != 1 and scale is not None:  # it multiplies what the bias was added to
        rewriter.graph.set_input(node, 4, rewriter.graph.add_constant(f"{node.name}.alpha.scale", scale * alpha))
    outputs = 0 if attribute(node, "transB", 0) else 1
    operands = [rewriter.operand(node, 0), rewriter.operand(node, 3, axis=outputs)]
    bias = rewriter.bias(node, 6, node.input[1], node.input[4])
    rewriter.replace(node, "Gemm", operands + bias, *_tail(node, 7), **_options(node, "alpha"))


def _of_two(operator: str) -> Rule:
    def rule(rewriter: _Rewriter, node: onnx.NodeProto) -> None:
        rewriter.replace(node, operator, [rewriter.operand(node, 0), rewriter.operand(node, 3)], *_tail(node, 6))

    return rule


def _of_one(operator: str, *left_out: str) -> Rule:
    def rule(rewriter: _Rewriter, node: onnx.NodeProto) -> None:
        rewriter.replace(node, operator, [rewriter.operand(node, 0)], *_tail(node, 3), **_options(node, *left_out))

    return rule


def _concat(rewriter: _Rewriter, node: onnx.NodeProto) -> None:
    operands = [rewriter.operand(node, index) for index in range(2, len(node.input), 3)]
    rewriter.replace(node, "Concat", operands, node.input[0], node.input[1], **_options(node))


_RULES: dict[str, Rule] = {
    "QGemm": _gemm,
    "QLinearAdd": _of_two("Add"),
    "QLinearAveragePool": _of_one("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _convolution,
    "QLinearGlobalAveragePool": _of_one("GlobalAveragePool"),
    "QLinearLeakyRelu": _of_one("LeakyRelu"),
    "QLinearMatMul": _product,
    "QLinearMul": _of_two("Mul"),
    "QLinearSigmoid": _of_one("Sigmoid"),
    "QLinearSoftmax": _of_one("Softmax", "opset"),
}
