"""The page on Jetson boards says what the code does: options, sensors, releases, Dockerfile, and what has not run."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from hardbit_deploy import jetson, telemetry
from hardbit_deploy.cli import bench, check
from hardbit_deploy.energy import EnergySettings
from hardbit_deploy.gpu_support import RTX_SUPPORT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/jetson.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    for line in block.splitlines()
]
DOCKER = ROOT / "deploy/docker"


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(heading: str) -> list[list[str]]:
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("command", [line for line in COMMANDS if re.search(r"hardbit-deploy (check|bench)", line)])
def test_every_command_is_one(command: str) -> None:
    words = shlex.split(command)
    place = next(index for index, word in enumerate(words) if word in ("check", "bench"))
    parser = argparse.ArgumentParser()
    {"check": check, "bench": bench}[words[place]].add_arguments(parser)
    parser.parse_args(words[place + 1 :])


def test_the_options_of_a_board_stand_on_the_page() -> None:
    for option in ("--lock-clocks", "--power-mode", "--no-energy", "--quick-latency"):
        assert f"{option}" in PAGE


def test_the_sensors_are_those_that_are_read() -> None:
    told = [re.findall(r"`(\w+)`", row[2]) for row in rows("Energy")]
    assert sorted(map(tuple, told)) == sorted(telemetry._MODULE_POWER)
    settings = EnergySettings()
    assert (settings.rate_hz, settings.idle_s, settings.load_s) == (10, 10, 30)
    assert "at 10 Hz, first for 10 seconds" in section("Energy")
    assert "over 30 seconds of steady load" in section("Energy")


def test_the_releases_are_those_that_are_known() -> None:
    for release, l4t, *_ in rows("Which release has what"):
        assert jetson._JETPACK_OF_L4T[int(l4t.split(".")[0])] == release[0]


def test_the_matrix_of_tensorrt_for_rtx_is_that_of_the_errors() -> None:
    assert RTX_SUPPORT in " ".join(PAGE.split())


def test_jetpacks_tensorrt_is_left_in_place() -> None:
    """By the recipe and by the Dockerfile: nothing of pip's brings a TensorRT, and the environment sees JetPack's."""
    for text in ("\n".join(COMMANDS), (DOCKER / "Dockerfile.l4t").read_text()):
        assert "venv --system-site-packages" in text
        installed = [line for line in text.splitlines() if "pip install" in line]
        assert installed
        assert not [line for line in installed if "tensorrt" in line]


def test_the_dockerfile_starts_from_nvidias_base_and_copies_what_is_there() -> None:
    text = (DOCKER / "Dockerfile.l4t").read_text()
    (base,) = re.findall(r"^ARG BASE=nvcr\.io/nvidia/(l4t-\S+)$", text, flags=re.M)
    assert f"`{base}`" in section("In a container")
    assert "\nFROM ${BASE}\n" in text
    copied = re.findall(r"^COPY (\S+) ", text, flags=re.M)
    ignored = (DOCKER / "Dockerfile.l4t.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for folder in copied:
        assert (ROOT / folder / "pyproject.toml").is_file()
        assert f"!{folder}" in ignored
    assert "docker build -f deploy/docker/Dockerfile.l4t -t hardbit-deploy ." in text
    assert "docker build -f deploy/docker/Dockerfile.l4t -t hardbit-deploy ." in COMMANDS


def test_what_has_not_run_is_said_of_every_part() -> None:
    assert all(row[2].startswith("not ") for row in rows("What has and has not run"))
    assert "not recorded" in PAGE
    assert "not recorded" in (ROOT / "tests/deploy/boards/README.md").read_text()
