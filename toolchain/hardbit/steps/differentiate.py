"""differentiate: the canonical graph -> the attack graphs, loss and input gradient as ONNX models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardbit.recipe import Recipe
from hardbit.steps.export import Exported
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.storage import write_atomically
from hardbit_deploy.suite import SMOOTH

__all__ = ["STEP", "Differentiated"]


@dataclass(frozen=True)
class Differentiated:
    """The files that this step leaves; the second only where the suite uses the smooth surrogate."""

    attack: Path
    smooth: Path

    @classmethod
    def at(cls, folder: Path) -> Differentiated:
        return cls(folder / "attack.onnx", folder / "attack_smooth.onnx")


def _run(work: Work) -> str:
    import onnx

    from hardbit.graph.gradient import build_attack_graph

    canonical = onnx.load(Exported.at(work.inputs["export"]).canonical)
    files = Differentiated.at(work.folder)
    attack = build_attack_graph(canonical)
    write_atomically(files.attack, attack.SerializeToString())
    note = f"attack graph: {len(attack.graph.node)} nodes"
    if SMOOTH in work.recipe.suite.surrogates:
        smooth = build_attack_graph(canonical, surrogate="smooth")
        write_atomically(files.smooth, smooth.SerializeToString())
        note += f"; through the smooth surrogate: {len(smooth.graph.node)}"
    return note


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    return {"recipe": recipe.digest("suite.surrogates")}


STEP = Step(
    name="differentiate", title="attack graphs", needs=("export",), libraries=("onnx",), decides=_decides, run=_run
)
