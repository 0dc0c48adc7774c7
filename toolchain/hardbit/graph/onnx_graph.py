"""A small index over an ONNX model: who makes a tensor, who reads it, what an initializer holds; and safe edits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["OnnxGraph", "attribute", "bits_of", "float_reason", "mark_bits", "mark_float"]

_BITS_KEY = "hardbit.bits"
_FLOAT_KEY = "hardbit.float"


class OnnxGraph:
    """An editable copy of a model. The model it was made from is never touched; `to_model` writes a fresh one.

    Nodes stay in topological order: whoever inserts one says where. Every edit goes through a method, so that the index
    cannot go stale. It knows flat graphs only: no subgraphs, no sparse initializers.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._shell = onnx.ModelProto()
        self._shell.CopyFrom(model)
        graph = self._shell.graph
        self.nodes: list[onnx.NodeProto] = []
        for source in graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(source)
            self.nodes.append(node)
        self._tensors: dict[str, onnx.TensorProto] = {}
        for tensor in graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            self._tensors[tensor.name] = copy
        self._values: dict[str, NDArray[Any]] = {}
        self._producers: dict[str, onnx.NodeProto] | None = None
        self._consumers: dict[str, list[onnx.NodeProto]] | None = None

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs that a caller must give: those without a default value."""
        return [value for value in self._shell.graph.input if value.name not in self._tensors]

    @property
    def outputs(self) -> list[onnx.ValueInfoProto]:
        return list(self._shell.graph.output)

    @property
    def initializer_inputs(self) -> list[str]:
        """Initializers that are inputs too: defaults that a caller may override, hence not constants."""
        return [value.name for value in self._shell.graph.input if value.name in self._tensors]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes `tensor`, or None for an input or an initializer."""
        if self._producers is None:
            self._producers = {name: node for node in self.nodes for name in node.output if name}
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read `tensor`, each once, in graph order."""
        if self._consumers is None:
            self._consumers = {}
            for node in self.nodes:
                for name in dict.fromkeys(node.input):
                    self._consumers.setdefault(name, []).append(node)
        return list(self._consumers.get(tensor, []))

    def is_output(self, tensor: str) -> bool:
        return any(value.name == tensor for value in self._shell.graph.output)

    def is_constant(self, tensor: str) -> bool:
        return tensor in self._tensors

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """The values of the initializer `tensor`, or None when it is computed or given by the caller."""
        if tensor not in self._tensors:
            return None
        if tensor not in self._values:
            self._values[tensor] = numpy_helper.to_array(self._tensors[tensor])
        return self._values[tensor]

    def operand(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        """The values of input `index` of `node`, or None when it is absent or no initializer."""
        return self.constant(node.input[index]) if len(node.input) > index and node.input[index] else None

    def add_constant(self, hint: str, value: NDArray[Any] | np.generic) -> str:
        """Store `value` as an initializer; returns its name: `hint`, with a number if that is taken."""
        name = self.unused_name(hint)
        self._tensors[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def unused_name(self, hint: str) -> str:
        """`hint`, or `hint.2`, `hint.3`, ...: a tensor name that nothing in the graph uses."""
        taken = set(self._tensors) | {value.name for value in self._shell.graph.input}
        taken |= {name for node in self.nodes for name in (*node.input, *node.output)}
        name, count = hint, 1
        while name in taken:
            count += 1
            name = f"{hint}.{count}"
        return name

    def unused_node_name(self, hint: str) -> str:
        """`hint`, or `hint.2`, `hint.3`, ...: a name that no node bears."""
        taken = {node.name for node in self.nodes}
        name, count = hint, 1
        while name in taken:
            count += 1
            name = f"{hint}.{count}"
        return name

    def set_input(self, node: onnx.NodeProto, index: int, tensor: str) -> None:
        """Let `node` read `tensor` as input `index`, which may be one past the last."""
        while len(node.input) <= index:
            node.input.append("")
        node.input[index] = tensor
        self._forget()

    def set_output(self, node: onnx.NodeProto, tensor: str) -> None:
        """Let `node` write its first output under the name `tensor`."""
        node.output[0] = tensor
        self._forget()

    def replace_uses(self, old: str, new: str, nodes: Iterable[onnx.NodeProto] | None = None) -> None:
        """Let every reader of tensor `old` (or those among `nodes`) read `new`. Graph outputs keep their names."""
        for node in self.consumers(old) if nodes is None else list(nodes):
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
        self._forget()

    def insert_before(self, place: onnx.NodeProto, node: onnx.NodeProto) -> None:
        self.nodes.insert(self._index(place), node)
        self._forget()

    def insert_after(self, place: onnx.NodeProto, node: onnx.NodeProto) -> None:
        self.nodes.insert(self._index(place) + 1, node)
        self._forget()

    def remove(self, node: onnx.NodeProto) -> None:
        del self.nodes[self._index(node)]
        self._forget()

    def prune(self) -> None:
        """Drop nodes whose outputs nobody reads, and initializers that no node reads."""
        needed = {value.name for value in self._shell.graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if name in needed}
        self._forget()

    def keep_inputs(self, names: Iterable[str]) -> None:
        """Drop every graph input that is not among `names`."""
        keep = set(names)
        inputs = [value for value in self._shell.graph.input if value.name in keep]
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
        del self._shell.graph.input[:]
        self._shell.graph.input.extend(copies)

    def set_input_type(self, name: str, element_type: int) -> None:
        """Change the element type (a TensorProto enumerator) of the graph input `name`."""
        for value in self._shell.graph.input:
            if value.name == name:
                value.type.tensor_type.elem_type = element_type

    @property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self._shell.metadata_props}

    def set_metadata(self, values: dict[str, str]) -> None:
        helper.set_model_props(self._shell, {**self.metadata, **values})

    def to_model(self) -> onnx.ModelProto:
        """A fresh model. Recorded intermediate types are dropped: an edit may have made them wrong."""
        model = onnx.ModelProto()
        model.CopyFrom(self._shell)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(self._tensors.values())
        return model

    def _index(self, node: onnx.NodeProto) -> int:
        return next(index for index, candidate in enumerate(self.nodes) if candidate is node)

    def _forget(self) -> None:
        self._producers = self._consumers = None


def attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    """The value of attribute `name` of `node`, or `default`."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def bits_of(node: onnx.NodeProto) -> int | None:
    """The bit width that the metadata of a QuantizeLinear or DequantizeLinear records, if any."""
    for entry in node.metadata_props:
        if entry.key == _BITS_KEY and entry.value.isdecimal():
            return int(entry.value)
    return None


def mark_bits(node: onnx.NodeProto, bits: int | None) -> None:
    """Record a bit width in the metadata of `node`; None records nothing."""
    if bits is not None:
        entry = node.metadata_props.add()
        entry.key, entry.value = _BITS_KEY, str(bits)


def float_reason(node: onnx.NodeProto) -> str | None:
    """Why `node` is declared to be computed in float, if it is."""
    return next((entry.value for entry in node.metadata_props if entry.key == _FLOAT_KEY), None)


def mark_float(node: onnx.NodeProto, reason: str | None) -> None:
    """Declare that `node` is computed in float, and why; None declares nothing."""
    if reason is not None:
        entry = node.metadata_props.add()
        entry.key, entry.value = _FLOAT_KEY, reason
