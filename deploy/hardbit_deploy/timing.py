"""What a check measures of speed and energy on one board: latency, then energy, with clocks locked where asked for.

Boundary: puts the three together as parts of a result document. How each is measured is its own module's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardbit_deploy.clock_lock import locked_clocks
from hardbit_deploy.energy import EnergySettings, measure_energy
from hardbit_deploy.latency import LatencyReport, LatencySettings, measure
from hardbit_deploy.telemetry import find_power_meter

__all__ = ["Timing", "TimingOptions", "measure_timing"]


@dataclass(frozen=True)
class TimingOptions:
    """What to measure: `latency` as in CheckOptions, and `energy` where the board has sensors for it."""

    latency: LatencySettings | LatencyReport | None
    energy: EnergySettings | None
    lock_clocks: bool = False
    power_mode: int | None = None


@dataclass(frozen=True)
class Timing:
    """`parts` of a result document, `latency` among them, and the report with its raw samples."""

    report: LatencyReport | None
    parts: dict[str, Any] = field(default_factory=dict)


def measure_timing(
    bundle: Path, options: TimingOptions, robust_rate: float | None, progress: Callable[[str, int, int], None]
) -> Timing:
    """Time one bundle whose engine is proved; nothing at all where `options.latency` is None. Raises HardbitError.

    `robust_rate` is the share of images that stay right under every attack, None where none was run.
    """
    if options.latency is None:
        return Timing(None, {"latency": None})
    meter = find_power_meter() if options.energy else None
    with locked_clocks(options.lock_clocks, options.power_mode) as lock:
        if isinstance(options.latency, LatencySettings):
            report = measure(bundle, options.latency, progress=lambda *done: progress("latency", *done))
        else:
            report = options.latency
        parts: dict[str, Any] = {"latency": report.to_document()}
        if meter is not None and options.energy is not None:
            energy = measure_energy(bundle, meter, options.energy, lambda *done: progress("energy", *done))
            parts["energy"] = energy.to_document(robust_rate)
    if lock is not None:
        parts["clock_lock"] = lock.to_document()
    return Timing(report, parts)
