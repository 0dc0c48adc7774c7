"""Export: a frozen quantized module to the canonical ONNX graph.

The graph is written straight from the FX graph, because hardbit already knows every operator in it: weights are integer
initializers, zero points are explicit, the width of each quantizer is in its node's metadata, nothing is left to
constant folding. (Brevitas' own exporter leaves initializers among the inputs, puts Clips on weights, and cannot
write 1 bit.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from hardbit.quantize.operators import node_place, operator_of, pooling_of
from hardbit.quantize.quantizers import activation_numerics, parameter_codes
from hardbit_deploy.errors import HardbitError

__all__ = ["CANONICAL_FORMAT", "IR_VERSION", "OPSET", "export_canonical"]

OPSET = 18
IR_VERSION = 10
CANONICAL_FORMAT = "canonical-1"
_INT32 = 2**31 - 1


def export_canonical(
    module: fx.GraphModule, input_shape: Sequence[int], *, profile: str = "onnxruntime"
) -> onnx.ModelProto:
    """The canonical graph of a frozen `module` (see `hardbit.quantize.freeze`) for images (channels, height, width).

    Opset 18, dynamic batch, float32 input `image` in [-0.5, 0.5), float32 output `logits`; checked by onnx.checker.
    Raises HardbitError naming the layer whose integers do not fit.
    """
    classes = _classes(module, input_shape)
    writer = _Writer(module)
    output = writer.run()
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


class _Writer:
    """Collects nodes and initializers while it walks the FX graph; `values` maps FX nodes to tensor names."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: dict[fx.Node, str] = {}
        self.names = {"logits"}

    def run(self) -> str:
        """Write everything; returns the name of the tensor that holds the logits."""
        for node in self.module.graph.nodes:
            operator = operator_of(self.module, node)
            if operator == "input":
                self.values[node] = "image"
            elif operator == "output":
                return self.values[node.all_input_nodes[0]]
            else:
                self.values[node] = self._write(node, operator)
        raise HardbitError("the network has no output", where=type(self.module).__name__)

    def _write(self, node: fx.Node, operator: str) -> str:
        inputs = [self.values[source] for source in node.all_input_nodes]
        child: Any = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if operator == "Identity":
            return inputs[0]
        name = self._free_name(node_place(node))
        if operator == "Quantize" and child is not None:
            return self._write_quantizer(child, name, inputs[0])
        if operator == "Conv" and child is not None:
            attributes = {
                "kernel_shape": list(child.kernel_size),
                "strides": list(child.stride),
                "pads": _pads(child.padding),
                "dilations": list(child.dilation),
                "group": child.groups,
            }
            return self._node("Conv", [inputs[0], *self._parameters(child, name)], name, **attributes)
        if operator == "Gemm" and child is not None:
            return self._node("Gemm", [inputs[0], *self._parameters(child, name)], name, transB=1)
        if operator == "Add":
            return self._node("Add", inputs, name)
        if operator == "Flatten":
            return self._node("Flatten", inputs, name, axis=1)
        if operator == "GlobalAveragePool":
            return self._node("GlobalAveragePool", inputs, name)
        if operator in ("MaxPool", "AveragePool"):
            return self._node(operator, inputs, name, **_pool_attributes(node, child, operator))
        raise HardbitError(
            f"'{operator}' cannot be exported", where=name, remedy="freeze the quantized module before exporting it"
        )

    def _write_quantizer(self, layer: nn.Module, name: str, tensor: str) -> str:
        numerics = activation_numerics(layer)
        if hasattr(layer, "act_quant") and type(layer).__name__ == "QuantReLU":
            tensor = self._node("Relu", [tensor], name)
        dtype = np.int8 if numerics.signed else np.uint8
        scale = self._constant(f"{name}.scale", np.float32(numerics.scale))
        zero_point = self._constant(f"{name}.zero_point", dtype(0))
        codes = self._node("QuantizeLinear", [tensor, scale, zero_point], f"{name}.quantize", bits=numerics.bits)
        if numerics.bits < 8:
            low = self._constant(f"{name}.low", dtype(numerics.low))
            high = self._constant(f"{name}.high", dtype(numerics.high))
            codes = self._node("Clip", [codes, low, high], f"{name}.clip")
        return self._node("DequantizeLinear", [codes, scale, zero_point], f"{name}.dequantize", bits=numerics.bits)

    def _parameters(self, layer: nn.Module, name: str) -> list[str]:
        """DequantizeLinear of the weight codes and of the bias codes, per output channel."""
        codes = parameter_codes(layer)
        bias = codes.bias.numpy()
        if np.abs(bias).max(initial=0) > _INT32:
            raise HardbitError(
                "a bias does not fit into 32 bits at the scale of its accumulator",
                where=name,
                remedy="a channel's weights are close to zero: train longer or prune the channel",
            )
        channels = len(bias)
        tensors = []
        for kind, values, scale, bits in (
            ("weight", codes.weight.numpy(), codes.weight_scale.numpy(), codes.weight_bits),
            ("bias", bias.astype(np.int32), codes.bias_scale.numpy(), 32),
        ):
            inputs = [
                self._constant(f"{name}.{kind}.codes", values),
                self._constant(f"{name}.{kind}.scale", scale),
                self._constant(f"{name}.{kind}.zero_point", np.zeros(channels, values.dtype)),
            ]
            tensors.append(self._node("DequantizeLinear", inputs, f"{name}.{kind}.dequantize", bits=bits, axis=0))
        return tensors

    def _free_name(self, place: str) -> str:
        """`place`, with a number where the name is taken: one pooling module may be called in several places."""
        name, count = place, 1
        while name in self.names:
            name, count = f"{place}_{count}", count + 1
        self.names.add(name)
        return name

    def _constant(self, name: str, value: object) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, inputs: list[str], name: str, bits: int | None = None, **attributes: Any) -> str:
        node = helper.make_node(operator, inputs, [f"{name}.out"], name=name, **attributes)
        if bits is not None:
            entry = node.metadata_props.add()
            entry.key, entry.value = "hardbit.bits", str(bits)
        self.nodes.append(node)
        return node.output[0]


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


def _classes(module: fx.GraphModule, input_shape: Sequence[int]) -> int:
    """How many logits there are; refuses images that the network does not take, and a Linear on other than rows."""
    was_training = module.training
    module.eval()
    shapes = _Shapes(module)
    try:
        with torch.no_grad():
            logits = shapes.run(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise HardbitError(
            f"the network does not take images of shape {tuple(input_shape)}: {str(error).splitlines()[0]}",
            where=shapes.place,
        ) from error
    finally:
        module.train(was_training)
    return int(logits.shape[1])


class _Shapes(fx.Interpreter):
    """Runs the module node by node, knows where it is, and looks at what every Linear reads."""

    place = "image"

    def run_node(self, n: fx.Node) -> Any:
        self.place = node_place(n)
        if operator_of(self.module, n) == "Gemm":
            (tensor,) = (self.env[source] for source in n.all_input_nodes)
            if tensor.dim() != 2:
                raise HardbitError(
                    f"a Linear layer reads a tensor of {tensor.dim()} axes",
                    where=self.place,
                    remedy="flatten it first: torch.flatten(x, 1)",
                )
        return super().run_node(n)
