"""check: the bundle through the harness of `hardbit_deploy`, on this machine."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardbit.recipe import Recipe
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.storage import sha256_file

__all__ = ["STEP", "Checked"]


@dataclass(frozen=True)
class Checked:
    """The result document and the arrays that lie beside it."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> Checked:
        return cls(folder)

    def read(self) -> dict[str, Any]:
        """The result document."""
        from hardbit_deploy.results import load_result

        return load_result(self.folder)


def _run(work: Work) -> str:
    from hardbit_deploy.check import CheckOptions, check
    from hardbit_deploy.gate import parse_gate
    from hardbit_deploy.known_alarms import accepted_alarms
    from hardbit_deploy.latency import FULL, SHORT

    recipe, options = work.recipe, work.options
    gate = parse_gate(recipe.gate.document(), "gate", recipe.folder)
    settings = CheckOptions(
        images=options.images,
        latency={"full": FULL, "short": SHORT, "off": None}[options.latency],
    )
    unfinished = work.scratch / "result"  # the harness goes on from what an interrupted check left there
    with work.progress.checking() as progress:
        document = check(work.inputs["bundle"], gate, unfinished, settings, progress)
    for file in unfinished.iterdir():
        if file.is_file():
            shutil.copyfile(file, work.folder / file.name)
    rates = {attack["name"]: attack["rate"] for attack in document["attacks"]}
    line = f"verdict: {document['verdict']['name']}"
    if rates.get("clean") is not None and rates.get("worst_case") is not None:
        line += f"; {100 * rates['clean']:.1f} % clean, {100 * rates['worst_case']:.1f} % robust"
    if accepted := accepted_alarms(document):
        line += f"; accepted alarms: {', '.join(alarm['name'] for alarm in accepted)}"
    return line


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    baseline = recipe.folder / recipe.gate.baseline.result if recipe.gate.baseline else None
    return {
        "gate": recipe.gate.document(),
        "baseline": sha256_file(baseline) if baseline and baseline.is_file() else None,
        "machine": [platform.machine(), platform.node()],
        "images": options.images,
        "latency": options.latency,
    }


STEP = Step(
    name="check",
    title="agreement, attacks, latency, gate",
    needs=("bundle",),
    libraries=("onnxruntime", "numpy"),
    decides=_decides,
    run=_run,
)
