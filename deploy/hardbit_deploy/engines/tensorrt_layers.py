"""The layers of a TensorRT engine, read from what the builder logs and from what the inspector tells.

Both need an engine that was built with detailed profiling verbosity. The builder then logs one verbose message that
starts with `Layers:`, a line for each layer, also on a machine without a GPU (so TensorRT for RTX 1.7; that older
releases do is not known); the inspector gives the same as JSON.
Releases differ in words: a tensor's type stands under `Datatype` or, in a sentence, under `Format/Datatype`; a
convolution's weights are a constant among `Constants`, or stand under `Weights`.

Boundary: reads; what a layer's types mean for a network is judged by `tensorrt_precision`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hardbit_deploy.errors import HardbitError

__all__ = ["LayerRow", "layers_from_build_log", "layers_from_inspector", "lists_layers"]

_ORIGIN = "[ONNX Layer: "
_TYPES = re.compile(r"(?<![a-z])(u?int\d+|fp32|float|fp16|half|bf16|bfloat16|fp8|fp4|bool)(?![a-z0-9])", re.IGNORECASE)
_SPELLED = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
# Names of kernels tell the types of both factors: sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_..., or
# sm80_xmma_fprop_avdt_sparse_int8int8_...
_EIGHT_BIT_TACTIC = re.compile(r"_(i8i8|int8int8)(?![0-9a-z])")
_REMEDY = "build the plan anew with this hardbit"


@dataclass(frozen=True)
class LayerRow:
    """One layer of an engine. Types are `int8`, `float32` and so on, or "" where none is told.

    `operands` are the types of the two factors of what it multiplies, as far as they are told: the first input, and
    the weights or the second input. They mean something only for layers that multiply.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    operands: tuple[str, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]

    @property
    def has_int8_tactic(self) -> bool:
        """Whether the kernel that was chosen says by its name that both factors are int8."""
        return _EIGHT_BIT_TACTIC.search(self.tactic) is not None

    def to_document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> LayerRow:
        """The inverse of `to_document`; raises KeyError or TypeError for anything else."""
        values: dict[str, Any] = {field.name: document[field.name] for field in fields(cls)}
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


@dataclass(frozen=True)
class _Tensor:
    kind: str
    dimensions: tuple[int, ...]


def lists_layers(message: str) -> bool:
    """Whether a builder's message, of whatever severity before a colon, is its list of layers."""
    return re.search(r"^(?:\w+: )?Layers:\s*$", message, re.MULTILINE) is not None


def layers_from_build_log(log: Iterable[str]) -> tuple[LayerRow, ...]:
    """The layers that a builder's log lists.

    Raises HardbitError where none lists them, as after a build without detailed profiling verbosity.
    """
    listed = [message for message in log if lists_layers(message)]
    if not listed:
        raise HardbitError("the builder's log lists no layers: nothing can be proved of this engine", remedy=_REMEDY)
    rows = []
    for line in listed[-1].split("\n"):
        if line.startswith("Name: ") and ", LayerType: " in line:
            rows.append(_row_of_line(line))
    return tuple(rows)


