"""Locked clocks of a Jetson for the time of a measurement: opt-in, and undone whatever happens.

`nvpmodel -m MODE` first where a power mode is asked for, then `jetson_clocks --store FILE` and `jetson_clocks`; undone
in the reverse order by `jetson_clocks --restore FILE` and `nvpmodel -m` of the mode that was there. Ctrl-C, SIGTERM
and a terminal that is gone undo it too. After SIGKILL a reboot does, for the board does not remember locked clocks.

Boundary: knows NVIDIA's two tools and nothing else. Clocks of other machines are their owner's to lock.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.jetson import find_tool, read_power_mode

__all__ = ["ClockLock", "locked_clocks", "refuse_unlockable_clocks"]

_TIMEOUT_S = 60
_WHERE = "--lock-clocks"


@dataclass
class ClockLock:
    """What was changed for a measurement. `problems` say what could not be put back, with the way to do it by hand."""

    power_mode: str | None = None
    problems: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """As it stands in result.json."""
        return {"by": "jetson_clocks", "power_mode": self.power_mode, "problems": list(self.problems)}


def refuse_unlockable_clocks(power_mode: int | None = None) -> None:
    """Say before hours of work that the clocks of this machine cannot be locked. Raises HardbitError."""
    needed = ["jetson_clocks"] if power_mode is None else ["jetson_clocks", "nvpmodel"]
    for name in needed:
        if find_tool(name) is None:
            raise HardbitError(
                f"{name} is not on this machine",
                where=_WHERE,
                remedy="it comes with JetPack; elsewhere lock the clocks yourself, as cpupower does",
            )
    if os.geteuid() != 0:
        raise HardbitError("only root may lock clocks", where=_WHERE, remedy="run the same command with sudo")


@contextmanager
def locked_clocks(wanted: bool = True, power_mode: int | None = None) -> Iterator[ClockLock | None]:
    """Clocks locked, in power mode `power_mode` where given, inside the block; as they were, after it.

    Yields None and does nothing where they are not `wanted`. Raises HardbitError where they cannot be locked; what was
    changed until then is undone first. A failure to undo is no exception, which would throw the measurement away: it
    stands in `problems`.
    """
    if not wanted:
        yield None
        return
    refuse_unlockable_clocks(power_mode)
    lock = ClockLock()
    with _signals_as_exit(), ExitStack() as undo:
        if power_mode is not None:
            before = read_power_mode()
            if before is None:
                raise HardbitError("nvpmodel does not tell the present power mode", where=_WHERE)
            undo.callback(_back_to_mode, before.number, lock)
            _set_mode(power_mode)
        _lock(undo, lock)
        present = read_power_mode()
        lock.power_mode = present.name if present else None
        yield lock


def _lock(undo: ExitStack, lock: ClockLock) -> None:
    # A new folder, for jetson_clocks asks before it overwrites a file; kept where the file is still needed.
    stored = Path(tempfile.mkdtemp(prefix="hardbit-clocks-")) / "stored.conf"
    undo.callback(_drop_folder, stored.parent, lock)
    _run("jetson_clocks", "--store", str(stored))
    if not stored.is_file():
        raise HardbitError("jetson_clocks has stored nothing to go back to", where=_WHERE)
    undo.callback(_restore, stored, lock)
    _run("jetson_clocks")


def _restore(stored: Path, lock: ClockLock) -> None:
    try:
        with _uninterrupted():
            _run("jetson_clocks", "--restore", str(stored))
    except HardbitError as error:
        by_hand = f"sudo jetson_clocks --restore {stored}"
        lock.problems.append(f"the clocks could not be put back ({error.message}): {by_hand}, or reboot")


def _drop_folder(folder: Path, lock: ClockLock) -> None:
    if not lock.problems:
        shutil.rmtree(folder, ignore_errors=True)


def _set_mode(number: int) -> None:
    _run("nvpmodel", "-m", str(number))
    present = read_power_mode()
    if present is None or present.number != number:
        raise HardbitError(
            f"power mode {number} was not taken",
            where=_WHERE,
            remedy=f"it may need a reboot: sudo nvpmodel -m {number}, answer yes, and come back",
        )


def _back_to_mode(number: int, lock: ClockLock) -> None:
    try:
        with _uninterrupted():
            _set_mode(number)
    except HardbitError as error:
        lock.problems.append(f"the power mode could not be put back ({error.message}): sudo nvpmodel -m {number}")


def _run(name: str, *arguments: str) -> str:
    """Run one of the tools; raises HardbitError.

    It answers no to every question, such as one to reboot now, and has a session of its own, so that a second Ctrl-C
    cannot stop it halfway. jetson_clocks tells some failures in words alone, with exit status 0.
    """
    tool = find_tool(name)
    if tool is None:
        raise HardbitError(f"{name} is not on this machine", where=_WHERE)
    try:
        finished = subprocess.run(
            [tool, *arguments],
            input="no\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HardbitError(f"{name} could not be run: {error}", where=_WHERE) from error
    lines = (finished.stdout + "\n" + finished.stderr).strip().splitlines()
    said = [line for line in lines if line.startswith(("Error", "NVPM ERROR"))]
    if finished.returncode != 0 or said:
        reason = said[0] if said else lines[-1] if lines else f"exit status {finished.returncode}"
        raise HardbitError(f"{name} failed: {reason}", where=_WHERE)
    return finished.stdout


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is gone, end the program as Ctrl-C does: through every `finally`."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    kept = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    with _handled(leave, kept):
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What ends a program waits, for whoever is impatient must not leave the board locked."""
    with _handled(signal.SIG_IGN, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]):
        yield


@contextmanager
def _handled(handler: Any, numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Signals handled otherwise for a while; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
