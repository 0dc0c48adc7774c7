"""Any opset from 7 on -> opset 18, by onnx.version_converter; where it cannot, the operator is named."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, version_converter

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.importing.words import MINIMUM_OPSET, OPSET
from hardbit_deploy.errors import HardbitError

__all__ = ["opset_of", "to_opset"]

_IR_VERSION = 10
_OTHER_MEANING = frozenset({"GroupNormalization"})  # the same signature in opsets 18 and 21, of other values
_DOMAINS = ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in _DOMAINS), default=0)


def to_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy in opset 18, and a note if it was another.

    Raises HardbitError naming the operator that has no such form.
    """
    version = opset_of(model)
    if version < MINIMUM_OPSET:
        raise HardbitError(
            f"the network is written in opset {version}",
            where="opset_import",
            remedy=f"export it with opset {MINIMUM_OPSET} or newer",
        )
    if version == OPSET:
        return _stamped(model), []
    converted = _raised(model, version) if version < OPSET else _lowered(model, version)
    return _stamped(converted), [f"converted from opset {version} to {OPSET}"]


def _raised(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises what its C++ code throws
        node, reason = _culprit(model, version, error)
        raise HardbitError(
            f"onnx.version_converter cannot bring {node.op_type if node is not None else 'this network'} from opset "
            f"{version} to {OPSET}: {reason}",
            where=node.name if node is not None else "opset_import",
            remedy=f"export the network with opset {OPSET}",
        ) from None


def _culprit(model: onnx.ModelProto, version: int, error: Exception) -> tuple[onnx.NodeProto | None, str]:
    """The first node that cannot be converted alone, and what the converter says about it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # as above
        inferred = model
    graph = inferred.graph
    known = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        inputs = [name for name in dict.fromkeys(node.input) if name and name not in constants]
        alone = helper.make_graph(
            [node],
            "alone",
            [known.get(name, helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)) for name in inputs],
            [known.get(name, onnx.ValueInfoProto(name=name)) for name in node.output if name],
            [constants[name] for name in dict.fromkeys(node.input) if name in constants],
        )
        single = helper.make_model(alone, opset_imports=model.opset_import, ir_version=max(4, model.ir_version))
        try:
            version_converter.convert_version(single, OPSET)
        except Exception as reason:  # as above
            return node, _first_line(reason)
    return None, _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rpartition("` failed: ")[2][:200]


def _lowered(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Newer opsets mostly add types: what opset 18 has with the same attributes is taken as it is."""
    graph = OnnxGraph(model)
    for node in list(graph.nodes):
        if node.op_type == "Gelu":
            _write_gelu_out(graph, node)
    lowered = graph.to_model()
    for entry in lowered.opset_import:
        if entry.domain in _DOMAINS:
            entry.version = OPSET
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = (
        _IR_VERSION,
        {entry.domain: entry.version for entry in lowered.opset_import},
    )
    for node in lowered.graph.node:
        reason = "it means something else there" if node.op_type in _OTHER_MEANING and version > 20 else ""
        if node.domain in _DOMAINS and not reason:
            try:
                onnx.checker.check_node(node, context)
            except onnx.checker.ValidationError as error:
                reason = str(error).splitlines()[0]
        if reason:
            raise HardbitError(
                f"{node.op_type} of opset {version} has no form in opset {OPSET}: {reason}",
                where=node.name,
                remedy=f"export the network with opset {OPSET}",
            )
    return lowered


def _write_gelu_out(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """Gelu by its definition, exact or with tanh."""
    tanh = next((entry.s for entry in node.attribute if entry.name == "approximate"), b"none") == b"tanh"
    source, target, name = node.input[0], node.output[0], node.name

    def write(operator: str, inputs: list[str], place: str, output: str | None = None) -> str:
        made = output or graph.unused_name(f"{name}.{place}")
        new = helper.make_node(operator, inputs, [made], name=graph.unused_node_name(f"{name}.{place}"))
        graph.insert_before(node, new)
        return made

    def number(place: str, value: float) -> str:
        return graph.add_constant(f"{name}.{place}", np.float32(value))

    if tanh:
        square = write("Mul", [source, source], "square")
        cube = write("Mul", [square, source], "cube")
        small = write("Mul", [cube, number("coefficient", 0.044715)], "small")
        inner = write("Mul", [write("Add", [source, small], "sum"), number("root", (2 / np.pi) ** 0.5)], "scaled")
        share = write("Tanh", [inner], "tanh")
    else:
        share = write("Erf", [write("Mul", [source, number("root", 0.5**0.5)], "scaled")], "erf")
    double = write("Mul", [source, write("Add", [share, number("one", 1)], "share")], "product")
    graph.remove(node)
    last = helper.make_node("Mul", [double, number("half", 0.5)], [target], name=name)
    graph.insert_after(next(each for each in graph.nodes if double in each.output), last)


def _stamped(model: onnx.ModelProto) -> onnx.ModelProto:
    """One entry for the standard domain, and an IR version that goes with the opset."""
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    others = [entry for entry in model.opset_import if entry.domain not in _DOMAINS]
    used = {node.domain for node in model.graph.node}
    del stamped.opset_import[:]
    stamped.opset_import.extend([helper.make_opsetid("", OPSET), *(e for e in others if e.domain in used)])
    for node in stamped.graph.node:
        node.domain = "" if node.domain in _DOMAINS else node.domain
    stamped.ir_version = _IR_VERSION
    del stamped.graph.value_info[:]
    return stamped
