"""lower: the canonical graph -> the graph that the target's engine is built from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardbit.recipe import Recipe
from hardbit.steps.export import Exported
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.storage import write_atomically

__all__ = ["STEP", "Lowered"]


@dataclass(frozen=True)
class Lowered:
    """The files that this step leaves: the engine graph, and the nodes that must run as integer kernels."""

    engine: Path
    integer_nodes: Path

    @classmethod
    def at(cls, folder: Path) -> Lowered:
        return cls(folder / "engine.onnx", folder / "integer_nodes.json")


def _run(work: Work) -> str:
    import onnx

    from hardbit.targets import integer_nodes, lower

    canonical = onnx.load(Exported.at(work.inputs["export"]).canonical)
    lowered, target = Lowered.at(work.folder), work.recipe.target.name
    write_atomically(lowered.engine, lower(canonical, target).SerializeToString())
    nodes = integer_nodes(canonical)
    write_atomically(lowered.integer_nodes, json.dumps(nodes, indent=1))
    return f"engine graph for {target}: {len(nodes)} layers declared integer"


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    return {"target": recipe.target.name}


STEP = Step(name="lower", title="engine graph", needs=("export",), libraries=("onnx",), decides=_decides, run=_run)
