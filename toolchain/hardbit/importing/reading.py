"""An ONNX file from anywhere -> a model that the later steps can rely on, or one line that says why not.

Boundary: looks at structure only, executes nothing, and reads no other file than the one that is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner
from onnx import AttributeProto, TensorProto

from hardbit.importing.quantized_sources import QUANTIZED_DOMAINS
from hardbit_deploy.errors import HardbitError

__all__ = ["read_source"]

LARGEST_BYTES = 2 << 30
_STANDARD_DOMAINS = ("", "ai.onnx")


def read_source(path: Path, output: str | None = None) -> onnx.ModelProto:
    """The model of `path`, its local functions inlined and every node with a name of its own.

    `output` chooses one of several outputs. Raises HardbitError for what is no ONNX file, has weights in other files,
    sparse weights, subgraphs, operators of unknown domains, several inputs, or several outputs and none chosen.
    """
    model = _parse(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _name_nodes(model)
    for where, message, remedy in _problems(model):
        raise HardbitError(message, where=where, remedy=remedy)
    _choose_output(model, output)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise HardbitError("there is no such file", where=str(path), remedy="name an ONNX file")
    if path.stat().st_size > LARGEST_BYTES:
        raise HardbitError("this is larger than 2 GiB", where=str(path), remedy="an image classifier is smaller")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception:  # protobuf raises a class of its own
        raise HardbitError("this is not an ONNX file", where=str(path), remedy="export the network anew") from None
    if not model.graph.node or not model.opset_import:
        raise HardbitError("this is not an ONNX file of a network", where=str(path), remedy="export the network anew")
    return model


def _name_nodes(model: onnx.ModelProto) -> None:
    """Names that the source gives are kept; a node without one, or with another's, is named by kind and place."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name, count = f"{node.op_type}_{place}", 1
            while name in taken:
                count += 1
                name = f"{node.op_type}_{place}.{count}"
            node.name = name
        seen.add(node.name)
        taken.add(node.name)


Problem = tuple[str, str, str]


def _problems(model: onnx.ModelProto) -> Iterator[Problem]:
    graph = model.graph
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield (
                tensor.name,
                "its values lie in another file",
                "save the model as one file: onnx.save(onnx.load(FILE), NEW_FILE)",
            )
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        yield name, "a sparse initializer is not supported", "store it as a dense one"
    for node in graph.node:
        if node.domain not in (*_STANDARD_DOMAINS, *QUANTIZED_DOMAINS):
            yield (
                node.name,
                f"operator {node.op_type} is of the domain '{node.domain}', which is not known",
                "export the network with standard ONNX operators only",
            )
        if any(entry.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for entry in node.attribute):
            yield (
                node.name,
                f"operator {node.op_type} has subgraphs: what is computed would depend on the image",
                "export the network for inference on images of one size, without conditions and loops",
            )
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        yield (
            "graph inputs",
            f"the network has {len(inputs)} inputs: {', '.join(inputs) or 'none'}",
            "hardbit takes image classifiers with one input, the image",
        )
    for value in graph.input:
        if not value.type.HasField("tensor_type"):
            yield value.name, "this input is no tensor", "hardbit takes image classifiers with one input, the image"


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.type == AttributeProto.TENSOR:
                yield entry.t
            yield from entry.tensors


def _choose_output(model: onnx.ModelProto, wanted: str | None) -> None:
    names = [value.name for value in model.graph.output]
    if wanted is None and len(names) != 1:
        raise HardbitError(
            f"the network has {len(names)} outputs: {', '.join(names) or 'none'}",
            where="graph outputs",
            remedy="say which one holds the logits: --output NAME",
        )
    if wanted is not None and wanted not in names:
        raise HardbitError(
            f"there is no output '{wanted}'", where="graph outputs", remedy=f"there are: {', '.join(names)}"
        )
    kept = [value for value in model.graph.output if wanted in (None, value.name)]
    chosen = onnx.ValueInfoProto.FromString(kept[0].SerializeToString())
    del model.graph.output[:]
    model.graph.output.append(chosen)
