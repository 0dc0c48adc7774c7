"""Export: a frozen quantized module to the canonical ONNX graph.

The graph is written straight from the FX graph, because hardbit already knows every operator in it: weights are integer
initializers, zero points are explicit, the width of each quantizer is in its node's metadata, nothing is left to
constant folding. What is computed in float declares it in its node's metadata, with the reason. (Brevitas' own exporter
leaves initializers among the inputs, puts Clips on weights, and cannot write 1 bit.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from hardbit.graph.binary_quantizer import EXACT_SUM, write_binary_quantizer
from hardbit.graph.float_operators import REASONS, write_float_operator
from hardbit.graph.layer_parameters import write_parameters
from hardbit.graph.node_writer import NodeWriter
from hardbit.graph.shapes import Shape, tensor_shapes
from hardbit.quantize.operators import (
    FLOAT_OPERATORS,
    MOVING_OPERATORS,
    named_axes,
    node_place,
    operator_of,
    pooling_of,
)
from hardbit.quantize.profiles import Profile, get_profile
from hardbit.quantize.quantizers import activation_numerics, is_activation_quantizer, is_weight_layer
from hardbit_deploy.errors import HardbitError

__all__ = ["CANONICAL_FORMAT", "IR_VERSION", "OPSET", "export_canonical"]

OPSET = 18
IR_VERSION = 10
CANONICAL_FORMAT = "canonical-1"
_BY_ELEMENT = frozenset({"Quantize", "Relu", "Relu6", "Gelu"})


def export_canonical(
    module: fx.GraphModule, input_shape: Sequence[int], *, profile: str = "onnxruntime"
) -> onnx.ModelProto:
    """The canonical graph of a frozen `module` (see `hardbit.quantize.freeze`) for images (channels, height, width).

    Opset 18, dynamic batch, float32 input `image` in [-0.5, 0.5), float32 output `logits`; checked by onnx.checker.
    Raises HardbitError naming the layer whose integers do not fit, or that the images do not.
    """
    exporter = _Exporter(module, tensor_shapes(module, input_shape), get_profile(profile))
    output, classes = exporter.run()
    writer = exporter.writer
    graph = helper.make_graph(
        [*writer.nodes, helper.make_node("Identity", [output], ["logits"], name="logits")],
        "canonical",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        writer.initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="hardbit"
    )
    helper.set_model_props(model, {"hardbit.format": CANONICAL_FORMAT, "hardbit.profile": profile})
    onnx.checker.check_model(model, full_check=True)
    return model


class _Exporter:
    """Walks the FX graph. A tensor is kept by name in its own shape (`values`), as rows of its last axis (`rows`), or
    both: a Gemm reads and writes rows, and what works element by element takes them as they come.
    """

    def __init__(self, module: fx.GraphModule, shapes: dict[fx.Node, Shape], profile: Profile) -> None:
        self.module = module
        self.profile = profile
        self.shapes = shapes
        self.writer = NodeWriter(taken={"logits"})
        self.values: dict[fx.Node, str] = {}
        self.rows: dict[fx.Node, str] = {}
        self.codes: set[fx.Node] = set()  # what holds dequantized codes

    def run(self) -> tuple[str, int]:
        """Write everything; returns the name of the tensor that holds the logits, and how many there are."""
        for node in self.module.graph.nodes:
            operator = operator_of(self.module, node)
            if operator == "input":
                self.values[node] = "image"
            elif operator == "output":
                logits = node.all_input_nodes[0]
                return self._tensor(logits), self.shapes[logits][0]
            else:
                self._write(node, operator)
        raise HardbitError("the network has no output", where=type(self.module).__name__)

    def _write(self, node: fx.Node, operator: str) -> None:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        child: Any = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if operator == "Quantize" or (operator in MOVING_OPERATORS and source in self.codes):
            self.codes.add(node)
        if source is not None and operator == "Identity":
            self.values.update({node: self.values[source]} if source in self.values else {})
            self.rows.update({node: self.rows[source]} if source in self.rows else {})
            return
        name = self.writer.free_name(node_place(node))
        if source is not None and operator in _BY_ELEMENT:
            as_rows = source in self.rows and source not in self.values
            tensor = self.rows[source] if as_rows else self._tensor(source)
            (self.rows if as_rows else self.values)[node] = self._write_by_element(node, operator, child, name, tensor)
        elif source is not None and operator == "Gemm":
            parameters = write_parameters(self.writer, child, name, reads_codes=source in self.codes)
            reason = self._layer_reason(node, operator, child)
            tensor = self.writer.node("Gemm", [self._rows(source), *parameters], name, transB=1, reason=reason)
            (self.values if len(self.shapes[node]) == 1 else self.rows)[node] = tensor
        else:
            self.values[node] = self._write_tensor(node, operator, child, name)

    def _write_by_element(self, node: fx.Node, operator: str, child: Any, name: str, tensor: str) -> str:
        if operator == "Quantize":
            return self._write_quantizer(child, name, tensor)
        if operator == "Gelu":
            return write_float_operator(self.writer, operator, [tensor], name, node=node, child=child)
        rectified = self.writer.node("Relu", [tensor], name)
        if operator == "Relu":
            return rectified
        ceiling = self.writer.constant(f"{name}.ceiling", np.float32(6))
        return self.writer.node("Clip", [rectified, "", ceiling], f"{name}.clip", reason="a ReLU6 of floats")

    def _write_tensor(self, node: fx.Node, operator: str, child: Any, name: str) -> str:
        """An operator that wants its operands in their own shapes."""
        if operator == "Constant":
            return self.writer.constant(name, _attribute(self.module, str(node.target)).detach().numpy())
        if operator == "Reshape":  # from the rows as well as from the tensor
            source = node.all_input_nodes[0]
            return self._reshape(self.rows.get(source) or self._tensor(source), self.shapes[node], name)
        inputs = [self._tensor(source) for source in node.all_input_nodes]
        if operator == "Conv" and child is not None:
            parameters = write_parameters(self.writer, child, name, reads_codes=node.all_input_nodes[0] in self.codes)
            attributes = {
                "kernel_shape": list(child.kernel_size),
                "strides": list(child.stride),
                "pads": _pads(child.padding),
                "dilations": list(child.dilation),
                "group": child.groups,
            }
            reason = self._layer_reason(node, operator, child)
            return self.writer.node("Conv", [inputs[0], *parameters], name, reason=reason, **attributes)
        if operator == "Add":
            return self.writer.node("Add", inputs, name, reason=self._stream_reason(node, REASONS["Add"]))
        if operator == "Flatten":
            return self.writer.node("Flatten", inputs, name, axis=1)
        if operator == "Transpose":
            return self.writer.node("Transpose", inputs, name, perm=self._permutation(node))
        if operator == "MaxPool":
            return self.writer.node("MaxPool", inputs, name, **_pool_attributes(node, child, operator))
        if operator in ("AveragePool", "GlobalAveragePool"):
            attributes = _pool_attributes(node, child, operator) if operator == "AveragePool" else {}
            reason = self._stream_reason(node, REASONS["ReduceMean"])
            return self.writer.node(operator, inputs, name, reason=reason, **attributes)
        if operator in FLOAT_OPERATORS:
            return write_float_operator(self.writer, operator, inputs, name, node=node, child=child)
        raise HardbitError(
            f"'{operator}' cannot be exported", where=name, remedy="freeze the quantized module before exporting it"
        )

    def _tensor(self, node: fx.Node) -> str:
        """The tensor of `node` in its own shape."""
        if node not in self.values:
            name = self.writer.free_name(f"{node_place(node)}.shaped")
            self.values[node] = self._reshape(self.rows[node], self.shapes[node], name)
        return self.values[node]

    def _rows(self, node: fx.Node) -> str:
        """The tensor of `node` as rows of its last axis, (batch * everything between, last)."""
        if len(self.shapes[node]) == 1:
            return self._tensor(node)
        if node not in self.rows:
            name = self.writer.free_name(f"{node_place(node)}.rows")
            self.rows[node] = self.writer.node("Flatten", [self._tensor(node)], name, axis=len(self.shapes[node]))
        return self.rows[node]

    def _reshape(self, tensor: str, shape: Shape, name: str) -> str:
        target = self.writer.constant(f"{name}.shape", np.array([-1, *shape], np.int64))
        return self.writer.node("Reshape", [tensor, target], name)

    def _permutation(self, node: fx.Node) -> list[int]:
        rank = len(self.shapes[node]) + 1
        axes = [axis % rank for axis in named_axes(node, None, "Transpose")]
        if len(axes) == rank > 2:
            return axes
        order = list(range(rank))
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
        return order

    def _layer_reason(self, node: fx.Node, operator: str, layer: Any) -> str | None:
        """Why a layer runs in float, if it does. A Gemm of codes may end in floats; a Conv has to end in codes, if the
        profile does not let it end in floats."""
        if not is_weight_layer(layer):
            return "its weights are float"
        if node.all_input_nodes[0] not in self.codes:
            return "its activations are float"
        if self.profile.layers_end_in_floats:
            return None
        if operator == "Conv" and any(self._is_binary(user) for user in node.users):
            return EXACT_SUM
        if operator == "Conv" and not self._ends_in_codes(node):
            return "it would have to end in codes, and what it gives is kept in float"
        return None

    def _stream_reason(self, node: fx.Node, reason: str) -> str | None:
        """`reason` where sums or averages are not from codes to codes; or, where the profile says so, from what a layer
        of codes gives."""
        if any(self._is_binary(user) for user in node.users) and not self.profile.layers_end_in_floats:
            return EXACT_SUM
        from_codes = all(source in self.codes or self._is_sum_of_codes(source) for source in node.all_input_nodes)
        return None if from_codes and self._ends_in_codes(node) else reason

    def _is_sum_of_codes(self, node: fx.Node) -> bool:
        child = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        reads_codes = is_weight_layer(child) and node.all_input_nodes[0] in self.codes
        return reads_codes and self.profile.layers_end_in_floats

    def _ends_in_codes(self, node: fx.Node) -> bool:
        return [operator_of(self.module, user) for user in node.users] == ["Quantize"]

    def _is_binary(self, node: fx.Node) -> bool:
        child = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        return is_activation_quantizer(child) and activation_numerics(child).is_binary

    def _write_quantizer(self, layer: nn.Module, name: str, tensor: str) -> str:
        numerics = activation_numerics(layer)
        writer = self.writer
        if hasattr(layer, "act_quant") and type(layer).__name__ == "QuantReLU":
            tensor = writer.node("Relu", [tensor], name)
        if numerics.is_binary:
            return write_binary_quantizer(writer, tensor, name, numerics.scale)
        dtype = np.int8 if numerics.signed else np.uint8
        scale = writer.constant(f"{name}.scale", np.float32(numerics.scale))
        zero_point = writer.constant(f"{name}.zero_point", dtype(0))
        codes = writer.node("QuantizeLinear", [tensor, scale, zero_point], f"{name}.quantize", bits=numerics.bits)
        if (numerics.low, numerics.high) != (np.iinfo(dtype).min, np.iinfo(dtype).max):
            low = writer.constant(f"{name}.low", dtype(numerics.low))
            high = writer.constant(f"{name}.high", dtype(numerics.high))
            codes = writer.node("Clip", [codes, low, high], f"{name}.clip")
        return writer.node("DequantizeLinear", [codes, scale, zero_point], f"{name}.dequantize", bits=numerics.bits)


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value


def _pads(padding: Any) -> list[int]:
    return _pair(padding) * 2


def _pool_attributes(node: fx.Node, child: Any, operator: str) -> dict[str, Any]:
    pool = pooling_of(node, child, operator)
    attributes: dict[str, Any] = {
        "kernel_shape": _pair(pool.kernel_size),
        "strides": _pair(pool.stride if pool.stride is not None else pool.kernel_size),
        "pads": _pads(pool.padding),
        "ceil_mode": 0,
    }
    if operator == "AveragePool":
        attributes["count_include_pad"] = int(bool(pool.count_include_pad))
    else:
        attributes["dilations"] = _pair(pool.dilation)
    return attributes


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)] * 2
