"""Locked clocks are put back: after a block, an error, Ctrl-C, SIGTERM, and when one of the tools fails.

The tools are fakes that keep a board's state in files, refuse what the true ones refuse, and log how they were called.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import result_examples as examples
from hardbit_deploy import bench as benching
from hardbit_deploy import clock_lock
from hardbit_deploy.bench import bench, bench_table
from hardbit_deploy.check import CheckOptions, check
from hardbit_deploy.cli import main
from hardbit_deploy.clock_lock import locked_clocks
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.latency import SHORT, LatencyReport

JETSON_CLOCKS = """\
#!/bin/sh
cd "{folder}"; echo "jetson_clocks $1" >> calls
[ -e "refuse$1" ] && {{ echo "Error: Failed to do $1"; exit 0; }}  # as the true one does: with exit status 0
case "$1" in
--store) [ -e "$2" ] && {{ read answer; [ "$answer" = y ] || {{ echo "Error: file $2 exists"; exit 1; }}; }}
    cp clocks "$2" ;;
--restore) [ -e "$2" ] || {{ echo "Error: $2 file not found !"; exit 1; }}; sleep "$(cat slow)"; cp "$2" clocks ;;
"") echo locked > clocks ;;
*) exit 1 ;;
esac
"""
NVPMODEL = """\
#!/bin/sh
cd "{folder}"
case "$1" in
-q) echo "NV Power Mode: MODE_$(cat mode)"; cat mode ;;
-m) echo "nvpmodel -m $2" >> calls
    if [ "$2" = 7 ]; then echo "Reboot required, enter YES to confirm"; read answer; echo "$answer" > answer
    else echo "$2" > mode; fi ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the state of a board whose clocks are free, in power mode 2; its tools come first on PATH."""
    folder, tools, temporary = tmp_path / "board", tmp_path / "bin", tmp_path / "tmp"
    for place in (folder, tools, temporary):
        place.mkdir()
    for name, text in (("clocks", "free"), ("mode", "2"), ("calls", ""), ("slow", "0")):
        (folder / name).write_text(f"{text}\n")
    for name, script in (("jetson_clocks", JETSON_CLOCKS), ("nvpmodel", NVPMODEL)):
        (tools / name).write_text(script.format(folder=folder))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(clock_lock.os, "geteuid", lambda: 0)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return folder


def state(board: Path) -> tuple[str, str]:
    return (board / "clocks").read_text().strip(), (board / "mode").read_text().strip()


def calls(board: Path) -> list[str]:
    return [line.strip() for line in (board / "calls").read_text().splitlines() if line]


def leftovers(board: Path) -> list[Path]:
    return list((board.parent / "tmp").iterdir())


def test_clocks_are_locked_inside_and_free_after(board: Path) -> None:
    with locked_clocks() as lock:
        assert state(board) == ("locked", "2")
    assert state(board) == ("free", "2")
    assert calls(board) == ["jetson_clocks --store", "jetson_clocks", "jetson_clocks --restore"]
    assert lock is not None
    assert lock.to_document() == {"by": "jetson_clocks", "power_mode": "MODE_2", "problems": []}
    assert leftovers(board) == []


def test_a_power_mode_is_set_first_and_put_back_last(board: Path) -> None:
    with locked_clocks(power_mode=0) as lock:
        assert state(board) == ("locked", "0")
        assert lock is not None
        assert lock.power_mode == "MODE_0"
    assert state(board) == ("free", "2")
    assert calls(board) == [
        "nvpmodel -m 0",
        "jetson_clocks --store",
        "jetson_clocks",
        "jetson_clocks --restore",
        "nvpmodel -m 2",
    ]


def test_nothing_is_touched_where_it_is_not_wanted(board: Path) -> None:
    with locked_clocks(False, power_mode=0) as lock:
        assert lock is None
    assert calls(board) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_puts_the_clocks_back(board: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with locked_clocks(power_mode=0):
            assert state(board) == ("locked", "0")
            raise error

    with pytest.raises(error):
        fail()
    assert state(board) == ("free", "2")
    assert leftovers(board) == []


@pytest.mark.parametrize("step", ["--store", ""])
def test_a_tool_that_fails_halfway_is_an_error_and_all_is_put_back(board: Path, step: str) -> None:
    (board / f"refuse{step}").touch()
    with pytest.raises(HardbitError, match="jetson_clocks failed: Error: Failed to do"), locked_clocks(power_mode=0):
        pytest.fail("the block was entered")
    assert state(board) == ("free", "2")


def test_a_mode_that_wants_a_reboot_is_not_taken_and_the_board_not_rebooted(board: Path) -> None:
    with pytest.raises(HardbitError, match="power mode 7 was not taken; it may need a reboot"), locked_clocks(True, 7):
        pytest.fail("the block was entered")
    assert (board / "answer").read_text() == "no\n"
    assert state(board) == ("free", "2")


def test_what_cannot_be_put_back_is_told_and_the_way_is_kept(board: Path) -> None:
    """A measurement of hours must not be thrown away for it."""
    with locked_clocks() as lock:
        (board / "refuse--restore").touch()
    assert lock is not None
    (problem,) = lock.problems
    assert "Failed to do --restore" in problem
    command = problem.partition("): ")[2].partition(",")[0]
    (board / "refuse--restore").unlink()
    assert state(board)[0] == "locked"
    subprocess.run(command.removeprefix("sudo "), shell=True, check=True)
    assert state(board)[0] == "free"


def test_only_root_locks_and_only_with_the_tools(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_lock.os, "geteuid", lambda: 1000)
    with pytest.raises(HardbitError, match="only root may lock clocks; run the same command with sudo"):
        clock_lock.refuse_unlockable_clocks()
    monkeypatch.setattr(clock_lock, "find_tool", lambda name: None)
    with pytest.raises(HardbitError, match="jetson_clocks is not on this machine"):
        clock_lock.refuse_unlockable_clocks()
    assert calls(board) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_program_that_is_ended_puts_the_clocks_back(board: Path, number: signal.Signals) -> None:
    (board / "slow").write_text("0.3\n")
    program = (
        "import os, time\n"
        "from hardbit_deploy import clock_lock\n"
        "clock_lock.os.geteuid = lambda: 0\n"
        "with clock_lock.locked_clocks(power_mode=0):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"locked\n"
    child.send_signal(number)
    time.sleep(0.15)
    child.send_signal(number)  # somebody is impatient
    child.communicate(timeout=20)
    assert child.returncode not in (0, None)
    assert state(board) == ("free", "2")


def test_a_check_is_refused_before_it_begins_where_clocks_cannot_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_lock, "find_tool", lambda name: None)
    options = CheckOptions(lock_clocks=True)
    with pytest.raises(HardbitError, match="jetson_clocks is not on this machine"):
        check("no bundle at all", options=options)
    with pytest.raises(HardbitError, match="jetson_clocks is not on this machine"):
        bench([Path("no bundle at all")], Path("out"), options)


def test_bench_locks_for_interleaved_timings_and_tells_what_was_not_put_back(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def time_bundles(paths: Sequence[Path], *_: object) -> dict[Path, LatencyReport]:
        seen.append(state(board)[0])
        (board / "refuse--restore").touch()
        return {}

    def check_bundle(*_: object) -> dict[str, Any]:
        seen.append(state(board)[1])
        return {**examples.example_run()[0], "latency": None}

    monkeypatch.setattr(benching, "_time", time_bundles)
    monkeypatch.setattr(benching, "check", check_bundle)
    document = bench([Path("a")], Path("out"), CheckOptions(lock_clocks=True, power_mode=0), SHORT)
    assert seen == ["locked", "2"]
    assert document["clock_lock"]["power_mode"] == "MODE_0"
    assert "WARNING: the clocks could not be put back" in bench_table(document)
    assert bench([Path("a")], Path("out"), CheckOptions(lock_clocks=True), None)["clock_lock"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--lock-clocks", "--no-latency"], "--lock-clocks: locks clocks for timings only"),
        (["--power-mode", "0"], "--power-mode: is set for locked clocks only"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "BUNDLE", *arguments]) == 64
    assert complaint in capsys.readouterr().err
