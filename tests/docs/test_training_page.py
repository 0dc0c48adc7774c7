"""What the page on training promises: its commands are commands, its recipes recipes, its words those of the code."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from hardbit import cli
from hardbit.recipe import load_recipe, parse_recipe, schema
from hardbit.train import losses, monitor
from recipe_examples import RECIPE, write_bars

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.S)
COMMANDS = [re.split(r"\s{2,}#", line)[0] for kind, block in BLOCKS if not kind for line in block.splitlines()]
TABLES = {"network": 'architecture = "lenet"', "data": 'set = "fashion-mnist"'}


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("hardbit train")])
def test_every_command_of_hardbit_trains(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bars(tmp_path, RECIPE.replace("epochs = 1", "epochs = 1\nema = 0.9", 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=_Client))
    assert cli.main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "runs" / "bars" / "train" / "weights.safetensors").is_file()
    assert list((tmp_path / "runs" / "bars").glob("tensorboard/*/events*"))


class _Client:
    """An MLflow client that takes everything."""

    def __init__(self, tracking_uri: str) -> None:
        assert tracking_uri == "http://localhost:5000"

    def create_run(self, *_: Any, **__: Any) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="1"))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("torchrun")])
def test_every_command_of_torchrun_starts_the_module_hardbit(command: str) -> None:
    parsed = get_args_parser().parse_args(shlex.split(command)[1:])
    assert parsed.module
    assert [parsed.training_script, *parsed.training_script_args] == ["hardbit", "train", "recipe.toml"]


def test_there_are_no_other_commands() -> None:
    others = [line for line in COMMANDS if not line.startswith(("hardbit train", "torchrun"))]
    assert others == ["hardbit run recipe.toml", "tensorboard --logdir runs"]  # the README's tests run the first


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "toml"])
def test_every_example_is_a_recipe_of_any_network(block: str, tmp_path: Path) -> None:
    (tmp_path / "float").mkdir()
    file = write_bars(tmp_path / "float")
    (tmp_path / "float" / "weights.safetensors").write_bytes(b"")
    text = 'name = "example"\n'
    for table, key in TABLES.items():
        if f"[{table}]" in block:
            block = block.replace(f"[{table}]", f"[{table}]\n{key}")
        else:
            text += f"[{table}]\n{key}\n"
    (tmp_path / "mine").mkdir()
    assert parse_recipe(text + block, folder=tmp_path / "mine").training.phases
    assert load_recipe(file).name == "bars"


def rows(heading: str) -> list[str]:
    """The first column of the table under a heading."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", PAGE, flags=re.S | re.M)
    return [
        word for word in re.findall(r'^\| `"?([\w-]+)"?` \|', part, flags=re.M) if word not in ("adversary", "loss")
    ]


def choices(key: str) -> list[str]:
    return list(schema.Phase.model_fields[key].annotation.__args__)  # type: ignore[union-attr]


def test_every_adversary_and_every_loss_is_explained() -> None:
    assert rows("Adversaries") == choices("adversary")
    assert rows("Losses") == choices("loss")


def test_figures_of_the_text_are_those_of_the_code() -> None:
    assert f"when PGD is {100 * monitor.FALL:.0f} points or more" in PAGE
    assert "5/6 KL(teacher, adversarial)" in PAGE
    assert losses._ADVERSARIAL_SHARE == 5 / 6
    assert "every ten minutes within one (`checkpoint_minutes`)" in PAGE
    assert schema.Training.model_fields["checkpoint_minutes"].default == 10


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", PAGE))))
def test_every_link_leads_somewhere(link: str) -> None:
    file, _, anchor = link.partition("#")
    target = Path(__file__).parents[2] / "docs" / file if file else None
    text = target.read_text(encoding="utf-8") if target else PAGE
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, flags=re.M)
    }
    assert not anchor or anchor in headings
