"""differentiate: the canonical graph -> the attack graphs, loss and input gradient as ONNX models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hardbit.recipe import Recipe
from hardbit.steps.export import Exported
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.storage import write_atomically
from hardbit_deploy.suite import SMOOTH

__all__ = ["STEP", "Differentiated"]

CALIBRATION_IMAGES = 64  # whose cotangents set the scales of the backward pass in integers
_INTEGER_SWEEPS = ("onnxruntime",)  # targets that have such a backward pass


@dataclass(frozen=True)
class Differentiated:
    """The files that this step leaves; the second only where the suite uses the smooth surrogate, the third only for
    networks of 8-bit activations that ONNX Runtime runs."""

    attack: Path
    smooth: Path
    integer: Path

    @classmethod
    def at(cls, folder: Path) -> Differentiated:
        return cls(folder / "attack.onnx", folder / "attack_smooth.onnx", folder / "attack_integer.onnx")


def _run(work: Work) -> str:
    import onnx

    from hardbit.graph.gradient import build_attack_graph
    from hardbit.graph.gradient.integer_cotangents import with_integer_cotangents

    exported = Exported.at(work.inputs["export"])
    canonical = onnx.load(exported.canonical)
    files, target = Differentiated.at(work.folder), work.recipe.target.name
    attack = build_attack_graph(canonical, target=target)
    write_atomically(files.attack, attack.SerializeToString())
    note = f"attack graph: {len(attack.graph.node)} nodes"
    if SMOOTH in work.recipe.suite.surrogates:
        smooth = build_attack_graph(canonical, surrogate="smooth", target=target)
        write_atomically(files.smooth, smooth.SerializeToString())
        note += f"; through the smooth surrogate: {len(smooth.graph.node)}"
    if target in _INTEGER_SWEEPS:
        integer = with_integer_cotangents(attack, np.load(exported.images, mmap_mode="r")[:CALIBRATION_IMAGES])
        if integer is not None:
            write_atomically(files.integer, integer.SerializeToString())
            note += f"; with a backward pass in integers: {len(integer.graph.node)}"
    return note


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    return {
        "recipe": recipe.digest("suite.surrogates", "target"),
        "leaves": [field.name for field in fields(Differentiated)],
    }


STEP = Step(
    name="differentiate",
    title="attack graphs",
    needs=("export",),
    libraries=("onnx", "onnxruntime"),
    decides=_decides,
    run=_run,
)
