"""How a run looks in a terminal: one line a step with its time, a bar while something long goes on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.status import Status

__all__ = ["TerminalProgress", "progress_for"]


@contextmanager
def progress_for(args: argparse.Namespace) -> Iterator[TerminalProgress | None]:
    """The progress to hand to `hardbit.pipeline.run`: lines for people, none where `--json` asks for one object."""
    if args.json:
        yield None
        return
    progress = TerminalProgress(Console(highlight=False))
    try:
        yield progress
    finally:
        progress.close()


class TerminalProgress:
    """A `hardbit.steps.step.Progress` on a rich console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def step_started(self, name: str, title: str) -> None:
        self.close()
        if self._console.is_terminal:
            self._status = self._console.status(f"{name}: {title} ...")
            self._status.start()

    def step_ended(self, name: str, note: str, seconds: float, *, skipped: bool) -> None:
        self.close()
        time = "unchanged" if skipped else f"{seconds:.1f} s"
        self._console.print(f"[bold]{name:<14}[/] {time:>9}  {escape(note)}", soft_wrap=True)

    def remark(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)

    @contextmanager
    def training(self) -> Iterator[Any]:
        from hardbit.train.progress import TerminalProgress as TrainingProgress

        self.close()
        with TrainingProgress(self._console) as progress:
            yield progress

    @contextmanager
    def checking(self) -> Iterator[Any]:
        """What the harness does, with a bar; nothing where nobody watches."""
        self.close()
        if not self._console.is_terminal:
            yield None
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("check", total=None)

            def show(stage: str, done: int, total: int) -> None:
                bar.update(task, description=f"check: {stage}", completed=done, total=total)

            yield show

    def close(self) -> None:
        """End what spins."""
        if self._status is not None:
            self._status.stop()
            self._status = None
