"""Energy of an inference: the arithmetic by hand, and a measurement on a board as files that draws more under load."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import result_examples as examples
from bundle_examples import build_bundle
from hardbit_deploy import energy, timing
from hardbit_deploy.energy import (
    EnergyReport,
    EnergySettings,
    energy_in_words,
    measure_energy,
    robust_correct_per_joule,
)
from hardbit_deploy.energy_worker import query_for
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.results import document_text, load_schema
from hardbit_deploy.summary import result_summary
from hardbit_deploy.telemetry import PowerMeter, PowerRail

QUICK = EnergySettings(idle_s=0.3, load_s=0.5, rate_hz=50, warmup_min_s=0.05, warmup_max_s=0.1)


def report(idle_mw: float = 4000.0, load_mw: float = 9000.0) -> EnergyReport:
    return EnergyReport(EnergySettings(), "VDD_IN (ina3221)", idle_mw, load_mw, 30.0, 60_000, 300)


def test_joules_are_the_power_above_idle_over_the_rate() -> None:
    """5 W more at 2,000 queries a second: 2.5 mJ each; 240 of them right and robust at 60 % in a joule."""
    measured = report()
    assert measured.joules_per_inference == pytest.approx(0.0025)
    assert robust_correct_per_joule(measured.joules_per_inference, 0.6) == pytest.approx(240)
    document = measured.to_document(0.6)
    assert document["robust_correct_per_joule"] == pytest.approx(240)
    assert document["protocol"] == "energy-v1"
    assert energy_in_words(document) == (
        "Energy by energy-v1: 2.5 mJ an inference, 240 robust and correct inferences per joule "
        "(9 W under load, 4 W idle, VDD_IN (ina3221))"
    )


def test_a_load_that_draws_nothing_more_has_no_energy() -> None:
    document = report(load_mw=3990.0).to_document(0.6)
    assert document["joules_per_inference"] is None
    assert document["robust_correct_per_joule"] is None
    assert "drew no more than the idle board" in energy_in_words(document)


def test_without_attacks_there_is_no_robust_answer_to_count() -> None:
    document = report().to_document(None)
    assert document["robust_correct_per_joule"] is None
    assert "per joule" not in energy_in_words(document)


@pytest.mark.parametrize("change", [{"load_s": 29.0}, {"idle_s": 9.0}, {"rate_hz": 9.0}])
def test_anything_less_has_another_name(change: dict[str, float]) -> None:
    assert replace(EnergySettings(), **change).protocol == "energy-v1-short"


def test_queries_are_counted_until_the_time_is_over() -> None:
    clock = iter([0.0, 0.4, 0.8, 1.2])
    asked: list[int] = []
    assert query_for(asked.append, 1.0, lambda: next(clock)) == (3, 1.2)
    assert asked == [0, 1, 2]


def test_energy_is_part_of_a_result_and_of_its_summary() -> None:
    document, _ = examples.example_run()
    document["latency"] = examples.example_latency()
    document["energy"] = report().to_document(0.669)
    document["clock_lock"] = {"by": "jetson_clocks", "power_mode": "MAXN", "problems": []}
    jsonschema.Draft202012Validator(load_schema("result-v1")).validate(json.loads(document_text(document)))
    text = result_summary(document)
    assert "Energy by energy-v1: 2.5 mJ an inference, 267.6 robust and correct inferences per joule" in text
    assert "Clocks locked by jetson_clocks in power mode MAXN, and put back" in text
    document["clock_lock"]["problems"] = ["the clocks could not be put back"]
    assert "WARNING: the clocks could not be put back" in result_summary(document)
    assert "put back\n" not in result_summary(document).split("WARNING")[0]


class Board:
    """A rail in a file that a thread sets to 9 W while a process of the measurement runs, and to 4 W otherwise."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "power1_input"
        self.file.write_text("4000000\n")
        self.meter = PowerMeter((PowerRail("VIN", "ina238", (self.file,)),))

    def draw(self, milliwatts: int) -> None:
        self.file.write_text(f"{1000 * milliwatts}\n")


def test_a_measurement_on_a_board_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path)
    bundle = build_bundle(tmp_path / "bundle", count=8).path
    line = energy._line

    def tell(worker, beginning):
        found = line(worker, beginning)
        board.draw(9000 if beginning == "ready" else 4000)
        return found

    monkeypatch.setattr(energy, "_line", tell)
    steps: list[tuple[int, int]] = []
    measured = measure_energy(bundle, board.meter, QUICK, lambda *done: steps.append(done))
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert measured.idle_mw == pytest.approx(4000)
    assert measured.load_mw == pytest.approx(9000, rel=0.1)
    assert measured.load_s >= 0.5
    assert measured.queries >= 1
    assert 2 <= measured.samples <= 40
    extra_w = (measured.load_mw - measured.idle_mw) / 1000
    assert measured.joules_per_inference == pytest.approx(extra_w * measured.load_s / measured.queries)


def test_a_bundle_that_cannot_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match=r"the process that draws power failed: .*try --no-energy"):
        measure_energy(tmp_path / "nowhere", Board(tmp_path).meter, QUICK)


def test_a_measurement_that_is_interrupted_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = []

    def interrupt(worker, beginning):
        workers.append(worker)
        raise KeyboardInterrupt

    monkeypatch.setattr(energy, "_line", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure_energy(tmp_path, Board(tmp_path).meter, replace(QUICK, load_s=600, idle_s=0.1))
    assert workers[0].returncode is not None
    assert time.monotonic() - started < 20
    assert "power" not in {thread.name for thread in threading.enumerate()}


def test_a_machine_without_sensors_measures_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "find_power_meter", lambda: None)
    latency = type("Latency", (), {"to_document": lambda self: {"p50_ms": 1.0}})()
    monkeypatch.setattr(timing, "measure", lambda *_, **__: latency)
    options = timing.TimingOptions(timing.LatencySettings(), EnergySettings())
    assert timing.measure_timing(tmp_path, options, 0.5, print).parts == {"latency": {"p50_ms": 1.0}}
    assert timing.measure_timing(tmp_path, replace(options, latency=None), 0.5, print).parts == {"latency": None}


def test_clocks_are_locked_for_latency_and_energy_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Lock:
        def __enter__(self):
            events.append("lock")
            return self

        def __exit__(self, *_):
            events.append("unlock")

        def to_document(self):
            return {"by": "jetson_clocks"}

    def locked(wanted, power_mode):
        assert (wanted, power_mode) == (True, 3)
        return Lock()

    latency = type("Latency", (), {"to_document": lambda self: {}})()
    monkeypatch.setattr(timing, "locked_clocks", locked)
    monkeypatch.setattr(timing, "find_power_meter", lambda: Board(tmp_path).meter)
    monkeypatch.setattr(timing, "measure", lambda *_, **__: events.append("latency") or latency)
    monkeypatch.setattr(timing, "measure_energy", lambda *_: events.append("energy") or report())
    options = timing.TimingOptions(timing.LatencySettings(), EnergySettings(), True, 3)
    parts = timing.measure_timing(tmp_path, options, 0.5, print).parts
    assert events == ["lock", "latency", "energy", "unlock"]
    assert parts["clock_lock"] == {"by": "jetson_clocks"}
    assert parts["energy"]["robust_correct_per_joule"] == pytest.approx(200)
