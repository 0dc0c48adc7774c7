"""The little of an ONNX file that layer taps need, read from its bytes: nodes by name, and further outputs.

A board has no package that knows ONNX. The file is a protobuf message (https://protobuf.dev/programming-guides/encoding,
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), and two facts make it easy: fields that are not wanted are
skipped by their length, and messages that are written one after the other are merged by every reader. So a graph gets
further outputs by bytes appended to its file, and nothing of it is written anew.

Boundary: reads and appends; judges no graph, and knows no runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hardbit_deploy.errors import HardbitError

__all__ = ["Node", "further_outputs", "read_nodes"]

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_OUTPUT = 1, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_DOMAIN = 1, 2, 3, 4, 7
_VALUE_NAME = 1
# Wire types, and how many bytes those of fixed size have.
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}
_LONGEST_VARINT = 10


@dataclass(frozen=True)
class Node:
    """One node of a graph; `inputs` has an empty name where an optional input is left out."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_nodes(model: bytes) -> tuple[Node, ...]:
    """The nodes of a model's graph in their order. Raises HardbitError for bytes that are no such message."""
    view = memoryview(model)
    try:
        return tuple(
            _node(node)
            for field, graph in _messages(view)
            if field == _MODEL_GRAPH
            for part, node in _messages(graph)
            if part == _GRAPH_NODE
        )
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise HardbitError(f"is not an ONNX file ({error})", remedy="build the bundle anew") from error


def further_outputs(tensors: Iterable[str]) -> bytes:
    """What is appended to a model's bytes so that `tensors` are outputs of its graph, after its own."""
    values = b"".join(_message(_GRAPH_OUTPUT, _message(_VALUE_NAME, name.encode())) for name in tensors)
    return _message(_MODEL_GRAPH, values)


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {}
    for field, value in _messages(data):
        if field in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_DOMAIN):
            texts.setdefault(field, []).append(bytes(value).decode())
    name, op, domain = ((texts.get(field) or [""])[-1] for field in (_NODE_NAME, _NODE_OP_TYPE, _NODE_DOMAIN))
    return Node(name, op, domain, tuple(texts.get(_NODE_INPUT, ())), tuple(texts.get(_NODE_OUTPUT, ())))


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every length-delimited field; numbers are skipped."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, place = _varint(data, place)
        elif kind == _LENGTH_DELIMITED:
            length, place = _varint(data, place)
            if place + length > len(data):
                raise ValueError(f"field {field} ends after its message")
            yield field, data[place : place + length]
            place += length
        elif kind in _FIXED:
            place += _FIXED[kind]
        else:
            raise ValueError(f"field {field} has the wire type {kind}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number in base 128, lowest digits first, and the place behind it."""
    value = 0
    for digit in range(_LONGEST_VARINT):
        byte = data[place + digit]
        value |= (byte & 127) << (7 * digit)
        if byte < 128:
            return value, place + digit + 1
    raise ValueError("a number has no end")


def _message(field: int, content: bytes) -> bytes:
    return _number(field << 3 | _LENGTH_DELIMITED) + _number(len(content)) + content


def _number(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
