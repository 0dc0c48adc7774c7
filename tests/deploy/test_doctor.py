"""Doctor on recorded machines: what is named, and what brings what is missing."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest

from hardbit_deploy import doctor, jetson, nvidia_doctor

BOARDS = Path(__file__).parent / "boards"
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


@pytest.fixture
def quiet_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No tools on PATH, and none of the packages that a GPU machine may have."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(jetson, "find_tool", lambda name: None)
    monkeypatch.setattr(nvidia_doctor.importlib.util, "find_spec", lambda name: None)
    return folder


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(nvidia_doctor.importlib.util, "find_spec", lambda name: versions.get(name))
    monkeypatch.setattr(nvidia_doctor, "version", lambda name: versions[name])


def show_gpu(folder: Path, line: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_a_jetson_is_told_with_release_mode_clock_memory_and_power(quiet_path: Path) -> None:
    found = findings(BOARDS / "orin-nano")
    assert found["board"].detail.startswith("NVIDIA Jetson Orin Nano")
    assert found["board"].detail.endswith("L4T 36.4.3, JetPack 6.2.1")
    assert found["power mode"].detail.startswith("25W (mode 1)")
    assert (found["gpu clock"].status, found["gpu clock"].detail) == ("limited", "moves between 306 and 1020 MHz")
    assert "--lock-clocks" in found["gpu clock"].remedy
    assert found["memory"].detail == "5,000 of 7,619 MB free, shared by CPU and GPU"
    assert found["power sensor"].detail.startswith("VDD_IN (ina3221), 4.94 W now")


def test_a_tensorrt_that_this_python_does_not_see_is_told_with_the_way_to_it(quiet_path: Path) -> None:
    found = findings(BOARDS / "orin-nano")["tensorrt"]
    assert "JetPack's 10.3.0.30 is on the board, and this Python does not see it" in found.detail
    assert "--system-site-packages" in found.remedy
    assert "apt" not in found.remedy
    assert findings(BOARDS / "agx-orin")["tensorrt"].remedy.startswith("sudo apt install python3-libnvinfer")


def test_a_board_whose_mode_and_clock_are_settled(quiet_path: Path) -> None:
    found = findings(BOARDS / "agx-orin")
    assert found["power mode"].status == "limited"
    assert found["gpu clock"].detail == "locked at 1300 MHz"
    assert found["board"].detail.endswith("L4T 36.4.0, JetPack 6")


def test_tensorrt_for_rtx_is_not_advised_on_a_jetson(quiet_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(BOARDS / "thor")["tensorrt_rtx"]
    assert (found.status, found.remedy) == ("optional", "use the target tensorrt here")
    assert "does not run on a Jetson" in found.detail
    install(monkeypatch, tensorrt_rtx="1.7.1")
    assert findings(BOARDS / "thor")["tensorrt_rtx"].status == "limited"


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("NVIDIA GeForce RTX 4090, 8.9, 570.1, 24564", "found", "1.7.1 for target tensorrt_rtx"),
        ("NVIDIA H100 80GB HBM3, 9.0, 570.1, 81559", "limited", "does not serve NVIDIA H100 80GB HBM3"),
    ],
)
def test_the_matrix_of_tensorrt_for_rtx(
    quiet_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, status: str, words: str
) -> None:
    show_gpu(quiet_path, line)
    install(monkeypatch, tensorrt_rtx="1.7.1", tensorrt="10.13.3", pycuda="2025.1")
    found = findings(tmp_path / "nowhere")
    assert found["gpu"].detail.startswith(f"{line.split(',')[0]} (compute capability")
    assert found["gpu"].detail.endswith("driver 570.1")
    assert found["tensorrt_rtx"].status == status
    assert words in found["tensorrt_rtx"].detail
    assert found["tensorrt"].status == found["pycuda"].status == "found"
    assert "board" not in found


def test_a_machine_without_a_gpu_still_builds_for_rtx(
    quiet_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings(tmp_path)["tensorrt_rtx"].remedy == "pip install tensorrt-rtx"
    assert findings(tmp_path)["gpu"].status == "optional"
    install(monkeypatch, tensorrt_rtx="1.7.1")
    assert findings(tmp_path)["tensorrt_rtx"].detail.startswith("1.7.1, to parse and build; it runs on")


def test_sensors_of_a_part_are_told_as_such(quiet_path: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(BOARDS / "orin-nano", tmp_path / "board"))
    (root / "sys/class/hwmon/hwmon1/in1_label").write_text("NC\n")
    found = findings(root)["power sensor"]
    assert (found.status, found.detail) == (
        "limited",
        "VDD_CPU_GPU_CV, VDD_SOC: not the whole module, so no energy is told",
    )
