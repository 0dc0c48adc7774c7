"""What the README promises: every command in it is run here; its gate, verdicts, codes and files are as it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from hardbit import cli
from hardbit.zoo import list_models
from hardbit.zoo.table import fill
from hardbit_deploy import cli as board
from hardbit_deploy.verdict import EXIT_CODES, parse_gate
from importing_examples import saved
from onnx_files import quarters, write_blobs
from recipe_examples import RECIPE, write_bars

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
LINES = [re.split(r"\s{2,}", line)[0] for _, block in BLOCKS for line in block.splitlines()]
VERBS_LISTED = re.findall(r"^hardbit (\w+) ?(?:RECIPE|SOURCE|BUNDLE|RESULT)?[.]* {2,}", README, flags=re.M)
DEMO = "hardbit run models/fashion-cnn-w4a4/recipe.toml"
FOR_EXAMPLE = {
    "BUNDLE...": "runs/bars/bundle other.bundle",
    "BUNDLE": "runs/bars/bundle",
    "RECIPE": "recipe.toml",
    "SOURCE": "recipe.toml",
    "RESULT...": "runs/bars/check runs/bars/check/result.json",
}
PLACEHOLDER = re.compile("|".join(map(re.escape, FOR_EXAMPLE)))
HARDBIT = [line for line in dict.fromkeys(LINES) if line.startswith("hardbit ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a recipe of seconds that has been run, two bundles, and the gate of the README."""
    place = tmp_path_factory.mktemp("readme")
    write_bars(place, RECIPE.replace("eps_255 = 8", "eps_255 = 25"))  # the ball that the README's gate speaks of
    assert (
        cli.main(["run", str(place), "--run-dir", str(place / "runs/bars"), "--latency", "off"]) in EXIT_CODES.values()
    )
    shutil.copytree(place / "runs/bars/bundle", place / "other.bundle")
    (gate,) = [block for language, block in BLOCKS if language == "toml"]
    (place / "gate.toml").write_text(gate)
    (place / "models").symlink_to(ROOT / "models")
    saved(quarters(), place, "anybody.onnx")
    write_blobs(place).rename(place / "images.npz")
    return place


@pytest.fixture
def fast_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """latency-v1 takes many seconds; what a command does with its timings is the same."""
    from hardbit_deploy import latency

    monkeypatch.setattr(latency, "FULL", latency.SHORT)


def ended_as_promised(program: str, code: int, text: str) -> bool:
    """A verdict's code and its name on the last lines for what judges; 0 for the rest."""
    if program.split()[1] not in ("run", "check"):
        return code == 0
    return code in EXIT_CODES.values() and any(f"{name} (exit code {code})" in text for name in EXIT_CODES)


@pytest.mark.parametrize("command", [line for line in HARDBIT if line != DEMO])
def test_every_command_of_hardbit_runs(
    command: str, folder: Path, fast_timing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    call = PLACEHOLDER.sub(lambda match: FOR_EXAMPLE[match[0]], command)
    code = cli.main(shlex.split(call)[1:])
    assert ended_as_promised(call, code, capsys.readouterr().out)
    for written in re.findall(r"--(?:junit|json) (\S+)", command):
        assert (folder / written).stat().st_size > 1000


def test_the_board_takes_the_same_arguments_to_the_same_verdict(
    folder: Path, fast_timing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "On a board, `hardbit-deploy check` takes the same arguments and gives the same verdict" in README
    monkeypatch.chdir(folder)
    (command,) = [line for line in HARDBIT if "--gate" in line]
    arguments = shlex.split(command.replace("BUNDLE", FOR_EXAMPLE["BUNDLE"]))[1:]
    codes = [program(arguments) for program in (cli.main, board.main)]
    assert codes[0] == codes[1] in EXIT_CODES.values()
    assert ended_as_promised("hardbit-deploy check", codes[1], capsys.readouterr().out)


def test_every_verb_is_listed_once() -> None:
    assert sorted(VERBS_LISTED) == sorted(cli.VERBS)


def make(target: str) -> list[str]:
    """The commands that `make TARGET` gives, without giving them."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # These tests are run by make themselves: the outer one's flags are none of the inner one's business.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "--no-print-directory", "--dry-run", target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_make_demo_is_the_command_that_the_readme_names() -> None:
    """`tests/test_shipped_model.py` runs that command to its PASS."""
    assert f"`make demo` runs `{DEMO}`" in README
    assert make("demo")[-1] == f".venv/bin/{DEMO}"
    assert (ROOT / DEMO.split()[-1]).is_file()


def test_make_test_lints_and_runs_the_tests_and_so_does_continuous_integration() -> None:
    commands = [line.removeprefix(".venv/bin/").split()[0] for line in make("test") if line.startswith(".venv/bin/")]
    assert [name for name in commands if name != "pip" and not name.startswith("python")] == [
        "ruff", "ruff", "mypy", "lint-imports", "pytest",
    ]  # fmt: skip
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_the_commands_of_other_programs_are_the_ones_that_are_checked_here() -> None:
    others = [line for line in LINES if re.match(r"(make|pip|python|sh|apt-get|docker|git) ", line)]
    assert others == ["make demo", "make test", "pip install ./kernels ./deploy ."]


def test_pip_installs_the_folders_that_make_installs() -> None:
    (command,) = [line for line in LINES if line.startswith("pip ")]
    folders = command.split()[2:]
    assert all((ROOT / folder / "pyproject.toml").is_file() for folder in folders)
    installed = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "-e ./kernels" in line)
    assert [folder.strip("'").removesuffix("[dev]") for folder in re.findall(r"-e (\S+)", installed)] == folders


def test_the_python_that_it_asks_for_is_the_one_that_the_package_asks_for() -> None:
    (version,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert f"Python {version} or later on Linux" in README
    (of_board,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "deploy/pyproject.toml").read_text())
    assert f"it needs Python {of_board}, numpy and" in README


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


def test_the_tables_of_models_are_those_of_their_cards() -> None:
    """Where this fails, `hardbit zoo --write README.md` mends it."""
    assert fill(README, ROOT / "README.md", list_models(ROOT / "models")) == README


def test_every_row_of_scores_stands_in_the_card_of_its_model() -> None:
    places = re.findall(r"<!-- zoo ([\w.-]+) -->\n(.*?)\n<!-- /zoo -->", README, flags=re.S)
    assert places
    for name, text in places:
        card = (ROOT / "models" / name / "card.md").read_text(encoding="utf-8").splitlines()
        assert set(text.splitlines()) <= set(card)
