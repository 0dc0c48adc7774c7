"""Preflight on recorded machines: what is read, what is left unknown, and the grade that follows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hardbit_deploy import preflight
from hardbit_deploy.preflight import Grade

STAT = "cpu  {user} 0 3271 199437 467 0 80 {steal} 0 0\ncpu0 2045 0 1154 102333 136 0 9 2 0 0\n"


def record(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def policy(core: int, low: int, high: int, governor: str = "performance", current: int = 1_500_000) -> dict[str, str]:
    folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
    return {
        f"{folder}/scaling_min_freq": f"{low}\n",
        f"{folder}/scaling_max_freq": f"{high}\n",
        f"{folder}/scaling_cur_freq": f"{current}\n",
        f"{folder}/scaling_governor": f"{governor}\n",
    }


IDLE = {"proc/stat": STAT.format(user=8204, steal=9), "proc/loadavg": "0.42 0.21 0.10 1/120 999\n"}


def test_a_recorded_jetson_is_described(tmp_path: Path) -> None:
    root = record(
        tmp_path,
        {
            **IDLE,
            **policy(0, 1_510_400, 1_510_400),
            **policy(1, 1_510_400, 1_510_400, current=1_510_400),
            "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "sys/class/thermal/thermal_zone0/temp": "48500\n",
            "sys/class/thermal/thermal_zone1/temp": "51250\n",
            "sys/class/thermal/thermal_zone2/temp": "-256000\n",
        },
    )
    machine = preflight.describe_machine(root, load_interval_s=0.01)
    assert machine["cpu"] == "Arm implementer 0x41 part 0xd42"
    assert machine["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine["temperature_c"] == 51.25
    assert machine["frequency_mhz"] == pytest.approx(1510.4)
    assert machine["governor"] == "performance"
    assert machine["load_average"] == [0.42, 0.21, 0.10]
    assert machine["foreign_load"] == 0
    assert preflight.grade(machine) == Grade("A", ("clocks locked, no foreign load",))
    json.dumps(machine)


def test_clusters_locked_at_different_clocks_are_locked(tmp_path: Path) -> None:
    root = record(tmp_path, {**IDLE, **policy(0, 1_400_000, 1_400_000), **policy(4, 2_000_000, 2_000_000)})
    assert preflight.grade(preflight.describe_machine(root, 0.01)).letter == "A"


def test_a_pinned_process_may_use_its_own_cores_only(monkeypatch) -> None:
    monkeypatch.setattr(preflight.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(preflight.os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert preflight.usable_cores() == 2
    monkeypatch.delattr(preflight.os, "sched_getaffinity")
    assert preflight.usable_cores() == 64


def test_free_clocks_are_grade_b_and_named(tmp_path: Path) -> None:
    root = record(
        tmp_path,
        {
            **IDLE,
            **policy(0, 400_000, 3_400_000, "powersave"),
            **policy(1, 400_000, 3_400_000),
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
        },
    )
    found = preflight.grade(preflight.describe_machine(root, 0.01))
    assert found.letter == "B"
    assert "between 400 and 3400 MHz (governor performance+powersave)" in found.reasons[0]
    assert found.reasons[1] == "turbo boost is on"


def test_a_machine_that_shows_nothing_is_grade_b_with_unknowns(tmp_path: Path) -> None:
    machine = preflight.describe_machine(tmp_path, load_interval_s=0.01)
    unknown = ("governor", "frequency_mhz", "clocks_locked", "boost", "temperature_c", "foreign_load", "board")
    assert [machine[key] for key in unknown] == [None] * len(unknown)
    assert preflight.grade(machine) == Grade(
        "B", ("the load of other programs cannot be read", "the clocks cannot be read")
    )


@pytest.mark.parametrize("column", ["user", "steal"])
def test_work_of_others_is_foreign_load_and_stolen_time_too(tmp_path: Path, column: str) -> None:
    ticks: dict[str, Any] = {"user": 8204, "steal": 9}
    root = record(tmp_path, {"proc/stat": STAT.format(**ticks)})
    meter = preflight.LoadMeter(root, cores=2)
    time.sleep(0.05)
    ticks[column] += 1_000_000  # more than two cores can do: the share is capped at the whole machine
    record(root, {"proc/stat": STAT.format(**ticks)})
    assert meter.foreign_share() == 1.0


def test_own_work_is_not_foreign(tmp_path: Path) -> None:
    """A stand-still /proc/stat with our own burning of time would even be negative: the share stops at zero."""
    meter = preflight.LoadMeter(record(tmp_path, IDLE), cores=2)
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        pass
    assert meter.foreign_share() == 0


def test_foreign_load_is_grade_c_whatever_the_clocks() -> None:
    found = preflight.grade({"foreign_load": 0.37, "clocks_locked": True, "boost": False})
    assert found.letter == "C"
    assert "37 %" in found.reasons[0]


def test_the_worse_grade_wins() -> None:
    a, b = Grade("A", ()), Grade("B", ())
    assert preflight.worse_grade(a, b) is b
    assert preflight.worse_grade(b, a) is b
