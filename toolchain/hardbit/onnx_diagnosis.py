"""Which nodes of an ONNX file an attack can pass through.

Boundary: tells, and writes nothing; whether the network can also be quantized is seen by `hardbit convert`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from hardbit.graph.gradient import NodeCoverage, coverage
from hardbit_deploy.errors import HardbitError

__all__ = ["OnnxDiagnosis", "diagnose_onnx"]

TAKEN_OUT = "the import takes it out: it is constant, folded into a neighbour or without effect"


@dataclass(frozen=True)
class OnnxDiagnosis:
    """`nodes` in the order of the file, then those that the import adds; `refusal` is why `hardbit convert` would not
    take the file as it is, empty if it would (the nodes are then those of the bare file in opset 18)."""

    nodes: tuple[NodeCoverage, ...]
    refusal: str

    @property
    def missing(self) -> tuple[NodeCoverage, ...]:
        return tuple(node for node in self.nodes if node.status == "missing")

    @property
    def is_covered(self) -> bool:
        """Whether the gradient reaches the image through every node on its path."""
        return not self.missing and any(node.status == "covered" for node in self.nodes)


def diagnose_onnx(path: Path) -> OnnxDiagnosis:
    """What the gradient rules cover of the network in `path`, in the form in which `hardbit convert` differentiates it.

    Raises HardbitError for what is no ONNX file, or none of one network in standard operators.
    """
    from hardbit.importing.network import import_network
    from hardbit.importing.reading import read_source
    from hardbit.importing.versions import to_opset

    source = read_source(path)
    try:
        model, refusal = import_network(path).model, ""
    except HardbitError as error:
        model, refusal = to_opset(source)[0], str(error)
    return OnnxDiagnosis(by_source(source, coverage(model)), refusal)


def by_source(source: onnx.ModelProto, found: tuple[NodeCoverage, ...]) -> tuple[NodeCoverage, ...]:
    """The rows of a changed graph under the nodes of its source, and those of further nodes behind."""
    left = {row.name: row for row in found}
    rows = []
    for node in source.graph.node:
        names = (node.name, *node.output, *(f"{output}.{node.op_type}" for output in node.output))
        known = next((left.pop(name) for name in names if name in left), None)
        rows.append(known or NodeCoverage(node.name, node.op_type, "not on the path", TAKEN_OUT))
    return (*rows, *left.values())
