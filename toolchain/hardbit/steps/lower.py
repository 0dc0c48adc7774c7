"""lower: the canonical graph -> the graph that the target's engine is built from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hardbit.recipe import Recipe
from hardbit.steps.export import Exported
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.network_bits import gain_of_few_bits
from hardbit_deploy.storage import write_atomically

__all__ = ["STEP", "Lowered"]

_WIDTHS = {"weights", "activations", "first_layer", "last_layer", "layers"}


@dataclass(frozen=True)
class Lowered:
    """The files that this step leaves: the engine graph, the nodes that must run as integer kernels, and those that are
    float with the reason."""

    engine: Path
    integer_nodes: Path
    float_nodes: Path

    @classmethod
    def at(cls, folder: Path) -> Lowered:
        return cls(folder / "engine.onnx", folder / "integer_nodes.json", folder / "float_nodes.json")


def _run(work: Work) -> str:
    import onnx

    from hardbit.targets import float_nodes, integer_nodes, lower

    canonical = onnx.load(Exported.at(work.inputs["export"]).canonical)
    lowered, target = Lowered.at(work.folder), work.recipe.target.name
    changes: list[str] = []
    engine = lower(canonical, target, changes.append, float16=work.recipe.target.float16)
    write_atomically(lowered.engine, engine.SerializeToString())
    integer, in_float = integer_nodes(canonical), float_nodes(canonical)
    write_atomically(lowered.integer_nodes, json.dumps(integer, indent=1))
    write_atomically(lowered.float_nodes, json.dumps(in_float, indent=1))
    also = f", {len(in_float)} operations float with reasons" if in_float else ""
    told = [f"engine graph for {target}: {len(integer)} layers declared integer{also}", *changes]
    gain = gain_of_few_bits(target, work.recipe.quantization.model_dump(include=_WIDTHS))
    return "; ".join([*told, *([gain] if gain else [])])


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    float16 = {"float16": True} if recipe.target.float16 else {}
    return {"target": recipe.target.name, "leaves": [field.name for field in fields(Lowered)], **float16}


STEP = Step(name="lower", title="engine graph", needs=("export",), libraries=("onnx",), decides=_decides, run=_run)
