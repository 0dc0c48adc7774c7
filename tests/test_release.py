"""Publishing writes four files beside the recipe, and only after a PASS over all images."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from hardbit import cli, release
from hardbit.data import load_images
from hardbit.pipeline import RunResult
from hardbit.recipe import load_recipe
from hardbit.report.card import model_card
from hardbit.zoo.card import Card, card_text, read_card
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file
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


def test_the_card_for_machines_says_what_the_card_for_people_says(finished):
    folder, _ = finished
    card = read_card(folder / "card.json")
    assert (folder / "card.md").read_text() == model_card(card)
    document = json.loads((folder / "run/check/result.json").read_text())
    assert [attack.survivors for attack in card.attacks] == [attack["survivors"] for attack in document["attacks"]]
    log = json.loads((folder / "run/train/training.json").read_text())
    assert card.data.sha256 == log["data_sha256"] == load_images(f"npz:{folder / 'bars.npz'}", "train").sha256()
    assert card.data.provenance == "bars.npz train"
    assert card.data.images == 256 - 32
    assert card.training.seconds == pytest.approx(sum(record["seconds"] for record in log["history"]))
    assert [phase.adversary for phase in card.training.phases] == ["fgsm", "pgd-2"]
    assert card.engine.integer_layers == 4
    assert card.engine.bytes == (folder / "run/bundle/engine.onnx").stat().st_size
    assert card.provenance.weights_sha256 == sha256_file(folder / "weights.safetensors")
    assert card.latency is None


def test_the_zoo_lists_it(finished, capsys):
    folder, _ = finished
    assert cli.main(["zoo", "--models", str(folder.parent), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert card_text(read_card(folder / "card.json")) in [
        card_text(Card.model_validate(card)) for card in document["models"]
    ]


def test_the_next_run_takes_the_published_weights(finished, capsys):
    folder, _ = finished
    arguments = ["run", str(folder / "recipe.toml"), "--run-dir", str(folder / "again"), "--until", "train"]
    assert cli.main(arguments) == 0
    assert "weights: shipped" in capsys.readouterr().out
    first, again = (json.loads((folder / run / "train/training.json").read_text()) for run in ("run", "again"))
    for key in ("data", "data_sha256", "images", "history"):
        assert again[key] == first[key], "what the card needs travels in the weights"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["verdict"].update(name="FAIL"), "the verdict is FAIL, and only a PASS is published"),
        (lambda d: d["verdict"].update(name="INCONCLUSIVE"), "the verdict is INCONCLUSIVE, and only a PASS"),
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
    with pytest.raises(HardbitError, match=message):
        release.publish(load_recipe(tmp_path / "recipe.toml"), RunResult(tmp_path / "run", ()), "hardbit run")
    assert {file.name for file in Path(tmp_path).iterdir()} == {"run", "recipe.toml", "bars.npz"}


def test_notes_and_an_alarm_that_the_gate_accepts_are_on_the_card(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copyfile(folder / "bars.npz", tmp_path / "bars.npz")
    (tmp_path / "recipe.toml").write_text('notes = "Square finds more."\n' + (folder / "recipe.toml").read_text())
    path = tmp_path / "run/check/result.json"
    document = json.loads(path.read_text())
    alarm = {"name": "white_box", "status": "accepted", "value": 0.1, "threshold": 0.01, "reason": "50 of 64 images"}
    alarm |= {"accepted_because": "two bits mask gradients", "accepted_up_to": 0.2}
    path.write_text(json.dumps({**document, "alarms": [*document["alarms"], alarm]}))
    release.publish(load_recipe(tmp_path), RunResult(tmp_path / "run", ()), "hardbit run")
    text = (tmp_path / "card.md").read_text()
    assert "- Square finds more." in text
    assert "- ALARM: white box (50 of 64 images); the gate accepts it because two bits mask gradients." in text


def test_publishing_a_run_without_a_check_is_refused(finished, capsys):
    folder, _ = finished
    arguments = ["run", str(folder / "recipe.toml"), "--run-dir", str(folder / "run"), "--until", "bundle", "--publish"]
    assert cli.main(arguments) == 64
    assert "cannot be published" in capsys.readouterr().err
