"""The train step: shipped weights are taken when they are the recipe's, refused or retrained otherwise."""

import json
from contextlib import nullcontext

import pytest

from hardbit import pipeline
from hardbit.quantize.quantizers import activation_numerics, activation_scale, is_weight_layer
from hardbit.recipe import load_recipe
from hardbit.steps.train import Trained, load_trained_twin, training_plan
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file
from recipe_examples import RECIPE, write_bars


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe that has been trained once, and the weights."""
    folder = tmp_path_factory.mktemp("trained")
    result = pipeline.run(load_recipe(write_bars(folder)), folder / "run", until="train")
    return result, Trained.at(result.folder("train"))


def tensor_bytes(file):
    """A safetensors file without its header, which also holds how long each epoch took."""
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def ship(trained, folder, recipe=RECIPE):
    """The recipe in a fresh folder, with the trained weights beside it."""
    file = write_bars(folder, recipe)
    (folder / "weights.safetensors").write_bytes(trained[1].weights.read_bytes())
    return load_recipe(file)


def test_training_for_real_leaves_weights_and_a_log(trained):
    result, files = trained
    log = files.read_log()
    assert [record["adversary"] for record in log["history"]] == ["fgsm", "pgd"]
    assert log["images"] == 256 - 32
    assert log["validation"]["images"] == 32
    assert log["validation"]["clean"] > 0.5, "bars are easy"
    assert result.steps[0].note.startswith("weights: trained for 2 epochs on 224 images; held-out images: ")


def test_shipped_weights_of_this_recipe_are_taken(trained, tmp_path):
    result = pipeline.run(ship(trained, tmp_path), tmp_path / "run", until="train")
    taken = Trained.at(result.folder("train"))
    assert taken.weights.read_bytes() == trained[1].weights.read_bytes()
    assert result.steps[0].note == "weights: shipped (weights.safetensors)"
    assert taken.read_log()["source"] == "shipped"
    assert taken.read_log()["history"] == trained[1].read_log()["history"]


def test_what_does_not_decide_the_weights_may_change(trained, tmp_path):
    changed = RECIPE.replace("steps = 3", "steps = 9").replace("count = 64", "count = 10")
    result = pipeline.run(ship(trained, tmp_path, changed), tmp_path / "run", until="train")
    assert result.steps[0].note == "weights: shipped (weights.safetensors)"


def test_shipped_weights_of_another_recipe_are_not_taken(trained, tmp_path):
    recipe = ship(trained, tmp_path, RECIPE.replace("learning_rate = 0.01", "learning_rate = 0.02"))
    options = pipeline.RunOptions(may_train=False)
    with pytest.raises(HardbitError, match=r"is not trained: .*weights\.safetensors was trained by another recipe; "):
        pipeline.run(recipe, tmp_path / "run", until="train", options=options)
    result = pipeline.run(recipe, tmp_path / "run", until="train")
    assert result.steps[0].note.startswith("weights: trained for 2 epochs")


def test_retraining_gives_the_same_weights_bit_for_bit(trained, tmp_path):
    recipe = ship(trained, tmp_path)
    result = pipeline.run(recipe, tmp_path / "run", until="train", options=pipeline.RunOptions(retrain=True))
    assert result.steps[0].note.startswith("weights: trained for 2 epochs")
    again = Trained.at(result.folder("train"))
    assert tensor_bytes(again.weights) == tensor_bytes(trained[1].weights)


def test_weights_given_by_hand_say_so(trained, tmp_path):
    recipe = load_recipe(write_bars(tmp_path, RECIPE.replace("learning_rate = 0.01", "learning_rate = 0.02")))
    options = pipeline.RunOptions(weights=trained[1].weights, may_train=False)
    result = pipeline.run(recipe, tmp_path / "run", until="train", options=options)
    assert result.steps[0].note == "weights: given (weights.safetensors), trained by another recipe"
    assert Trained.at(result.folder("train")).read_log()["source"] == "given"


def test_weights_that_do_not_fit_the_network_are_refused(trained, tmp_path):
    recipe = load_recipe(write_bars(tmp_path, RECIPE.replace("hidden = 8", "hidden = 9")))
    with pytest.raises(HardbitError, match="the weights were made by another recipe"):
        pipeline.run(recipe, tmp_path / "run", options=pipeline.RunOptions(weights=trained[1].weights))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(HardbitError, match=r"text\.safetensors: this is not a weights file of hardbit"):
        pipeline.run(recipe, tmp_path / "run", options=pipeline.RunOptions(weights=tmp_path / "text.safetensors"))
    with pytest.raises(HardbitError, match="there is no such weights file"):
        pipeline.run(recipe, tmp_path / "run", options=pipeline.RunOptions(weights=tmp_path / "none.safetensors"))


def test_without_weights_and_without_leave_to_train(tmp_path):
    recipe = load_recipe(write_bars(tmp_path))
    with pytest.raises(HardbitError, match=r"bars: the network of this recipe is not trained: there is no "):
        pipeline.run(recipe, tmp_path / "run", options=pipeline.RunOptions(may_train=False))


def test_other_training_images_train_again(trained, tmp_path):
    recipe = load_recipe(write_bars(tmp_path))
    pipeline.run(recipe, tmp_path / "run", until="train")
    (tmp_path / "bars.npz").unlink()
    with pytest.raises(HardbitError, match="there is no such file"):
        pipeline.run(recipe, tmp_path / "run", until="train")


def test_the_plan_is_the_recipe_in_the_words_of_the_trainer(tmp_path):
    recipe = load_recipe(write_bars(tmp_path))
    plan = training_plan(recipe)
    assert plan.epochs == 2
    assert (plan.seed, plan.threads, plan.batch_size) == (0, 1, 16)
    fgsm, pgd = (phase.adversary for phase in plan.phases)
    assert (fgsm.kind, fgsm.eps_255, fgsm.step_255, fgsm.norm) == ("fgsm", 8.0, 10.0, "linf")
    assert (pgd.kind, pgd.steps, pgd.step_255) == ("pgd", 2, 8.0)
    assert [phase.frozen for phase in plan.phases] == [False, True]


PUPIL = (
    RECIPE.replace('"bars"', '"pupil"')
    .replace("weights = 4\n", "weights = 2\n")
    .replace(
        "batch_size = 16",
        'batch_size = 16\nselect = "best"\nteacher = "../bars"\ninitial_weights = "../bars/weights.safetensors"',
    )
    .replace('adversary = "fgsm"', 'adversary = "trades"\nsteps = 2\nloss = "distillation"\nema = 0.9\nweights = 8')
)


def test_a_recipe_that_goes_on_from_another_ones_network_and_learns_from_it(trained, tmp_path):
    for name in ("bars", "pupil"):
        (tmp_path / name).mkdir()
    ship(trained, tmp_path / "bars")
    recipe = load_recipe(write_bars(tmp_path / "pupil", PUPIL))
    plan = training_plan(recipe)
    assert plan.initial.digest == plan.teacher.digest == sha256_file(trained[1].weights)
    assert (plan.phases[0].loss, plan.phases[0].ema, plan.phases[0].weights) == ("distillation", 0.9, 8)
    assert (plan.select, plan.probe.eps_255, plan.probe.norm) == ("best", 8.0, "linf")
    result = pipeline.run(recipe, tmp_path / "run", until="train")
    log = Trained.at(result.folder("train")).read_log()
    assert [record["bits"]["weights"] for record in log["history"]] == [8, 2]
    assert log["epoch"] == 2
    before = recipe.training_digest()
    (tmp_path / "bars" / "weights.safetensors").write_bytes(b"others")
    assert recipe.training_digest() != before, "weights that training starts from decide its result"


class Remarks:
    """Progress that keeps what it is told."""

    def __init__(self):
        self.remarks = []

    def remark(self, text):
        self.remarks.append(text)

    def step_started(self, name, title): ...

    def step_ended(self, name, note, seconds, *, skipped): ...

    def training(self):
        return nullcontext()

    def checking(self):
        return nullcontext()


def test_overfitting_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("hardbit.train.loop.is_overfitting", lambda phase: phase[-1]["epoch"] == 2)
    progress = Remarks()
    result = pipeline.run(load_recipe(write_bars(tmp_path)), tmp_path / "run", until="train", progress=progress)
    assert progress.remarks[-1].startswith("training: catastrophic overfitting in epoch 2: accuracy under PGD fell")
    log = Trained.at(result.folder("train")).read_log()
    assert [record["overfitting"] for record in log["history"]] == [False, True]


def test_the_weights_carry_the_recipe_that_made_them(trained):
    content = trained[1].weights.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert json.loads(header["recipe"])["name"] == "bars"
    assert json.loads(header["training_digest"]) == trained[1].read_log()["training_digest"]


def test_one_bit_single_places_and_the_rule_of_calibration_reach_the_network(tmp_path):
    few = "weights = 1\nactivations = 2\ncalibration = 'saturating'\nlayers = { relu1 = 4, fc1 = 32, conv2 = 3 }"
    file = write_bars(tmp_path, RECIPE.replace("weights = 4\nactivations = 4", few))
    result = pipeline.run(load_recipe(file), tmp_path / "run", until="train")
    twin = load_trained_twin(load_recipe(file), Trained.at(result.folder("train")).weights)
    assert [activation_numerics(getattr(twin, name)).bits for name in ("relu1", "relu2", "relu3")] == [4, 2, 2]
    assert activation_scale(twin.relu2).calibration == "saturating"
    assert [int(layer.quant_weight().bit_width) for layer in (twin.conv1, twin.conv2, twin.fc2)] == [8, 3, 8]
    assert not is_weight_layer(twin.fc1)


def test_a_place_that_the_network_does_not_have_is_named_before_training(tmp_path):
    file = write_bars(tmp_path, RECIPE.replace("activations = 4", "activations = 4\nlayers.conv3 = 2"))
    with pytest.raises(HardbitError, match=r"quantization.layers.conv3: the network has no place 'conv3'.*conv2"):
        pipeline.run(load_recipe(file), tmp_path / "run", until="train")
