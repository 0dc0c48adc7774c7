"""Progress of long work on stderr: one moving line with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

__all__ = ["ProgressLine", "duration_text"]

REDRAW_S = 0.1
SHARE_BETWEEN_LINES = 0.25  # of the work, where lines stay, as in the log of a CI job
BAR_CELLS = 24


class ProgressLine:
    """A `hardbit_deploy.check.Progress`; as a context manager it leaves the terminal clean behind it."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._moving = self._stream.isatty()
        self._work: object = None
        self._started_s = self._drawn_s = 0.0
        self._first_done = self._drawn_done = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of work are done, whatever a unit is, and `stage` is what goes on."""
        now_s = self._clock()
        work = total if total > 1 else stage  # attacks change their name many times within the same total
        is_new, is_due = work != self._work, False
        if is_new:
            self._work, self._started_s, self._first_done = work, now_s, done
        elif self._moving:
            is_due = now_s - self._drawn_s >= REDRAW_S
        else:
            is_due = total > 1 and done - self._drawn_done >= SHARE_BETWEEN_LINES * total
        if is_new or is_due:
            self._drawn_s, self._drawn_done = now_s, done
            self._draw(self._text(stage, done, total, now_s))

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moving:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _draw(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}" if self._moving else f"{text}\n")
        self._stream.flush()

    def _text(self, stage: str, done: int, total: int, now_s: float) -> str:
        if total <= 1:
            return stage
        share = min(1.0, done / total)
        text = f"{stage}  {100 * share:.0f} %"
        if self._moving:
            filled = int(BAR_CELLS * share)
            text = f"[{'#' * filled}{'.' * (BAR_CELLS - filled)}] {text}"
        gained = done - self._first_done
        if gained > 0 and done < total:
            text += f", {duration_text((now_s - self._started_s) / gained * (total - done))} left"
        return text


def duration_text(seconds: float) -> str:
    """A duration as people say it: 0:45, 12:03, 1:02:09."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
