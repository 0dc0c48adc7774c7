"""report: the result as one page of HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardbit.recipe import Recipe
from hardbit.steps.check import Checked
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.storage import write_atomically

__all__ = ["STEP", "Reported"]


@dataclass(frozen=True)
class Reported:
    """The file that this step leaves."""

    page: Path

    @classmethod
    def at(cls, folder: Path) -> Reported:
        return cls(folder / "report.html")


def _run(work: Work) -> str:
    from hardbit.report import html_report

    checked = Checked.at(work.inputs["check"])
    page = html_report(checked.read(), checked.folder)
    write_atomically(Reported.at(work.folder).page, page)
    return f"one page of HTML, {len(page.encode()) / 1e6:.1f} MB"


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    return {}


STEP = Step(
    name="report",
    title="one page of HTML",
    needs=("check",),
    libraries=("jinja2", "pillow"),
    decides=_decides,
    run=_run,
)
