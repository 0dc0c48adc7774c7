"""Energy of an inference on a board that measures its own power: joules for each, above what it draws when idle.

Protocol `energy-v1`: the module's power is sampled at 10 Hz, first for ten seconds with nothing to do, then over
thirty seconds of steady load, in which a fresh process answers one query after another. The mean power of the load
less that of the idle board, over queries per second, is the energy of a query. A shorter measurement is named
`energy-v1-short`.

Boundary: measures. It proves no precision, and judges nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.latency import worker_environment
from hardbit_deploy.telemetry import SAMPLE_RATE_HZ, PowerMeter, PowerSampler, PowerTrace

__all__ = [
    "FULL_ENERGY",
    "SHORT_ENERGY",
    "EnergyReport",
    "EnergySettings",
    "energy_in_words",
    "measure_energy",
    "robust_correct_per_joule",
]

_READY = "ready"


@dataclass(frozen=True)
class EnergySettings:
    """How long; the defaults are `energy-v1`."""

    idle_s: float = 10.0
    load_s: float = 30.0
    rate_hz: float = SAMPLE_RATE_HZ
    warmup_min_s: float = 2.0
    warmup_max_s: float = 30.0
    threads: int = 1

    @property
    def protocol(self) -> str:
        """The name under which a report of these settings goes."""
        full = self.idle_s >= 10 and self.load_s >= 30 and self.rate_hz >= 10 and self.warmup_min_s >= 2
        return "energy-v1" if full else "energy-v1-short"


FULL_ENERGY = EnergySettings()
SHORT_ENERGY = EnergySettings(idle_s=2.0, load_s=3.0, warmup_min_s=0.2, warmup_max_s=2.0)


@dataclass(frozen=True)
class EnergyReport:
    """Mean power of the idle board and under load, and the queries answered within `load_s` seconds."""

    settings: EnergySettings
    sensor: str
    idle_mw: float
    load_mw: float
    load_s: float
    queries: int
    samples: int  # of the load

    @property
    def joules_per_inference(self) -> float | None:
        """Energy of one query above the idle board; None where the load drew no more than the idle board did."""
        extra_w = (self.load_mw - self.idle_mw) / 1000
        return extra_w * self.load_s / self.queries if extra_w > 0 else None

    def to_document(self, robust_rate: float | None = None) -> dict[str, Any]:
        """As it stands in result.json; `robust_rate` is the share of images that stay right under every attack."""
        joules = self.joules_per_inference
        return {
            "protocol": self.settings.protocol,
            "sensor": self.sensor,
            "idle_mw": self.idle_mw,
            "load_mw": self.load_mw,
            "load_s": self.load_s,
            "queries": self.queries,
            "samples": self.samples,
            "joules_per_inference": joules,
            "robust_correct_per_joule": robust_correct_per_joule(joules, robust_rate),
            "settings": asdict(self.settings),
        }


def robust_correct_per_joule(joules_per_inference: float | None, robust_rate: float | None) -> float | None:
    """Answers that are right and withstand every attack, for one joule; None where either is not known."""
    if joules_per_inference is None or robust_rate is None:
        return None
    return robust_rate / joules_per_inference


def energy_in_words(energy: Mapping[str, Any]) -> str:
    """One line of a summary, from the `energy` of a result."""
    power = f"{energy['load_mw'] / 1000:.3g} W under load, {energy['idle_mw'] / 1000:.3g} W idle, {energy['sensor']}"
    if energy["joules_per_inference"] is None:
        return f"Energy by {energy['protocol']}: the load drew no more than the idle board ({power})"
    robust = energy["robust_correct_per_joule"]
    gain = f", {robust:.4g} robust and correct inferences per joule" if robust is not None else ""
    return f"Energy by {energy['protocol']}: {_joules(energy['joules_per_inference'])} an inference{gain} ({power})"


def measure_energy(
    bundle: Path,
    meter: PowerMeter,
    settings: EnergySettings = FULL_ENERGY,
    progress: Callable[[int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyReport:
    """Measure one bundle on an otherwise idle board; `progress(done, total)` counts two parts. Raises HardbitError."""
    report = progress or (lambda done, total: None)
    report(0, 2)
    with PowerSampler(meter, settings.rate_hz) as idle:
        sleep(settings.idle_s)
    report(1, 2)
    with tempfile.TemporaryDirectory(prefix="hardbit-energy-") as folder:
        trace, begun_s, ended_s, load = _load(bundle, meter, settings, Path(folder))
    idle_mw, load_mw = idle.trace().mean_mw(), trace.mean_mw(begun_s, ended_s)
    if idle_mw is None or load_mw is None:
        raise HardbitError(f"the sensor {meter.name} gave too few readings", remedy="try --no-energy for the rest")
    report(2, 2)
    seen = sum(begun_s <= moment <= ended_s for moment in trace.seconds)
    return EnergyReport(settings, meter.name, idle_mw, load_mw, load["seconds"], load["queries"], seen)


def _load(
    bundle: Path, meter: PowerMeter, settings: EnergySettings, folder: Path
) -> tuple[PowerTrace, float, float, dict[str, Any]]:
    """Power from the start of the worker to its end, the moments between which it was busy, and what it answered."""
    errors = folder / "errors"  # a file, for a pipe that nobody reads would stop a talkative runtime
    with errors.open("w") as stderr, PowerSampler(meter, settings.rate_hz) as sampler:
        worker = subprocess.Popen(
            _worker_command(bundle, settings),
            cwd=folder,
            env=worker_environment(settings.threads),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            _, begun_s = _line(worker, _READY), time.monotonic()
            answer, ended_s = _line(worker, "{"), time.monotonic()
            worker.communicate()
        except BaseException:
            worker.kill()
            worker.communicate()
            raise
    if worker.returncode != 0 or answer is None:
        lines = errors.read_text(errors="replace").strip().splitlines() or [f"exit status {worker.returncode}"]
        raise HardbitError(
            f"the process that draws power failed: {lines[-1]}",
            where=str(bundle),
            remedy="try --no-energy for the rest",
        )
    return sampler.trace(), begun_s, ended_s, json.loads(answer)


def _line(worker: subprocess.Popen[str], beginning: str) -> str | None:
    """The worker's next line with this beginning; a runtime may have said other things before. None at its end."""
    return next((line for line in worker.stdout or () if line.startswith(beginning)), None)


def _worker_command(bundle: Path, settings: EnergySettings) -> list[str]:
    return [
        sys.executable,
        "-m",
        "hardbit_deploy.energy_worker",
        str(bundle.resolve()),
        f"--seconds={settings.load_s}",
        f"--threads={settings.threads}",
        f"--warmup-min-s={settings.warmup_min_s}",
        f"--warmup-max-s={settings.warmup_max_s}",
    ]


def _joules(value: float) -> str:
    for factor, unit in ((1.0, "J"), (1e3, "mJ"), (1e6, "uJ")):
        if value * factor >= 1:
            return f"{value * factor:.4g} {unit}"
    return f"{value * 1e9:.4g} nJ"
