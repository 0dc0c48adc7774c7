"""The training digest: equal for what gives the same weights, unequal for what does not, stable across releases."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from hardbit.recipe import load_recipe, parse_recipe
from hardbit_deploy.errors import HardbitError

MODEL = Path(__file__).parents[2] / "models" / "fashion-cnn-w4a4"
OF_THE_FIRST_RELEASE = "0c6da795c6e504677228cf49fdfe6bd04cd054feda690eef065007a23884f1c1"
FIRST = """\
name = "fashion-cnn-w4a4"
[network]
architecture = "lenet"
channels = [32, 64]
hidden = 128
[data]
set = "fashion-mnist"
[quantization]
weights = 4
activations = 4
[training]
inner_precision = "float32"
[[training.phases]]
epochs = 10
adversary = "fgsm"
learning_rate = 0.003
[[training.phases]]
epochs = 4
steps = 5
learning_rate = 0.0005
schedule = "cosine"
frozen = true
"""


def test_a_recipe_of_the_first_release_keeps_the_digest_that_it_had():
    assert parse_recipe(FIRST).training_digest() == OF_THE_FIRST_RELEASE


@pytest.mark.parametrize(
    "written",
    [
        ("[training]", '[training]\nouter_precision = "float32"\ninner_batch_norm = "batch"\nselect = "last"'),
        ("[training]", '[training]\ndevice = "cpu"\ncheckpoint_minutes = 1'),
        ("frozen = true", 'frozen = true\nema = 0\neps_warmup = 0\nloss = "cross_entropy"'),
        ("frozen = true", 'frozen = true\non_grid = false\nsurrogate = "straight-through"'),
    ],
)
def test_later_keys_at_their_old_meaning_do_not_count(written):
    assert parse_recipe(FIRST.replace(*written)).training_digest() == OF_THE_FIRST_RELEASE


@pytest.mark.parametrize(
    "changed",
    [
        ('inner_precision = "float32"', ""),
        ('inner_precision = "float32"', 'inner_precision = "bfloat16"'),
        ("[training]", '[training]\nouter_precision = "bfloat16"'),
        ("[training]", '[training]\ninner_batch_norm = "running"'),
        ("frozen = true", "frozen = true\nema = 0.99"),
        ("frozen = true", "frozen = true\neps_warmup = 1"),
        ("frozen = true", 'frozen = true\nloss = "trades"'),
        ("frozen = true", "frozen = true\non_grid = true"),
        ("frozen = true", 'frozen = true\nsurrogate = "both"'),
        ("epochs = 10", "epochs = 10\nweights = 8"),
    ],
)
def test_later_keys_with_another_value_do(changed):
    assert parse_recipe(FIRST.replace(*changed)).training_digest() != OF_THE_FIRST_RELEASE


def test_the_weights_that_training_starts_from_count_by_what_they_hold(tmp_path):
    text = FIRST.replace("[training]", '[training]\ninitial_weights = "START.safetensors"')
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"other")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    digests = [parse_recipe(text.replace("START", name), folder=tmp_path).training_digest() for name in ("a", "b", "c")]
    assert digests[0] == digests[1] != digests[2]
    assert OF_THE_FIRST_RELEASE not in digests
    recipe = parse_recipe(text.replace("START", "a"), folder=tmp_path)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(HardbitError, match="the weights that training starts from are missing"):
        recipe.training_digest()


def test_a_teacher_counts_by_its_network_and_weights(tmp_path):
    def digest(teacher):
        text = FIRST.replace("[training]", f'[training]\nteacher = "{teacher}"') + 'loss = "distillation"\n'
        return parse_recipe(text, folder=tmp_path).training_digest()

    def write(name, text, weights):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text(text)
        if weights:
            (tmp_path / name / "weights.safetensors").write_bytes(weights)

    write("one", FIRST, b"one")
    write("renamed", FIRST.replace("cnn-w4a4", "teacher"), b"one")
    write("retrained", FIRST, b"two")
    write("wider", FIRST.replace("hidden = 128", "hidden = 256"), b"one")
    write("untrained", FIRST, None)
    assert digest("one") == digest("renamed")
    assert len({digest("one"), digest("retrained"), digest("wider")}) == 3
    with pytest.raises(HardbitError, match="the teacher has no weights"):
        digest("untrained")


def test_the_shipped_recipe_is_the_one_that_its_weights_carry():
    with safe_open(MODEL / "weights.safetensors", framework="numpy") as file:
        carried = json.loads(file.metadata()["training_digest"])
    assert load_recipe(MODEL).training_digest() == carried
