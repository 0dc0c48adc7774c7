"""The refusal of a graph that cannot be differentiated, by name of the operator and the node."""

from __future__ import annotations

import onnx

from hardbit_deploy.errors import HardbitError

__all__ = ["UnsupportedOperator", "node_label"]


class UnsupportedOperator(HardbitError):  # noqa: N818 (it names what it refuses)
    """A node between image and logits for which there is no rule, or whose attributes its rule does not cover."""


def node_label(node: onnx.NodeProto) -> str:
    """What an error calls a node: its name, or its first output where a file of unknown origin has no names."""
    return f"node {node.name!r}" if node.name else f"node that makes {node.output[0]!r}"
