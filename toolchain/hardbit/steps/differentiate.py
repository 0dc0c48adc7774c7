"""differentiate: the canonical graph -> the attack graph, loss and input gradient as an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardbit.recipe import Recipe
from hardbit.steps.export import Exported
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.storage import write_atomically

__all__ = ["STEP", "Differentiated"]


@dataclass(frozen=True)
class Differentiated:
    """The file that this step leaves."""

    attack: Path

    @classmethod
    def at(cls, folder: Path) -> Differentiated:
        return cls(folder / "attack.onnx")


def _run(work: Work) -> str:
    import onnx

    from hardbit.graph.gradient import build_attack_graph

    attack = build_attack_graph(onnx.load(Exported.at(work.inputs["export"]).canonical))
    write_atomically(Differentiated.at(work.folder).attack, attack.SerializeToString())
    return f"attack graph: {len(attack.graph.node)} nodes"


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    return {}


STEP = Step(
    name="differentiate", title="attack graph", needs=("export",), libraries=("onnx",), decides=_decides, run=_run
)
