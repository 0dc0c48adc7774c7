"""What a step is: a name, what decides its result, and a function from finished folders to a folder.

A step's module imports nothing heavy when it is imported; torch, onnx and onnxruntime come in when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from hardbit.recipe import Recipe
from hardbit_deploy.errors import HardbitError

__all__ = ["Progress", "RunOptions", "Step", "StepError", "Work"]


class StepError(HardbitError):
    """A step whose result contradicts what it promises, such as a graph that computes something else than its twin."""

    exit_code = 70  # EX_SOFTWARE


class Progress(Protocol):
    """Told how a run goes, to show it."""

    def step_started(self, name: str, title: str) -> None: ...

    def step_ended(self, name: str, note: str, seconds: float, *, skipped: bool) -> None: ...

    def remark(self, text: str) -> None:
        """Something that the user should know while a step runs."""

    def training(self) -> AbstractContextManager[Any]:
        """A context that yields a `hardbit.train.loop.Progress`."""

    def checking(self) -> AbstractContextManager[Any]:
        """A context that yields a `hardbit_deploy.check.Progress`."""


@dataclass(frozen=True)
class RunOptions:
    """What a user may ask for next to the recipe.

    `retrain` ignores shipped weights; `weights` names a file to take instead of them; `may_train` False refuses to
    train where no weights are at hand. For the check: the first `images` only (all for None), and how latency is
    measured: `full` is latency-v1. For training: curves for TensorBoard in the run's folder, and the URI of an MLflow
    server that gets them too.
    """

    retrain: bool = False
    weights: Path | None = None
    may_train: bool = True
    images: int | None = None
    latency: Literal["full", "short", "off"] = "full"
    tensorboard: bool = True
    mlflow: str | None = None


@dataclass(frozen=True)
class Work:
    """What a step is given: the recipe, an empty `folder` for its result, the finished folders of the steps that it
    needs, a `scratch` folder that survives a kill and is the same when the same work is begun again, and the folder of
    the whole run, for what can be watched while the step goes on."""

    recipe: Recipe
    options: RunOptions
    folder: Path
    inputs: Mapping[str, Path]
    scratch: Path
    run_dir: Path
    progress: Progress


@dataclass(frozen=True)
class Step:
    """One named step.

    `decides` gives everything next to the inputs and `libraries` (distributions, by version) that changes the result,
    as JSON values: a step is skipped when all three are what they were. `run` fills the folder and returns one line
    that says what came out.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    libraries: tuple[str, ...]
    decides: Callable[[Recipe, RunOptions], Mapping[str, Any]]
    run: Callable[[Work], str]
