"""Doctor on recorded machines: what is named, and what brings what is missing."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from hardbit_deploy import doctor

STAT = "cpu  8204 0 3271 199437 467 0 80 9 0 0\n"


def findings(root: Path) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.diagnose(root)}


def record(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cpuinfo", "status", "words"),
    [
        ("model name : X\nflags : fpu avx2 avx512_vnni avx_vnni\n", "found", "AVX-512 VNNI, AVX VNNI"),
        ("CPU implementer : 0x41\nCPU part : 0xd42\nFeatures : fp asimddp\n", "found", "Arm dot product"),
        ("model name : Old\nflags : fpu sse2 avx2\n", "limited", "no instructions for sums of byte products"),
    ],
)
def test_integer_instructions_are_looked_for(tmp_path: Path, cpuinfo: str, status: str, words: str) -> None:
    found = findings(record(tmp_path, {"proc/cpuinfo": cpuinfo}))["processor"]
    assert found.status == status
    assert words in found.detail


@pytest.mark.parametrize(
    ("limits", "remedy"),
    [((400_000, 3_400_000), "jetson_clocks"), ((1_500_000, 1_500_000), ""), (None, "virtual machine")],
)
def test_the_way_to_better_timings_is_named(tmp_path: Path, limits: tuple[int, int] | None, remedy: str) -> None:
    files = {"proc/stat": STAT}
    for name, limit in zip(("min", "max"), limits or (), strict=False):
        files[f"sys/devices/system/cpu/cpu0/cpufreq/scaling_{name}_freq"] = f"{limit}\n"
    found = findings(record(tmp_path, files))["timing"]
    assert (remedy in found.remedy) if remedy else (found.status, found.remedy) == ("found", "")


def test_a_missing_runtime_is_told_and_not_tripped_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builtins.__import__

    def without_onnxruntime(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return honest(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_onnxruntime)
    found = findings(tmp_path)["onnxruntime"]
    assert (found.status, found.remedy) == ("missing", "pip install onnxruntime")
