"""Publishing writes three files beside the recipe, and only after a PASS over all images."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from hardbit import cli, release
from hardbit.recipe import load_recipe
from hardbit_deploy.errors import HardbitError
from recipe_examples import RECIPE, write_bars

GATE = """
[gate.clean]
reference = 0.5
margin = 0.2
"""
# Wide enough, and attacked gently enough, that no alarm has a reason to go off.
CHANGES = {"[4, 4]": "[8, 16]", "hidden = 8": "hidden = 32", "eps_255 = 8": "eps_255 = 2", "steps = 3": "steps = 10"}
PROMISE = functools.reduce(lambda text, change: text.replace(*change), CHANGES.items(), RECIPE) + GATE


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    recipe = write_bars(folder, PROMISE)
    code = cli.main(["run", str(recipe), "--run-dir", str(folder / "run"), "--latency", "off", "--publish"])
    return folder, code


def test_weights_card_and_manifest_lie_beside_the_recipe(finished):
    folder, code = finished
    assert code == 0
    assert (folder / "weights.safetensors").read_bytes() == (folder / "run/train/weights.safetensors").read_bytes()
    assert (folder / "manifest.json").read_bytes() == (folder / "run/bundle/manifest.json").read_bytes()
    card = (folder / "card.md").read_text()
    document = json.loads((folder / "run/check/result.json").read_text())
    worst = document["attacks"][-1]
    assert f"| {worst['survivors']} of {worst['images']} |" in card
    assert "one restart" in card or "1 restart" in card
    assert f"hardbit run {folder / 'recipe.toml'} --retrain --publish" in card
    assert document["bundle"]["manifest_sha256"] in card


def test_the_next_run_takes_the_published_weights(finished, capsys):
    folder, _ = finished
    arguments = ["run", str(folder / "recipe.toml"), "--run-dir", str(folder / "again"), "--until", "train"]
    assert cli.main(arguments) == 0
    assert "weights: shipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["verdict"].update(name="FAIL"), "the verdict is FAIL, and only a PASS is published"),
        (lambda d: d["suite"].update(images=10), "10 images were checked, the recipe names 64"),
    ],
)
def test_anything_less_writes_nothing(finished, tmp_path, change, message):
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copyfile(folder / "recipe.toml", tmp_path / "recipe.toml")
    shutil.copyfile(folder / "bars.npz", tmp_path / "bars.npz")
    path = tmp_path / "run/check/result.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    from hardbit.pipeline import RunResult

    with pytest.raises(HardbitError, match=message):
        release.publish(load_recipe(tmp_path / "recipe.toml"), RunResult(tmp_path / "run", ()), "hardbit run")
    assert {file.name for file in Path(tmp_path).iterdir()} == {"run", "recipe.toml", "bars.npz"}


def test_publishing_a_run_without_a_check_is_refused(finished, capsys):
    folder, _ = finished
    arguments = ["run", str(folder / "recipe.toml"), "--run-dir", str(folder / "run"), "--until", "bundle", "--publish"]
    assert cli.main(arguments) == 64
    assert "cannot be published" in capsys.readouterr().err
