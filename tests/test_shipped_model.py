"""The model that ships: its own command passes, its card says what it scores, and the same network trained on clean
images breaks the very same promise."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hardbit import cli
from hardbit.data import load_images
from hardbit.recipe import load_recipe
from hardbit.train.weights import read_weights_metadata
from hardbit_deploy.results import load_result
from hardbit_deploy.storage import sha256_file

MODEL = Path(__file__).parents[1] / "models/fashion-cnn-w4a4"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo with every image and attack; latency is measured shortly."""
    folder = tmp_path_factory.mktemp("shipped")
    code = cli.main(["run", str(MODEL), "--run-dir", str(folder), "--latency", "short"])
    return folder, code


def test_the_demo_passes_with_the_shipped_weights(run):
    folder, code = run
    assert code == 0
    assert sha256_file(folder / "train/weights.safetensors") == sha256_file(MODEL / "weights.safetensors")
    assert (folder / "report/report.html").stat().st_size > 50_000


def test_the_shipped_model_keeps_what_was_asked_of_it(run):
    attacks = {attack["name"]: attack for attack in load_result(run[0] / "check")["attacks"]}
    assert attacks["clean"]["images"] == 2000
    assert attacks["clean"]["rate"] >= 0.84
    assert attacks["worst_case"]["rate"] >= 0.66
    assert {attack["settings"].get("restarts") for name, attack in attacks.items() if "pgd-20" in name} == {3}


def test_the_card_says_what_the_engine_scores(run):
    """Counts to one image in two hundred: another CPU may round a gradient otherwise, and take another path."""
    card = (MODEL / "card.md").read_text()
    scores = card.partition("Engine against")[0]
    counts = [int(count.replace(",", "")) for count in re.findall(r"\| ([\d,]+) of 2,000 \| [\d.]+", scores)]
    measured = [attack["survivors"] for attack in load_result(run[0] / "check")["attacks"]]
    assert counts == pytest.approx(measured, abs=10)
    assert "--retrain --publish" in card


def test_weights_recipe_and_manifest_belong_together(run):
    recipe = load_recipe(MODEL)
    assert read_weights_metadata(MODEL / "weights.safetensors")["training_digest"] == recipe.training_digest()
    manifest = json.loads((MODEL / "manifest.json").read_text())
    assert manifest["provenance"]["weights_sha256"] == sha256_file(MODEL / "weights.safetensors")
    assert len(load_images(recipe.evaluation_set, "test").labels) >= 2000


CLEAN = """\
name = "clean"
[network]
architecture = "lenet"
[data]
set = "npz:clean.npz"
evaluation.count = 1000
[quantization]
weights = 4
activations = 4
[threat_model]
eps_255 = 25
[suite]
name = "quick"
[training]
batch_size = 32
[[training.phases]]
epochs = 3
adversary = "none"
learning_rate = 0.003
[gate.robust]
reference = 0.66
"""


def test_a_network_trained_on_clean_images_fails_the_same_gate(tmp_path, capsys, monkeypatch):
    data = load_images(f"npz:{MODEL / 'images.npz'}", "test")
    images, labels = np.array(data.images), np.array(data.labels)
    np.savez(
        tmp_path / "clean.npz", x_train=images[1000:], y_train=labels[1000:], x_test=images[:1000], y_test=labels[:1000]
    )
    (tmp_path / "recipe.toml").write_text(CLEAN)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "recipe.toml", "--latency", "off", "--until", "bundle"]) == 0
    files = ["--junit", "out.xml", "--json", "out.json"]
    assert cli.main(["check", "runs/clean/bundle", "--no-latency", *files]) == 1
    document = json.loads(Path("out.json").read_text())
    rates = {attack["name"]: attack["rate"] for attack in document["attacks"]}
    assert document["verdict"]["name"] == "FAIL"
    assert rates["clean"] > 0.7
    assert rates["worst_case"] < 0.2
    assert "<failure" in Path("out.xml").read_text()
    assert "breaks the promise of 66.0 %" in capsys.readouterr().out
