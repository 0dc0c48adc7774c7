"""Which sums belong to a stream of floats, such as the residual stream of a transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from hardbit.quantize.operators import FLOAT_OPERATORS, MOVING_OPERATORS

__all__ = ["float_sums"]


def float_sums(operators: Mapping[fx.Node, str]) -> set[fx.Node]:
    """The Adds that are computed in float: they add up what was computed in float or a constant, or what they give is
    read by an operator that computes in float. `operators` holds every node of the graph.

    An integer Add would take codes of both operands and give codes, each time rounding a stream to the activations'
    width that is never used in integers.
    """
    sums = {node for node, operator in operators.items() if operator == "Add"}
    in_float = {node for node, operator in operators.items() if operator in FLOAT_OPERATORS | {"Constant"}}
    found: set[fx.Node] = set()
    while more := {node for node in sums - found if any(other in in_float for other in _neighbours(node, operators))}:
        found |= more
        in_float |= more
    return found


def _neighbours(node: fx.Node, operators: Mapping[fx.Node, str]) -> Iterator[fx.Node]:
    """Who made the operands of `node`, and who reads what it gives: through operators that only move values."""
    for source in node.all_input_nodes:
        while operators[source] in MOVING_OPERATORS:
            source = source.all_input_nodes[0]
        yield source
    readers = list(node.users)
    while readers:
        reader = readers.pop()
        if operators[reader] in MOVING_OPERATORS:
            readers.extend(reader.users)
        else:
            yield reader
