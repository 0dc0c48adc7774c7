"""Jetson boards as files: releases, packages, power mode, GPU clock, and which runtime serves which GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hardbit_deploy import gpu_support, jetson, preflight
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gpu_support import Gpu, refuse_unsupported_gpu, rtx_obstacle, visible_gpus
from hardbit_deploy.jetson import PowerMode, describe_jetson, read_power_mode

BOARDS = Path(__file__).parent / "boards"


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH for fake tools: this machine's own would answer for the recorded board."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(jetson, "find_tool", lambda name: shutil.which(name))
    return folder


def write_tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_an_orin_nano_with_jetpack() -> None:
    board = describe_jetson(BOARDS / "orin-nano")
    assert board is not None
    assert (board.l4t, board.jetpack, board.tensorrt) == ("36.4.3", "6.2.1", "10.3.0.30")
    assert board.has_tensorrt_for_python
    assert board.compute_capability == (8, 7)
    assert board.power_mode == PowerMode(1, "25W")
    assert board.gpu_clock is not None
    assert (board.gpu_clock.min_mhz, board.gpu_clock.max_mhz, board.gpu_clock.locked) == (306, 1020, False)
    assert (board.memory_mb, board.available_mb) == (7619, 5000)


def test_an_agx_orin_without_the_package_of_jetpack_is_known_by_its_release() -> None:
    board = describe_jetson(BOARDS / "agx-orin")
    assert board is not None
    assert (board.l4t, board.jetpack, board.tensorrt) == ("36.4.0", "6", "10.3.0.30")
    assert not board.has_tensorrt_for_python
    assert board.power_mode is None
    assert board.gpu_clock is not None
    assert board.gpu_clock.locked


def test_a_thor_has_another_name_for_its_gpu_and_a_mode_without_a_table() -> None:
    board = describe_jetson(BOARDS / "thor")
    assert board is not None
    assert (board.l4t, board.jetpack, board.tensorrt) == ("38.2.0", "7.0", "10.13.3.9")
    assert board.compute_capability == (11, 0)
    assert board.power_mode == PowerMode(1, "1")
    assert board.gpu_clock is not None
    assert board.gpu_clock.max_mhz == 1575


def test_another_machine_is_no_jetson(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5\0")
    assert describe_jetson(tmp_path) is None
    assert "jetpack" not in preflight.describe_machine(tmp_path, load_interval_s=0.01)


@pytest.mark.parametrize(
    ("answer", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2", PowerMode(2, "MAXN_SUPER")),
        ("NVPM VERB: Current mode: NV Power Mode: 15W\n0", PowerMode(0, "15W")),
        ("NVPM ERROR: failed to read the mode", PowerMode(1, "25W")),  # the files say so
    ],
)
def test_nvpmodel_is_asked_before_its_files(tools: Path, answer: str, mode: PowerMode) -> None:
    write_tool(tools, "nvpmodel", f'[ "$1" = -q ] || exit 9\nprintf "%s\\n" "{answer}"')
    assert read_power_mode(BOARDS / "orin-nano") == mode


def test_the_grade_of_a_timing_knows_the_gpu_clock() -> None:
    free = preflight.describe_machine(BOARDS / "orin-nano", load_interval_s=0.01)
    assert (free["l4t"], free["jetpack"], free["power_mode"]) == ("36.4.3", "6.2.1", "25W")
    assert free["gpu_clocks_locked"] is False
    quiet = {"foreign_load": 0.0, "clocks_locked": True, "boost": None}
    graded = preflight.grade({**free, **quiet})
    assert (graded.letter, graded.reasons) == ("B", ("the GPU's clock may move between 306 and 1020 MHz",))
    locked = preflight.describe_machine(BOARDS / "agx-orin", load_interval_s=0.01)
    assert preflight.grade({**locked, **quiet}).letter == "A"


def test_every_tree_says_which_gpu_it_has() -> None:
    assert [gpu.compute_capability for name in ("orin-nano", "thor") for gpu in visible_gpus(BOARDS / name)] == [
        (8, 7),
        (11, 0),
    ]


def test_nvidia_smi_tells_of_the_other_gpus(tools: Path, tmp_path: Path) -> None:
    assert visible_gpus(tmp_path) == ()
    answer = "NVIDIA H100 80GB HBM3, 9.0, 570.86.15, 81559\\nNVIDIA RTX 6000, 12.0, 580.1, [N/A]\\nOld, [N/A], 1, 2"
    write_tool(tools, "nvidia-smi", f'printf "{answer}\\n"')
    assert visible_gpus(tmp_path) == (
        Gpu("NVIDIA H100 80GB HBM3", (9, 0), "570.86.15", 81559),
        Gpu("NVIDIA RTX 6000", (12, 0), "580.1", None),
    )
    write_tool(tools, "nvidia-smi", 'echo "NVIDIA-SMI has failed because it could not talk to the driver"; exit 9')
    assert visible_gpus(tmp_path) == ()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_tensorrt_for_rtx_serves_these(capability: tuple[int, int]) -> None:
    assert rtx_obstacle(Gpu("a GPU", capability)) is None
    refuse_unsupported_gpu("tensorrt_rtx", Gpu("a GPU", capability))


@pytest.mark.parametrize("capability", [(7, 0), (7, 2), (8, 7), (9, 0), (10, 0), (11, 0)])
def test_tensorrt_for_rtx_refuses_the_others_and_tensorrt_does_not(capability: tuple[int, int]) -> None:
    gpu = Gpu("a GPU", capability)
    with pytest.raises(HardbitError, match=rf"does not serve a GPU \(compute capability {capability[0]}\.") as caught:
        refuse_unsupported_gpu("tensorrt_rtx", gpu)
    assert gpu_support.RTX_SUPPORT in caught.value.message
    assert 'the target "tensorrt"' in caught.value.remedy
    refuse_unsupported_gpu("tensorrt", gpu)


def test_tensorrt_for_rtx_runs_on_no_jetson() -> None:
    (gpu,) = visible_gpus(BOARDS / "orin-nano")
    with pytest.raises(HardbitError, match="does not run on a Jetson"):
        refuse_unsupported_gpu("tensorrt_rtx", gpu)


@pytest.mark.tensorrt
def test_the_matrix_is_that_of_the_installed_tensorrt_for_rtx() -> None:
    runtime = pytest.importorskip("tensorrt_rtx")
    names = [name[2:] for name in dir(runtime.ComputeCapability) if name.startswith("SM")]
    built_for = {(int(digits[:-1]), int(digits[-1])) for digits in names}
    everything = {(major, minor) for major in range(5, 14) for minor in range(10)}
    served = {pair for pair in everything if rtx_obstacle(Gpu("a GPU", pair)) is None}
    assert built_for == {pair for pair in served if pair[0] != 12} | {(12, 0), (12, 1)}
