"""Power sensors of boards as files: which rails are found, which sum is the module's, and what is averaged."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from hardbit_deploy.telemetry import PowerMeter, PowerRail, PowerSampler, PowerTrace, find_power_meter, find_rails

BOARDS = Path(__file__).parent / "boards"


@pytest.mark.parametrize(
    ("board", "name", "power_mw"),
    [
        ("orin-nano", "VDD_IN (ina3221)", 4944.0),  # 4.944 V and 1 A
        ("agx-orin", "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (ina3221)", 19 * 200 + 19 * 100 + 5 * 800),
        ("thor", "VIN (ina238)", 23055.2),  # in microwatts in the file
    ],
)
def test_the_power_of_a_module_is_read(board: str, name: str, power_mw: float) -> None:
    meter = find_power_meter(BOARDS / board)
    assert meter is not None
    assert meter.name == name
    assert meter.power_mw() == pytest.approx(power_mw)


def test_every_rail_is_found_and_nothing_that_is_none() -> None:
    assert [rail.name for rail in find_rails(BOARDS / "orin-nano")] == ["VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC"]
    assert [rail.name for rail in find_rails(BOARDS / "agx-orin")] == [
        "VDDQ_VDD2_1V8AO",
        "VDD_CPU_CV",
        "VDD_GPU_SOC",
        "VIN_SYS_5V0",
    ]
    assert {rail.name: rail.chip for rail in find_rails(BOARDS / "thor")}["VIN"] == "ina238"


def test_a_machine_without_sensors_has_no_meter(tmp_path: Path) -> None:
    assert find_rails(tmp_path) == ()
    assert find_power_meter(tmp_path) is None


def copy(board: str, folder: Path) -> Path:
    return Path(shutil.copytree(BOARDS / board, folder / board))


def test_a_thor_on_a_carrier_without_ina238_is_its_three_rails(tmp_path: Path) -> None:
    root = copy("thor", tmp_path)
    shutil.rmtree(root / "sys/class/hwmon/hwmon5")
    meter = find_power_meter(root)
    assert meter is not None
    assert meter.power_mw() == pytest.approx(12 * 250 + 12 * 330 + 5 * 900)


def test_an_ina238_that_gives_no_power_gives_voltage_and_current(tmp_path: Path) -> None:
    root = copy("thor", tmp_path)
    (root / "sys/class/hwmon/hwmon5/power1_input").unlink()
    meter = find_power_meter(root)
    assert meter is not None
    assert meter.power_mw() == pytest.approx(20.048 * 1150)


def test_a_part_of_a_module_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    root = copy("orin-nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/in1_enable").write_text("0\n")
    assert [rail.name for rail in find_rails(root)] == ["VDD_CPU_GPU_CV", "VDD_SOC"]
    assert find_power_meter(root) is None


def test_a_channel_that_answers_nothing_is_no_power(tmp_path: Path) -> None:
    root = copy("agx-orin", tmp_path)
    current = root / "sys/class/hwmon/hwmon3/curr2_input"
    meter = find_power_meter(root)
    assert meter is not None
    current.write_text("")
    assert meter.power_mw() is None
    assert find_power_meter(root) is None


def test_a_mean_weighs_samples_by_their_time() -> None:
    """1 W for three seconds, a ramp of one second, 3 W for two: (3 + 2 + 6) joules in six seconds."""
    trace = PowerTrace((0.0, 3.0, 4.0, 6.0), (1000.0, 1000.0, 3000.0, 3000.0))
    assert trace.mean_mw() == pytest.approx(11_000 / 6)
    assert trace.mean_mw(4.0) == 3000
    assert trace.mean_mw(0.0, 3.5) == 1000
    assert trace.mean_mw(5.0) is None
    assert PowerTrace((), ()).mean_mw() is None


def test_a_sampler_keeps_its_rate_beside_a_slow_sensor_and_leaves_out_what_fails() -> None:
    class SlowRail(PowerRail):
        def power_mw(self) -> float | None:
            time.sleep(0.02)
            asked.append(threading.current_thread().name)
            return None if len(asked) % 2 else 1234.0

    asked: list[str] = []
    with PowerSampler(PowerMeter((SlowRail("VIN", "ina238", ()),)), rate_hz=25) as sampler:
        time.sleep(0.5)
    trace = sampler.trace()
    assert set(asked) == {"power"}
    assert 5 <= len(asked) <= 14  # 12.5 at 25 Hz; 8 if the sensor's time came on top
    assert len(trace.power_mw) == len(asked) // 2
    assert set(trace.power_mw) == {1234.0}
    assert list(trace.seconds) == sorted(trace.seconds)
    assert threading.active_count() == 1 or "power" not in {thread.name for thread in threading.enumerate()}
