"""What a TensorRT engine multiplies in integers, against what the manifest declares.

The graph that was written is a wish: a scale of shape (1,) instead of () is enough for a convolution to run in float
without a word. Every declared layer must be found again, under its own name, in a layer of the engine whose two
factors are int8.

Boundary: judges layers that `tensorrt_layers` has read; knows no runtime.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from hardbit_deploy.engines.base import PrecisionReport, PrecisionRow
from hardbit_deploy.engines.tensorrt_layers import LayerRow, layers_from_build_log, layers_from_inspector
from hardbit_deploy.manifest import FloatNode, IntegerNode

__all__ = ["is_heavy", "is_integer", "judge_layers", "layers_from_build_log", "layers_from_inspector"]

# Kinds of layers that do the bulk of a network's arithmetic: `correlation` and `gemm` of the compiler back end,
# `CaskConvolution`, `CaskGemmMatrixMultiply` and the like of the older one, and what hides its inside.
_HEAVY_KIND = re.compile(
    r"conv|gemm|matmul|matrix_?multiply|fully_?connected|correlation|einsum|attention|mha|rnn|lstm|gru"
    r"|plugin|foreign|^myelin$",
    re.IGNORECASE,
)
# Kernels that the compiler writes itself are named after what they do in turn: __myl_CastMulFc casts, multiplies by a
# scale, then multiplies matrices (Fc, fully connected) - in float, whatever it has read.
_WRITTEN_KIND = re.compile(r"kgen|fusion", re.IGNORECASE)
_PRODUCT = re.compile(r"Fc(?![a-z])|Conv|Corr|Dot|gemm|mha")
_CONVERSION = re.compile(r"Cast|Mul|Dequ")
_OPAQUE = re.compile(r"ForeignNode|plugin|^myelin$", re.IGNORECASE)
_PROVIDER = "TensorRT"


def is_heavy(layer: LayerRow) -> bool:
    """Whether it multiplies matrices, convolves, or hides what it does."""
    if _WRITTEN_KIND.search(layer.kind):
        return _PRODUCT.search(layer.name) is not None
    return _HEAVY_KIND.search(layer.kind) is not None or _OPAQUE.search(layer.name) is not None


def is_integer(layer: LayerRow) -> bool:
    """Whether both factors of a heavy layer are int8 where they are multiplied."""
    if _OPAQUE.search(layer.kind) or _OPAQUE.search(layer.name):
        return False
    if _WRITTEN_KIND.search(layer.kind) and _converts_first(layer):
        return layer.has_int8_tactic
    return layer.operands == ("int8", "int8")


def judge_layers(
    layers: Iterable[LayerRow], integer_nodes: Sequence[IntegerNode], float_nodes: Sequence[FloatNode] = ()
) -> PrecisionReport:
    """Compare an engine's layers with what the manifest declares.

    A node may have become several heavy layers, and several nodes one: the worst layer decides. A heavy layer in float
    that comes from no declared node at all is a problem too.
    """
    declared = {node.name for node in integer_nodes} | {node.name for node in float_nodes}
    made_of: dict[str, list[LayerRow]] = {name: [] for name in declared}
    problems = []
    for layer in layers:
        if not is_heavy(layer):
            continue
        owners = _owners(layer, declared)
        for name in owners:
            made_of[name].append(layer)
        if not owners and not is_integer(layer):
            origin = ", ".join(layer.onnx_nodes) or layer.name
            problems.append(f"{origin} runs as {_described(layer)} and is not declared at all")
    rows = []
    for node in integer_nodes:
        worst = min(made_of[node.name], key=is_integer, default=None)
        if worst is None:
            problems.append(f"{node.name} is declared integer, and no layer that multiplies was made of it")
            rows.append(PrecisionRow(node.name, node.op, "", (), "", False))
            continue
        integer = is_integer(worst)
        if not integer:
            problems.append(f"{node.name} is declared integer and runs as {_described(worst)}")
        rows.append(PrecisionRow(node.name, node.op, worst.kind, worst.operands, _PROVIDER, integer))
    declared_float = tuple(
        f"{node.name} runs as {_described(layer)}" + (f": {node.reason}" if node.reason else "")
        for node in float_nodes
        for layer in made_of[node.name]
        if not is_integer(layer)
    )
    status: Literal["integer", "float", "wrong"] = "integer" if integer_nodes else "float"
    if problems:
        status = "wrong"
    return PrecisionReport(status, tuple(rows), tuple(problems), declared_float)


def _owners(layer: LayerRow, declared: set[str]) -> list[str]:
    """The declared nodes that a layer was made of; by its own name where its origin is not told, as of copies."""
    if layer.onnx_nodes:
        return [name for name in layer.onnx_nodes if name in declared]
    parts = {part.strip() for part in re.split(r" \+ |\+| \|\| ", re.sub(r"_myl\d+_\d+$", "", layer.name))}
    return [name for name in declared if name in parts]


def _converts_first(layer: LayerRow) -> bool:
    product = _PRODUCT.search(layer.name)
    return product is not None and _CONVERSION.search(layer.name[: product.start()]) is not None


def _described(layer: LayerRow) -> str:
    text = f"{layer.kind} on {' and '.join(kind or 'an unknown type' for kind in layer.operands) or 'nothing'}"
    if is_heavy(layer) and layer.operands == ("int8", "int8") and not is_integer(layer):
        text += f", which {layer.name} converts before it multiplies or hides"
    return text
