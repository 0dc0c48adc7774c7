"""What the README promises exists: its commands, its gate, its verdicts, its files."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from hardbit.cli import VERBS
from hardbit_deploy.verdict import EXIT_CODES, parse_gate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
COMMANDS = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("hardbit ")]


def test_every_verb_is_listed_once() -> None:
    listed = [command.split()[1] for command in COMMANDS if "  " in command]
    assert sorted(listed) == sorted(VERBS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    call = re.split(r"\s{2,}", command)[0].replace("...", "")
    verb, *arguments = shlex.split(call)[1:]
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"hardbit.cli.{verb}").add_arguments(parser)
    parser.parse_args(arguments)


def test_every_target_of_make_exists() -> None:
    targets = re.findall(r"^make ([\w-]+)", README, flags=re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


def test_the_gate_is_a_gate() -> None:
    tomllib = pytest.importorskip("tomllib")
    (text,) = [block for language, block in BLOCKS if language == "toml"]
    gate = parse_gate(tomllib.loads(text))
    assert gate.clean is not None
    assert gate.clean.reference - gate.clean.margin == pytest.approx(0.83)  # as its comment says


def test_the_exit_codes_are_those_of_the_harness() -> None:
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| (\d+) \|", README, flags=re.M))
    assert {name: int(code) for name, code in rows.items()} == EXIT_CODES


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_picture_is_light_enough_to_load() -> None:
    assert (ROOT / "docs" / "report.png").stat().st_size < 300_000
