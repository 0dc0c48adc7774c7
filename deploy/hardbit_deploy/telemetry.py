"""Power of the whole board from the kernel's sensors: INA3221 on a Jetson Orin, INA238 on a Jetson Thor.

The kernel shows both under /sys/class/hwmon. An INA3221 gives volts and amperes for up to three labelled rails
(Documentation/hwmon/ina3221.rst), an INA238 gives watts for one rail and no label (ina238.rst); on a Thor that rail is
VIN. What counts is the power of the module: VIN or VDD_IN where the board measures it, else the sum of the rails that
feed a module without such a sensor.

Boundary: reads sensors and averages. What a measurement of energy is made of is in energy.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

__all__ = ["PowerMeter", "PowerRail", "PowerSampler", "PowerTrace", "find_power_meter", "find_rails"]

SAMPLE_RATE_HZ = 10.0
_UNCONNECTED = "NC"  # label of an INA3221 channel that nothing is wired to
# The rails that add up to a module's power, best first. DDR and the always-on rail hang on VIN_SYS_5V0.
_MODULE_POWER = (
    ("VIN",),  # Thor
    ("VDD_IN",),  # Orin Nano and NX
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # a Thor on a carrier without INA238
)


@dataclass(frozen=True)
class PowerRail:
    """One measured rail: `files` hold power in uW, or voltage in mV and current in mA."""

    name: str
    chip: str
    files: tuple[Path, ...]

    def power_mw(self) -> float | None:
        """The power in milliwatts now; None where the sensor gives none, as a disabled channel does."""
        values = [_number(path) for path in self.files]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return known[0] / 1000 if len(known) == 1 else known[0] * known[1] / 1000


@dataclass(frozen=True)
class PowerMeter:
    """The rails whose sum is the power of the module."""

    rails: tuple[PowerRail, ...]

    @property
    def name(self) -> str:
        """Such as `VDD_IN (ina3221)`."""
        return f"{' + '.join(rail.name for rail in self.rails)} ({self.rails[0].chip})"

    def power_mw(self) -> float | None:
        """The power of the module in milliwatts now; None where one of its rails cannot be read."""
        values = [rail.power_mw() for rail in self.rails]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None


def find_rails(root: Path = Path("/")) -> tuple[PowerRail, ...]:
    """Every rail of the INA3221 and INA238 chips of this machine, by name; `root` is where sys/ is looked for."""
    folder = root / "sys/class/hwmon"
    rails: list[PowerRail] = []
    for chip in sorted(folder.glob("hwmon*")) if folder.is_dir() else []:
        finder = {"ina3221": _ina3221_rails, "ina238": _ina238_rails}.get(_text(chip / "name") or "")
        rails += finder(chip) if finder else []
    return tuple(sorted(rails, key=lambda rail: (rail.name, rail.files)))


def find_power_meter(root: Path = Path("/")) -> PowerMeter | None:
    """What measures the power of the module; None on a machine without such sensors."""
    named: dict[str, PowerRail] = {}
    for rail in find_rails(root):
        named.setdefault(rail.name, rail)
    for names in _MODULE_POWER:
        if all(name in named for name in names):
            meter = PowerMeter(tuple(named[name] for name in names))
            if meter.power_mw() is not None:
                return meter
    return None


@dataclass(frozen=True)
class PowerTrace:
    """Samples of power: `seconds` on one clock, `power_mw` beside them."""

    seconds: tuple[float, ...]
    power_mw: tuple[float, ...]

    def mean_mw(self, begin_s: float | None = None, end_s: float | None = None) -> float | None:
        """The mean over time between two moments, by trapezoids; None for fewer than two samples."""
        kept = [
            (moment, power)
            for moment, power in zip(self.seconds, self.power_mw, strict=True)
            if (begin_s is None or moment >= begin_s) and (end_s is None or moment <= end_s)
        ]
        if len(kept) < 2 or kept[-1][0] <= kept[0][0]:
            return None
        area = sum((after[0] - before[0]) * (after[1] + before[1]) / 2 for before, after in pairwise(kept))
        return area / (kept[-1][0] - kept[0][0])


class PowerSampler:
    """Samples a meter on a thread while a `with` block runs; `trace()` is what it has seen so far.

    Readings that fail are left out, so that a sensor that stumbles once does not spoil the rest.
    """

    def __init__(
        self,
        meter: PowerMeter,
        rate_hz: float = SAMPLE_RATE_HZ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter, self._interval_s, self._clock = meter, 1 / rate_hz, clock
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def __enter__(self) -> PowerSampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def trace(self) -> PowerTrace:
        """Everything sampled so far."""
        samples = list(self._samples)
        return PowerTrace(tuple(moment for moment, _ in samples), tuple(power for _, power in samples))

    def _run(self) -> None:
        """Sample on a fixed grid of time: a slow sensor shortens the wait, it does not stretch the grid."""
        due_s = self._clock()
        while True:
            power, moment_s = self._meter.power_mw(), self._clock()
            if power is not None:
                self._samples.append((moment_s, power))
            due_s = max(due_s + self._interval_s, moment_s)
            if self._over.wait(max(0.0, due_s - self._clock())):
                return


def _ina3221_rails(chip: Path) -> Sequence[PowerRail]:
    """Channels 1 to 3 with a label; in7_label names the sum of shunt voltages and is no rail."""
    rails = []
    for channel in (1, 2, 3):
        label = _text(chip / f"in{channel}_label")
        if not label or label == _UNCONNECTED or _text(chip / f"in{channel}_enable") == "0":
            continue
        files = (chip / f"in{channel}_input", chip / f"curr{channel}_input")
        rails.append(PowerRail(label, "ina3221", files))
    return rails


def _ina238_rails(chip: Path) -> Sequence[PowerRail]:
    """The chip's one rail; its driver has no label, so a Jetson's is called what NVIDIA calls it, VIN."""
    power = chip / "power1_input"
    files = (power,) if power.is_file() else (chip / "in1_input", chip / "curr1_input")
    return [PowerRail(_text(chip / "in1_label") or "VIN", "ina238", files)]


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
