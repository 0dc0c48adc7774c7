"""Reverse-mode differentiation of ONNX graphs: from a classifier to its attack graph, in standard ONNX.

`build_attack_graph` makes the model that a board runs beside its engine; `differentiate` is the vector-Jacobian
product of any two tensors of a graph; `coverage` says which nodes of a graph have a rule. One module for each family of
operators holds their adjoints.
"""

from hardbit.graph.gradient.attack_graph import build_attack_graph, differentiate
from hardbit.graph.gradient.coverage import NodeCoverage, coverage
from hardbit.graph.gradient.errors import UnsupportedOperator
from hardbit.graph.gradient.rules import supported_operators

__all__ = [
    "NodeCoverage",
    "UnsupportedOperator",
    "build_attack_graph",
    "coverage",
    "differentiate",
    "supported_operators",
]
