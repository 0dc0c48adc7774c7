"""Progress of training in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TerminalProgress"]


class TerminalProgress:
    """A bar for the epoch that runs, a line for each that ended. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1, epoch="", loss=0.0)

    def __enter__(self) -> TerminalProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def epoch_started(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        self._bar.reset(self._task, total=steps, completed=done, epoch=f"{epoch + 1}/{epochs}", loss=0.0)

    def step_done(self, loss: float) -> None:
        self._bar.update(self._task, advance=1, loss=loss)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        probed = ""
        if "pgd" in record:
            probed = f"  clean {100 * record['clean']:5.1f} %  PGD {100 * record['pgd']:5.1f} %"
        self._console.print(
            f"epoch {record['epoch']:>3}  {record['adversary']:<6}  accuracy under attack "
            f"{100 * record['adversarial_accuracy']:5.1f} %  loss {record['loss']:.3f}{probed}  "
            f"{record['seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        if record.get("overfitting"):
            self._console.print(
                "           catastrophic overfitting: accuracy under PGD fell while accuracy under the training "
                "adversary did not; take more steps, n-fgsm, or a smaller learning rate",
                highlight=False,
                soft_wrap=True,
            )