def layers_from_inspector(information: str) -> tuple[LayerRow, ...]:
    """The layers in the inspector's JSON about a whole engine.

    Raises HardbitError for a text that is no such JSON, and for an engine without details, whose layers are bare names.
    """
    try:
        layers = json.loads(information)["Layers"]
        if any(isinstance(layer, str) for layer in layers):
            raise HardbitError("the engine tells no more of its layers than their names", "the inspector", _REMEDY)
        return tuple(_row_of_object(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HardbitError(
            f"its JSON cannot be read ({error!r})", "the inspector", "this release of TensorRT is not known to hardbit"
        ) from error


def _row_of_line(line: str) -> LayerRow:
    body, _, metadata = line.partition(", Metadata: ")
    name, _, rest = body.removeprefix("Name: ").partition(", LayerType: ")
    weights = re.search(r'Weights: \{\s*"?Type"?: "?(\w+)', rest)
    tactic = re.search(r"TacticName: ([^,]*)", rest)
    return _row(
        name,
        rest.partition(",")[0],
        {part: [_tensor_of_text(text) for text in _listed(rest, part)] for part in ("Inputs", "Constants", "Outputs")},
        weights[1] if weights else "",
        tactic[1] if tactic else "",
        metadata,
    )


def _row_of_object(layer: Mapping[str, Any]) -> LayerRow:
    weights = layer.get("Weights")
    return _row(
        layer["Name"],
        layer.get("LayerType", ""),
        {
            part: [_tensor_of_object(tensor) for tensor in layer.get(part, ())]
            for part in ("Inputs", "Constants", "Outputs")
        },
        weights.get("Type", "") if isinstance(weights, dict) else "",
        layer.get("TacticName", ""),
        layer.get("Metadata", ""),
    )


def _row(
    name: str, kind: str, tensors: Mapping[str, Sequence[_Tensor]], weights: str, tactic: str, metadata: str
) -> LayerRow:
    inputs, constants = tensors["Inputs"], tensors["Constants"]
    if weights:
        constants = [_Tensor(_type(weights), ()), *constants]
    return LayerRow(
        name,
        kind,
        tuple(tensor.kind for tensor in inputs),
        tuple(tensor.kind for tensor in constants),
        tuple(tensor.kind for tensor in tensors["Outputs"]),
        _operands(inputs, constants, bool(weights), tactic),
        tactic,
        _onnx_nodes(metadata),
    )


def _operands(
    inputs: Sequence[_Tensor], constants: Sequence[_Tensor], weights_first: bool, tactic: str
) -> tuple[str, ...]:
    """The first input, and the weights: the first constant, unless that is a factor or a scale and another input is
    there. A residual that is added to the product may stand among the inputs too, behind the first.
    """
    if not inputs:
        return ()
    first = inputs[0].kind
    if constants and (weights_first or len(inputs) == 1 or sum(size > 1 for size in constants[0].dimensions) > 1):
        return (first, constants[0].kind)
    if len(inputs) > 1:
        return (first, inputs[1].kind)
    return (first, "int8") if _EIGHT_BIT_TACTIC.search(tactic) else (first,)


def _listed(text: str, part: str) -> list[str]:
    """The texts between the outer braces of `Inputs: [ {...}, {...}]`; brackets are nested within."""
    start = text.find(f"{part}: [")
    if start < 0:
        return []
    items, depth, begun = [], 0, 0
    for place in range(start + len(part) + 3, len(text)):
        character = text[place]
        if character == "{":
            depth += 1
            begun = place + 1 if depth == 1 else begun
        elif character == "}":
            depth -= 1
            if depth == 0:
                items.append(text[begun:place])
        elif character == "]" and depth == 0:
            break
    return items


def _tensor_of_text(text: str) -> _Tensor:
    dimensions = re.search(r"Dimensions: \[([-\d,\s]*)\]", text)
    kind = re.search(r"(?:Datatype|Format/Datatype): ([^,]*)", text)
    sizes = dimensions[1].split(",") if dimensions and dimensions[1].strip() else []
    return _Tensor(_type(kind[1] if kind else ""), tuple(int(size) for size in sizes))


def _tensor_of_object(tensor: Mapping[str, Any]) -> _Tensor:
    kind = tensor.get("Datatype") or tensor.get("Format/Datatype") or ""
    return _Tensor(_type(kind), tuple(int(size) for size in tensor.get("Dimensions", ())))


def _type(text: str) -> str:
    """`int8` of "Int8" and of "Thirty-two wide channel vectorized row major Int8 format"."""
    found = _TYPES.search(text)
    spelled = found[1].lower() if found else ""
    return _SPELLED.get(spelled, spelled)


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Names of the nodes that a layer was made of, from "[ONNX Layer: conv1]" and the like, one behind another with
    an information separator of ASCII between them or nothing.
    """
    pieces = (re.split("[\x1e\x1f]", piece)[0].strip() for piece in metadata.split(_ORIGIN)[1:])
    return tuple(dict.fromkeys(piece.removesuffix("]") for piece in pieces))
