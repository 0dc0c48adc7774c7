"""A recipe, run step by step: each step's result is on disk, and is used again while nothing that decides it changes.

In the run's folder, `<step>/` holds what a step left and `.steps/<step>.json` what it was made of: a key over the part
of the recipe that matters, the digests of the results it was made from, and versions. A step is skipped when its key
and its files are what they were. `.work/` holds what a killed step goes on from.

Boundary: knows no step's business; the steps themselves are in `hardbit.steps`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hardbit.recipe import Recipe
from hardbit.steps import STEPS, Step, step_names
from hardbit.steps.step import Progress, RunOptions, Work
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import replace_directory, sha256_file, write_atomically

__all__ = ["RESOLVED_RECIPE", "RunOptions", "RunResult", "StepOutcome", "run", "step_names"]

RESOLVED_RECIPE = "recipe.toml"
_RECORDS = ".steps"
_SCRATCH = ".work"


@dataclass(frozen=True)
class StepOutcome:
    """How one step ended: the line that it left, how long it took when it ran, and whether it ran this time."""

    name: str
    note: str
    seconds: float
    skipped: bool


@dataclass(frozen=True)
class RunResult:
    """The outcomes of the steps that were asked for, in order."""

    run_dir: Path
    steps: tuple[StepOutcome, ...]

    def folder(self, step: str) -> Path:
        """Where `step` left its result."""
        return self.run_dir / step


class _Silent:
    """Progress that shows nothing."""

    def step_started(self, name: str, title: str) -> None: ...

    def step_ended(self, name: str, note: str, seconds: float, *, skipped: bool) -> None: ...

    def remark(self, text: str) -> None: ...

    def training(self) -> nullcontext[None]:
        return nullcontext()

    def checking(self) -> nullcontext[None]:
        return nullcontext()


def run(
    recipe: Recipe,
    run_dir: str | Path,
    until: str | None = None,
    start: str | None = None,
    progress: Progress | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 (frozen)
) -> RunResult:
    """Run the steps up to and including `until` (all for None); `start` and the steps after it run again in any case,
    those before it only where their results are missing or out of date.

    Raises HardbitError for an unknown step and when another run works in the folder, and what the steps raise. A run
    that is killed leaves every finished step as it is, and goes on from there.
    """
    chosen = _chosen(until, start)
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _remove_leftovers(folder)
        origin = f"# relative paths in it start from {recipe.folder.resolve()}\n"
        write_atomically(folder / RESOLVED_RECIPE, origin + recipe.resolved_toml())
        runner = _Runner(recipe, folder, options, progress if progress is not None else _Silent())
        force_from = step_names().index(start) if start else len(STEPS)
        outcomes = [runner.settle(step, force=STEPS.index(step) >= force_from) for step in chosen]
    return RunResult(folder, tuple(outcomes))


class _Runner:
    """Settles steps one after the other; remembers the digest of what each left."""

    def __init__(self, recipe: Recipe, folder: Path, options: RunOptions, progress: Progress) -> None:
        self.recipe, self.folder, self.options, self.progress = recipe, folder, options, progress
        self.results: dict[str, str] = {}

    def settle(self, step: Step, *, force: bool) -> StepOutcome:
        key = self._key(step)
        record = None if force else self._valid_record(step, key)
        if record is None:
            record = self._run(step, key)
            outcome = StepOutcome(step.name, record["note"], record["seconds"], skipped=False)
        else:
            outcome = StepOutcome(step.name, record["note"], record["seconds"], skipped=True)
        self.results[step.name] = _digest(record["files"])
        self.progress.step_ended(step.name, outcome.note, outcome.seconds, skipped=outcome.skipped)
        return outcome

    def _key(self, step: Step) -> str:
        return _digest(
            {
                "step": step.name,
                "decides": dict(step.decides(self.recipe, self.options)),
                "inputs": {name: self.results[name] for name in step.needs},
                "versions": {library: version(library) for library in ("hardbit", "hardbit-deploy", *step.libraries)},
            }
        )

    def _valid_record(self, step: Step, key: str) -> dict[str, Any] | None:
        """The record of an earlier run, if it has this key and its files are all there and unchanged."""
        try:
            record: dict[str, Any] = json.loads(self._record_path(step).read_text())
            if record["key"] == key and record["files"] == _files(self.folder / step.name):
                return record
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: as good as none
            pass
        return None

    def _run(self, step: Step, key: str) -> dict[str, Any]:
        self.progress.step_started(step.name, step.title)
        started = time.perf_counter()
        scratch = self.folder / _SCRATCH / step.name / key[:16]
        scratch.mkdir(parents=True, exist_ok=True)
        inputs = {name: self.folder / name for name in step.needs}
        with replace_directory(self.folder / step.name) as folder:
            work = Work(self.recipe, self.options, folder, inputs, scratch, self.folder, self.progress)
            note = step.run(work)
            files = _files(folder)
        record = {"key": key, "note": note, "seconds": round(time.perf_counter() - started, 2), "files": files}
        self._record_path(step).parent.mkdir(exist_ok=True)
        write_atomically(self._record_path(step), json.dumps(record, indent=1))
        shutil.rmtree(scratch.parent, ignore_errors=True)
        return record

    def _record_path(self, step: Step) -> Path:
        return self.folder / _RECORDS / f"{step.name}.json"


def _chosen(until: str | None, start: str | None) -> tuple[Step, ...]:
    names = step_names()
    for name in (until, start):
        if name is not None and name not in names:
            raise HardbitError(f"there is no step '{name}'", remedy=f"the steps are {', '.join(names)}")
    last = names.index(until) if until else len(names) - 1
    if start and names.index(start) > last:
        raise HardbitError(f"step '{start}' comes after step '{until}'", remedy=f"the order is {', '.join(names)}")
    return STEPS[: last + 1]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this run; the system lets go of the lock when the process ends, however it ends."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HardbitError(
                "another hardbit run works in this folder", where=str(folder), remedy="wait, or give --run-dir"
            ) from None
        yield


def _remove_leftovers(folder: Path) -> None:
    """Half-written siblings of a step's folder, left by a kill -9."""
    for name in step_names():
        for sibling in folder.glob(f".{name}.*"):
            shutil.rmtree(sibling, ignore_errors=True)


def _files(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
