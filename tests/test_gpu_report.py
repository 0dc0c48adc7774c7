"""The report of `make test-gpu`: what was skipped is named, and a run of skips alone does not look like a pass."""

from __future__ import annotations

import re
from pathlib import Path

import gpu_report
from gpu_report import Outcome, read_outcomes, report_text
from hardbit_deploy.doctor import Finding

ROOT = Path(__file__).parents[1]
MACHINE = [Finding("gpu", "found", "NVIDIA H100 (compute capability 9.0)"), Finding("numpy", "found", "2.0")]
PYTEST = """\
import pytest
pytestmark = pytest.mark.gpu
def test_runs(): pass
def test_fails(): assert 1 == 2, "logits differ"
@pytest.mark.skip(reason="no CUDA driver is loaded")
def test_needs_a_gpu(): pass
"""


def run(folder: Path, text: str) -> tuple[int, str, list[Outcome]]:
    (folder / "test_something.py").write_text(text)
    code = gpu_report.main([str(folder / "out" / "gpu-report"), str(folder), "-q", "-p", "no:cacheprovider"])
    xml = (folder / "out" / "gpu-report.xml").read_text()
    return code, (folder / "out" / "gpu-report.txt").read_text(), read_outcomes(xml)


def test_every_test_stands_in_the_report_with_its_reason(tmp_path: Path) -> None:
    code, text, outcomes = run(tmp_path, PYTEST)
    assert code == 1
    assert sorted(outcome.status for outcome in outcomes) == ["failed", "passed", "skipped"]
    assert text.startswith("2 of 3 tests ran: 1 passed, 1 failed, 1 skipped\n")
    failed, skipped, passed = (text.index(heading) for heading in ("\nFailed\n", "\nSkipped\n", "\nPassed\n"))
    assert "logits differ" in text[failed:skipped]
    assert re.search(r"test_needs_a_gpu \(0\.0 s\): no CUDA driver is loaded", text[skipped:passed])
    assert "test_runs" in text[passed:]


def test_a_run_of_nothing_but_skips_is_no_pass(tmp_path: Path) -> None:
    code, text, _ = run(tmp_path, PYTEST.replace("def test_runs(): pass\ndef test_fails", "def fails"))
    assert code == gpu_report.NOTHING_RAN
    assert text.startswith("NOTHING RAN on a GPU here: 0 passed, 0 failed, 1 skipped\n")


def test_the_machine_is_named() -> None:
    text = report_text([Outcome("a::b", "passed", 1.25)], MACHINE)
    assert "  gpu: found, NVIDIA H100 (compute capability 9.0)\n" in text
    assert "numpy" not in text
    assert "  a::b (1.2 s)\n" in text


def test_the_makefile_runs_it() -> None:
    recipe = re.search(r"^test-gpu:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.M)
    assert recipe is not None
    assert "tests/gpu_report.py runs/gpu-report" in recipe[1]
