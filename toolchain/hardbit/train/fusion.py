"""Which neighbours in a network's graph run as one operation, and the graph with such operations in their place.

BatchNorm, quantizer or ReLU, sum with a shortcut and its quantizer are passes over memory; together they are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from hardbit.quantize.operators import operator_of

__all__ = ["Chain", "attribute", "chains_of", "rewritten"]

_CLIPS = frozenset({"Quantize", "Relu"})


@dataclass(frozen=True)
class Chain:
    """Nodes of which nobody else reads the results: then(clip(norm(x)) + other), each of the four may be absent."""

    x: fx.Node
    norm: fx.Node | None = None
    clip: fx.Node | None = None
    other: fx.Node | None = None
    add: fx.Node | None = None
    then: fx.Node | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """In the order of computation."""
        return [node for node in (self.norm, self.clip, self.add, self.then) if node is not None]


def chains_of(module: fx.GraphModule, *, with_norms: bool) -> list[Chain]:
    """Chains that share no node. Without norms a BatchNorm stays alone."""
    operators = {node: operator_of(module, node) for node in module.graph.nodes}
    taken: set[fx.Node] = set()
    chains = []
    for node, operator in operators.items():
        chain = None
        if node in taken:
            continue
        if operator in _CLIPS:
            chain = _joined(Chain(node.all_input_nodes[0], clip=node), operators, taken)
        elif operator == "BatchNormalization" and with_norms:
            clip = _only_reader(node, operators, _CLIPS)
            chain = _joined(Chain(node.all_input_nodes[0], norm=node, clip=clip), operators, taken)
        elif operator == "Add" and (then := _reader_of_sum(node, operators)):
            left, right = node.all_input_nodes
            chain = Chain(left, other=right, add=node, then=then)
        if chain and (operator != "Relu" or len(chain.nodes) > 1):  # a ReLU alone is one pass already
            chains.append(chain)
            taken.update(chain.nodes)
    return chains


def rewritten(
    module: fx.GraphModule,
    chains: list[Chain],
    *,
    fused: Callable[[Chain], nn.Module],
    alone: Callable[[fx.Node], nn.Module],
    value: Callable[[str], Tensor],
) -> fx.GraphModule:
    """The graph of `module` with the module `fused(chain)` for each chain, called with x and other; `alone(node)` for
    each other call of a module; `value(path)` for each tensor that is read by its path."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    root = nn.Module()
    in_chains = {node for chain in chains for node in chain.nodes}
    for node, copied in copies.items():
        if node.op == "call_module" and node not in in_chains:
            copied.target = f"part_{len(list(root.children()))}"
            root.add_module(copied.target, alone(node))
        elif node.op == "get_attr":
            copied.target = "value_" + str(node.target).replace(".", "_")
            setattr(root, copied.target, value(str(node.target)))
    for index, chain in enumerate(chains):
        root.add_module(f"chain_{index}", fused(chain))
        end = copies[chain.nodes[-1]]
        with graph.inserting_after(end):
            operands = (copies[node] for node in (chain.x, chain.other) if node is not None)
            call = graph.call_module(f"chain_{index}", tuple(operands))
        end.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(copies[node])
            copies[node] = call
    return fx.GraphModule(root, graph)


def attribute(module: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at `path`."""
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value


def _joined(chain: Chain, operators: Mapping[fx.Node, str], taken: set[fx.Node]) -> Chain:
    """`chain` with the sum that alone reads it, and what alone reads the sum."""
    end = chain.nodes[-1]
    add = _only_reader(end, operators, frozenset({"Add"}))
    then = _reader_of_sum(add, operators) if add and add not in taken else None
    if add is None or then is None:
        return chain
    (other,) = (node for node in add.all_input_nodes if node is not end)
    return replace(chain, other=other, add=add, then=then)


def _reader_of_sum(add: fx.Node, operators: Mapping[fx.Node, str]) -> fx.Node | None:
    """The quantizer or ReLU that alone reads a sum of two values of the network."""
    operands = add.all_input_nodes
    if len(operands) != 2 or any(operators[node] == "Constant" for node in operands):
        return None
    return _only_reader(add, operators, _CLIPS)


def _only_reader(node: fx.Node, operators: Mapping[fx.Node, str], wanted: frozenset[str]) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and operators[readers[0]] in wanted else None
