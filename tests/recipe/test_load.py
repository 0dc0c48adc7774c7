"""Recipes: what a user may write, what is filled in, and how each mistake is named."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardbit import targets
from hardbit.quantize.profiles import PROFILES
from hardbit.recipe import RecipeError, combinations, load_recipe, parse_recipe
from hardbit.recipe.schema import Quantization, Target
from hardbit_deploy.errors import HardbitError

MODEL = Path(__file__).parents[2] / "models" / "fashion-cnn-w4a4" / "recipe.toml"

SMALL = """\
name = "small"
[network]
architecture = "lenet"
[data]
set = "fashion-mnist"
[[training.phases]]
epochs = 1
"""


def problems(text: str, **options) -> list[str]:
    """Every problem of a recipe, as the user reads them."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, **options)
    return str(caught.value).splitlines()


def test_a_few_lines_are_a_recipe():
    recipe = parse_recipe(SMALL)
    assert recipe.network.options() == {
        "classes": 10,
        "input_shape": (1, 28, 28),
        "channels": (16, 32),
        "hidden": 100,
    }
    assert (recipe.threat_model.norm, recipe.threat_model.eps_255) == ("linf", 25.0)
    assert (recipe.suite.name, recipe.suite.steps, recipe.suite.restarts) == ("standard", 20, 3)
    assert recipe.gate.document() == {"settings": {"confidence": 0.95, "power": 0.8}}


def test_relative_paths_start_from_the_folder_of_the_recipe():
    recipe = load_recipe(MODEL)
    assert recipe.weights_path == MODEL.parent / "weights.safetensors"
    assert recipe.evaluation_set == f"npz:{MODEL.parent / 'images.npz'}"
    assert recipe.data_set == "fashion-mnist"
    assert load_recipe(MODEL.parent) == recipe


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("", {"adversary": "pgd", "steps": 7, "step_size_255": 2.5 * 25 / 7, "eps_255": 25.0, "random_start": True}),
        ('adversary = "pgd"\nsteps = 2', {"step_size_255": 25.0}),
        ('adversary = "fgsm"', {"steps": 1, "step_size_255": 31.25, "eps_255": 25.0, "random_start": True}),
        ('adversary = "fgsm"\nrandom_start = false', {"step_size_255": 25.0}),
        ('adversary = "n-fgsm"\neps_255 = 8', {"step_size_255": 8.0, "eps_255": 8.0}),
        ('adversary = "none"', {"steps": 0, "step_size_255": 0.0, "eps_255": 0.0, "random_start": False}),
    ],
)
def test_defaults_of_a_phase_follow_from_its_adversary_and_the_threat_model(phase, expected):
    resolved = parse_recipe(SMALL + phase).training.phases[0].model_dump()
    assert {key: resolved[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("suite", "name", "steps"),
    [
        ('name = "quick"', "quick", 10),
        ('name = "quick"\nsteps = 10', "quick", 10),
        ("steps = 50", "custom", 50),
        ('name = "custom"\nsteps = 20', "custom", 20),
        ('name = "quick"\nseed = 3', "quick", 10),
    ],
)
def test_a_suite_that_overrides_something_is_called_custom(suite, name, steps):
    recipe = parse_recipe(SMALL + "[suite]\n" + suite)
    assert (recipe.suite.name, recipe.suite.steps) == (name, steps)


@pytest.mark.parametrize(
    ("bits", "surrogates", "queries"),
    [
        ("weights = 4\nactivations = 4", ("straight-through",), 0),
        ("weights = 32\nactivations = 32", ("straight-through",), 0),
        ("weights = 2\nactivations = 4", ("straight-through", "smooth"), 0),
        ("weights = 4\nactivations = 3", ("straight-through", "smooth"), 500),
        ('[quantization.layers]\n"relu1" = 1', ("straight-through", "smooth"), 500),
    ],
)
def test_a_named_suite_is_stronger_where_few_bits_mask_gradients(bits, surrogates, queries):
    recipe = parse_recipe(f'{SMALL}[suite]\nname = "quick"\n[quantization]\n{bits}\n')
    assert (recipe.suite.name, recipe.suite.surrogates, recipe.suite.square_queries) == ("quick", surrogates, queries)
    assert parse_recipe(recipe.resolved_toml()) == recipe
    assert "transfer" not in recipe.suite.document()


MISTAKES = {
    "unknown key": (
        SMALL + "learing_rate = 1",
        "recipe:8: training.phases[0].learing_rate: unknown key; did you mean 'learning_rate'?",
    ),
    "unknown section": (SMALL + "[quantisation]", "recipe:8: quantisation: unknown key; did you mean 'quantization'?"),
    "nothing similar": (SMALL + "[target]\nxyz = 1", "recipe:9: target.xyz: unknown key; known keys: name, float16"),
    "wrong type": (
        SMALL.replace("epochs = 1", 'epochs = "1"'),
        "recipe:7: training.phases[0].epochs: '1' should be a valid integer",
    ),
    "a number for a truth": (
        SMALL + "random_start = 1",
        "recipe:8: training.phases[0].random_start: 1 should be a valid boolean",
    ),
    "out of range": (
        SMALL.replace("epochs = 1", "epochs = 0"),
        "recipe:7: training.phases[0].epochs: 0 should be greater than or equal to 1",
    ),
    "not finite": (
        SMALL + "learning_rate = nan",
        "recipe:8: training.phases[0].learning_rate: nan should be a finite number",
    ),
    "not a table": (
        "network = 3\n" + SMALL.replace('[network]\narchitecture = "lenet"', ""),
        "recipe:1: network: 3 should be a table",
    ),
    "no such choice": (
        SMALL.replace("lenet", "vgg"),
        "recipe:3: network.architecture: 'vgg' is not among the choices; choose 'lenet', 'vgg-small', 'resnet8', "
        "'resnet20', 'resnet18', 'wrn-16-4', 'mobilenetv2' or 'vit'",
    ),
    "bits that no profile has": (
        SMALL + "[quantization]\nweights = 5",
        "recipe:9: quantization.weights: 5 is not among the choices; choose 32, 8, 7, 4, 3, 2 or 1",
    ),
    "bits of one place that no profile has": (
        SMALL + '[quantization.layers]\n"stages.0.conv1" = 6',
        "recipe:9: quantization.layers.stages.0.conv1: 6 is not among the choices; choose 32, 8, 7, 4, 3, 2 or 1",
    ),
    "width of a place that is no number": (
        SMALL + "[quantization]\nlayers.conv1 = true",
        "recipe:9: quantization.layers.conv1: True is not among the choices; choose 32, 8, 7, 4, 3, 2 or 1",
    ),
    "a name with spaces": (
        SMALL.replace('"small"', '"My net"'),
        "recipe:1: name: 'My net' is not allowed here; write lower-case letters, digits, '.', '_' and '-', at most 64",
    ),
    "pickled weights": (
        'weights = "net.pt"\n' + SMALL,
        "recipe:1: weights: 'net.pt' is not allowed here; write the name of a .safetensors file",
    ),
    "unknown data": (
        SMALL.replace("fashion-mnist", "cifar"),
        "recipe:5: data.set: 'cifar' is not allowed here; write 'mnist', 'fashion-mnist', 'cifar10', 'gtsrb', "
        "'npz:FILE' or 'folder:DIR'",
    ),
    "missing section": (
        SMALL.replace('[network]\narchitecture = "lenet"', ""),
        'recipe: network.architecture: this key is missing; write architecture = "lenet"',
    ),
    "missing key": (
        SMALL.replace('architecture = "lenet"', ""),
        'recipe:2: network.architecture: this key is missing; write architecture = "lenet"',
    ),
    "no radius for a set of one's own": (
        SMALL.replace("fashion-mnist", "npz:mine.npz"),
        "recipe: threat_model.eps_255: this key is missing; write the radius in grey levels, such as eps_255 = 8.0",
    ),
    "no phases": (
        SMALL.replace("[[training.phases]]\nepochs = 1", "[training]\nphases = []"),
        "recipe:7: training.phases: there is no phase to train in; write at least one [[training.phases]]",
    ),
    "option of another network": (
        SMALL.replace('"lenet"', '"lenet"\nwidth = 8'),
        "recipe:4: network.width: lenet has no 'width'; its options are channels, hidden",
    ),
    "network and data": (
        SMALL.replace("lenet", "resnet20"),
        "recipe:2: network.input_shape: resnet20 takes images of [3, 32, 32], fashion-mnist has "
        "[1, 28, 28]; write input_shape = [1, 28, 28] or choose another network",
    ),
    "classes": (
        SMALL.replace('"lenet"', '"lenet"\nclasses = 43'),
        "recipe:4: network.classes: the network tells 43 classes apart, fashion-mnist has 10; write classes = 10",
    ),
    "a list that is too short": (
        SMALL.replace('"lenet"', '"lenet"\ninput_shape = [1, 28]'),
        "recipe:4: network.input_shape: this list is too short; write at least 3 values",
    ),
    "no list": (
        SMALL.replace("[[training", '[training]\naugmentation = "crop"\n[[training'),
        "recipe:7: training.augmentation: 'crop' should be a list",
    ),
    "more images than there are": (
        SMALL.replace('mnist"', 'mnist"\nevaluation.count = 10_001'),
        "recipe:6: data.evaluation.count: 10,001 images are asked for, fashion-mnist has 10,000; write count = 10000",
    ),
    "everything held out": (
        SMALL.replace('mnist"', 'mnist"\nvalidation = 60_000'),
        "recipe:6: data.validation: 60,000 of 60,000 images held out leave none to train on; write at most 59999",
    ),
    "no baseline": (
        SMALL + '[gate.baseline]\nresult = "nowhere.json"',
        "recipe:9: gate.baseline.result: there is no result nowhere.json; name an earlier result.json, or leave out "
        "[gate.baseline]",
    ),
    "unknown profile": (
        SMALL + '[quantization]\nprofile = "openvino"',
        "recipe:9: quantization.profile: there is no profile 'openvino'; known: onnxruntime, tensorrt, tensorrt-signed",
    ),
    "fractional radius": (
        SMALL + "[threat_model]\neps_255 = 25.5",
        "recipe:9: threat_model.eps_255: an L-inf radius of 25.5 grey levels does not lie on the grid "
        "of bytes: 25 is all it allows; write eps_255 = 25.0",
    ),
    "a gate for another ball": (
        SMALL + "[gate.attack]\neps_255 = 8.0",
        "recipe:9: gate.attack.eps_255: the gate speaks of 8.0, the recipe attacks at 25.0; "
        "promise what is attacked, or attack what is promised",
    ),
    "a gate for more effort": (
        SMALL + '[suite]\nname = "quick"\n[gate.attack]\nmin_steps = 20',
        "recipe:11: gate.attack.min_steps: the gate asks for 20 steps, the suite has 10; "
        "strengthen the suite, or promise less",
    ),
    "radius of the unit interval": (
        SMALL + "[threat_model]\neps_255 = 0.031",
        "recipe:9: threat_model.eps_255: a radius of 0.031 grey levels moves no byte; "
        "radii are in grey levels of 255: 8/255 is written 8.0",
    ),
    "L2 radius of the unit interval": (
        SMALL + '[threat_model]\nnorm = "l2"\neps_255 = 0.5',
        "recipe:10: threat_model.eps_255: a radius of 0.5 grey levels moves no byte; "
        "radii are in grey levels of 255: 8/255 is written 8.0",
    ),
    "radius as large as the space": (
        SMALL + "eps_255 = 256",
        "recipe:8: training.phases[0].eps_255: a radius of 256.0 "
        "grey levels in linf is larger than the whole space of images (255); radii are in "
        "grey levels of 255: 8/255 is written 8.0",
    ),
    "l2 radius": (
        SMALL + '[threat_model]\nnorm = "l2"\neps_255 = 7141',
        "recipe:10: threat_model.eps_255: a "
        "radius of 7141.0 grey levels in l2 is larger than the whole space of images (7140); radii are in grey "
        "levels of 255: 8/255 is written 8.0",
    ),
    "n-fgsm in l2": (
        SMALL + 'adversary = "n-fgsm"\n[threat_model]\nnorm = "l2"',
        "recipe:8: "
        "training.phases[0].adversary: n-fgsm is defined for norm 'linf' only, the threat model says 'l2'; "
        "write adversary = 'pgd'",
    ),
    "steps of fgsm": (
        SMALL + 'adversary = "fgsm"\nsteps = 3',
        "recipe:9: training.phases[0].steps: fgsm takes one step, not 3; remove steps, or write adversary = 'pgd'",
    ),
    "no steps of pgd": (
        SMALL + "steps = 0",
        "recipe:8: training.phases[0].steps: pgd takes at least one step; write steps = 7, or adversary = 'none'",
    ),
    "n-fgsm without noise": (
        SMALL + 'adversary = "n-fgsm"\nrandom_start = false',
        "recipe:9: training.phases[0].random_start: n-fgsm is its random start; remove random_start, "
        "or write adversary = 'fgsm'",
    ),
    "radius without adversary": (
        SMALL + 'adversary = "none"\neps_255 = 8',
        "recipe:9: training.phases[0].eps_255: without an adversary nothing is perturbed; remove eps_255",
    ),
    "adversary without radius": (
        SMALL + "step_size_255 = 1\neps_255 = 0",
        "recipe:9: training.phases[0].eps_255: this adversary cannot move; write a radius, or adversary = 'none'",
    ),
    "thawing": (
        SMALL + "frozen = true\n[[training.phases]]\nepochs = 1",
        "recipe:9: training.phases[1].frozen: phase 1 is frozen, so BatchNorm is folded and this phase cannot "
        "train it; write frozen = true here, or move this phase before it",
    ),
    "the smooth surrogate alone": (
        SMALL + '[suite]\nsurrogates = ["smooth"]',
        "recipe:9: suite.surrogates: surrogates are ['smooth']; "
        "write ['straight-through'] or ['straight-through', 'smooth']",
    ),
    "transfer from nowhere": (
        SMALL + '[suite]\ntransfer = ["../nowhere"]',
        "recipe:9: suite.transfer[0]: there is no recipe in ../nowhere; name the folder of a recipe with weights",
    ),
    "more queries promised than asked": (
        SMALL + "[gate.attack]\nmin_square_queries = 1500",
        "recipe:9: gate.attack.min_square_queries: the gate asks for 1500 square queries, the suite has 500; "
        "strengthen the suite, or promise less",
    ),
    "a surrogate promised and not used": (
        SMALL + '[gate.attack]\nsurrogates = ["smooth"]',
        "recipe:9: gate.attack.surrogates: the gate asks for the smooth surrogate, the suite does not use it; "
        "write suite.surrogates = ['straight-through', 'smooth']",
    ),
    "an alarm that is a defect": (
        SMALL + '[[gate.known_alarms]]\nname = "parity"\nreason = "never mind"',
        "recipe:9: gate.known_alarms[0].name: 'parity' is not among the choices; choose 'gradients', "
        "'iterative_beats_one_step', 'surrogates', 'white_box_beats_black_box', 'white_box_beats_transfer', "
        "'noise_does_not_win', 'losses', 'eps_curve', 'converged' or 'stronger_attacks'",
    ),
    "no loss": (
        SMALL + "[suite]\nlosses = []",
        'recipe:9: suite.losses: an attack needs a loss; write losses = ["cross_entropy", "margin"]',
    ),
    "a loss twice": (
        SMALL + '[suite]\nlosses = ["margin", "margin"]',
        "recipe:9: suite.losses: a loss is named twice; more restarts are asked for by restarts",
    ),
    "an attack that is none": (
        SMALL + '[suite]\nattacks = ["spsa-40", "apgd-100"]',
        "recipe:9: suite.attacks[1]: 'apgd-100' is no attack; write 'apgd-N cross_entropy' or 'apgd-N dlr' or "
        "'apgd-N targeted-K'",
    ),
    "an attack of another norm": (
        SMALL + '[suite]\nattacks = ["carlini_wagner-100"]',
        "recipe:9: suite.attacks[0]: 'carlini_wagner-100' is an attack in l2, the threat model is linf; leave it out",
    ),
    "an attack twice": (
        SMALL + '[suite]\nattacks = ["spsa-40", "spsa-40"]',
        "recipe:9: suite.attacks: an attack is named twice; name every attack once",
    ),
    "robust above clean": (
        SMALL + "[gate]\nclean.reference = 0.6\nrobust.reference = 0.7",
        "recipe:10: gate.robust.reference: a robust rate of 0.7 is above the clean rate of 0.6: an "
        "image that survives every attack is classified correctly without one; lower it, or raise "
        "gate.clean.reference",
    ),
    "percentiles": (
        SMALL + "[gate.latency]\nmax_p50_ms = 3\nmax_p99_ms = 2",
        "recipe:10: gate.latency.max_p99_ms: 2.0 is below max_p50_ms = 3.0; raise max_p99_ms",
    ),
    "a gate that the harness refuses": (
        SMALL + "[gate.latency]",
        "recipe:8: gate.latency: limits nothing; set max_p50_ms, max_p90_ms or max_p99_ms",
    ),
    "evaluation file": (
        SMALL.replace('mnist"', 'mnist"\nevaluation.file = "nowhere.npz"'),
        "recipe:6: data.evaluation.file: there is no file nowhere.npz; 'python -m hardbit.data.extract' makes one",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line_with_its_place_and_a_remedy(mistake):
    text, expected = MISTAKES[mistake]
    assert problems(text) == [expected]


def test_all_mistakes_of_a_file_are_reported_at_once_in_its_order():
    text = (
        'nme = "x"\n[network]\narchitecture = "resnet8"\nwidth = 0\n[data]\nset = "fashion-mnist"\nvalidation = -1\n'
        '[[training.phases]]\nepochs = 1\nadversary = "fgsm"\nsteps = 2\n[[training.phases]]\nepochs = "two"\n'
        "[suite]\nlosses = []\n[gate.clean]\nmargin = 2\n"
    )
    found = problems(text, where="x.toml")
    assert [line.split(": ")[:2] for line in found] == [
        ["x.toml", "name"],
        ["x.toml:1", "nme"],
        ["x.toml:4", "network.width"],
        ["x.toml:7", "data.validation"],
        ["x.toml:13", "training.phases[1].epochs"],
        ["x.toml:15", "suite.losses"],
        ["x.toml:16", "gate.clean.reference"],
        ["x.toml:17", "gate.clean.margin"],
    ]


def test_a_profile_that_does_not_serve_the_target_is_refused():
    assert problems(SMALL + '[quantization]\nprofile = "tensorrt"') == [
        "recipe:9: quantization.profile: profile 'tensorrt' does not describe the arithmetic of target 'onnxruntime'; "
        "for this target write profile = 'onnxruntime'"
    ]
    assert problems(SMALL + '[quantization]\nprofile = "onnxruntime"\n[target]\nname = "tensorrt_rtx"') == [
        "recipe:9: quantization.profile: profile 'onnxruntime' does not describe the arithmetic of target "
        "'tensorrt_rtx'; for this target write profile = 'tensorrt' or 'tensorrt-signed'"
    ]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt_rtx"])
def test_a_target_brings_its_profile_and_the_widest_activations_that_it_has(target):
    named = f'[target]\nname = "{target}"\n'
    assert parse_recipe(SMALL + named).quantization == Quantization(profile="tensorrt", activations=7)
    signed = parse_recipe(SMALL + named + '[quantization]\nprofile = "tensorrt-signed"')
    assert signed.quantization == Quantization(profile="tensorrt-signed", activations=8)
    few = parse_recipe(SMALL + named + "[quantization]\nactivations = 4").quantization
    assert (few.profile, few.activations) == ("tensorrt", 4)


def test_eight_unsigned_bits_are_refused_for_tensorrt():
    text = SMALL + 'activations = 8\n[target]\nname = "tensorrt"\n[quantization]\nactivations = 8'
    reason = (
        "behind a ReLU TensorRT has no 8 unsigned bits: it would read them as int8 and cut them off at 127; write 7, "
        "which is [0, 127] there and [-128, 127] elsewhere; or profile = 'tensorrt-signed'"
    )
    assert problems(text) == [
        f"recipe:8: training.phases[0].activations: {reason}",
        f"recipe:12: quantization.activations: {reason}",
    ]


def test_float16_is_for_engines_that_have_it():
    assert not parse_recipe(SMALL).target.float16
    assert parse_recipe(SMALL + '[target]\nname = "tensorrt"\nfloat16 = true').target.float16
    assert problems(SMALL + "[target]\nfloat16 = true") == [
        "recipe:9: target.float16: target 'onnxruntime' has no float16; leave it out"
    ]


def test_the_recipe_knows_every_profile_and_every_target():
    assert set(combinations.TARGETS_OF_PROFILE) == set(PROFILES)
    served = {target for targets in combinations.TARGETS_OF_PROFILE.values() for target in targets}
    assert served == set(targets.names()) == set(get_args(Target.model_fields["name"].annotation))


def test_images_of_ones_own_are_compared_with_the_network(tmp_path):
    write_set(tmp_path / "mine.npz", classes=10)
    text = OWN.replace("resnet8", "lenet").replace('mine.npz"', 'mine.npz"\nevaluation.count = 3')
    assert problems(text, folder=tmp_path) == [
        "recipe:2: network.input_shape: lenet takes images of [1, 28, 28], npz:mine.npz has [3, 32, 32]; "
        "write input_shape = [3, 32, 32] or choose another network"
    ]
    recipe = parse_recipe(text.replace('"lenet"', '"resnet8"'), folder=tmp_path)
    assert recipe.data_set == f"npz:{tmp_path / 'mine.npz'}"


OWN = SMALL.replace("fashion-mnist", "npz:mine.npz").replace("lenet", "resnet8") + "[threat_model]\neps_255 = 8"


def write_set(file, classes, **arrays):
    """As many training and test images of 32x32 as there are classes, one of each."""
    images, labels = np.zeros((classes, 32, 32, 3), np.uint8), np.arange(classes)
    np.savez(file, **{"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | arrays)


def test_labels_of_ones_own_are_compared_with_the_network(tmp_path):
    own = OWN.replace('mine.npz"', 'mine.npz"\nevaluation.count = 3')
    write_set(tmp_path / "mine.npz", classes=12)
    assert problems(own, folder=tmp_path) == [
        "recipe:2: network.classes: the network tells 10 classes apart, npz:mine.npz has 12; write classes = 12, or "
        "name every class in the file's class_names"
    ]
    write_set(tmp_path / "mine.npz", classes=9, class_names=[f"sort {number}" for number in range(10)])
    assert parse_recipe(own, folder=tmp_path).network.classes == 10


def test_the_test_split_of_ones_own_is_looked_at_before_anything_is_trained(tmp_path):
    write_set(tmp_path / "mine.npz", classes=10)
    assert problems(OWN, folder=tmp_path) == [
        "recipe:4: data.evaluation.count: 2,000 images are asked for, npz:mine.npz has 10; write count = 10"
    ]
    np.savez(tmp_path / "mine.npz", x_train=np.zeros((10, 32, 32, 3), np.uint8), y_train=np.arange(10))
    (problem,) = problems(OWN, folder=tmp_path)
    assert problem.startswith("recipe:5: data.set: ")
    assert "the split 'test' is not in it" in problem


def test_a_file_that_is_no_recipe(tmp_path):
    with pytest.raises(HardbitError, match="there is no such recipe; name a recipe"):
        load_recipe(tmp_path / "recipe.toml")
    (tmp_path / "recipe.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(HardbitError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.toml").write_text("name = 'x'\nnetwork = ]")
    with pytest.raises(HardbitError, match=r"recipe\.toml: this is not TOML: .*line 2"):
        load_recipe(tmp_path)


ADVERSARIES = st.one_of(
    st.just({"adversary": "none"}),
    st.fixed_dictionaries(
        {"adversary": st.sampled_from(["fgsm", "n-fgsm"])}, optional={"eps_255": st.floats(0.25, 200)}
    ),
    st.fixed_dictionaries(
        {"adversary": st.just("pgd"), "steps": st.integers(1, 50)},
        optional={"step_size_255": st.floats(0.1, 50), "random_start": st.booleans()},
    ),
)


@settings(max_examples=60)
@given(
    eps=st.integers(1, 255),
    bits=st.tuples(*[st.sampled_from([32, 8, 7, 4, 3, 2, 1])] * 4),
    layers=st.dictionaries(st.text("ab.0_-\"' \u00e9", min_size=1), st.sampled_from([32, 8, 1]), max_size=3),
    phases=st.lists(st.tuples(st.integers(1, 99), ADVERSARIES, st.booleans()), min_size=1, max_size=4),
    suite=st.sampled_from(['name = "quick"', 'name = "standard"\nsteps = 7', 'name = "custom"\nlosses = ["margin"]']),
    margin=st.floats(0.001, 0.4),
)
def test_a_resolved_recipe_loads_to_the_same_recipe(eps, bits, layers, phases, suite, margin):
    text = SMALL.partition("[[")[0]
    for epochs, adversary, frozen in sorted(phases, key=lambda phase: phase[2]):
        text += f"[[training.phases]]\nepochs = {epochs}\nfrozen = {str(frozen).lower()}\n"
        for key, value in adversary.items():
            text += f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
    text += f"[threat_model]\neps_255 = {eps}\n[suite]\n{suite}\n[gate.clean]\nreference = 0.5\nmargin = {margin!r}\n"
    kinds = ("weights", "activations", "first_layer", "last_layer")
    text += "[quantization]\n" + "".join(f"{kind} = {width}\n" for kind, width in zip(kinds, bits, strict=True))
    text += "[quantization.layers]\n" + "".join(f"{json.dumps(place)} = {width}\n" for place, width in layers.items())
    recipe = parse_recipe(text)
    assert recipe.quantization.layers == layers
    resolved = parse_recipe(recipe.resolved_toml())
    assert resolved == recipe
    assert resolved.resolved_toml() == recipe.resolved_toml()
    assert resolved.training_digest() == recipe.training_digest()


@pytest.mark.parametrize(
    ("change", "retrains"),
    [
        ("\nlearning_rate = 0.01", True),
        ("\n[quantization]\nweights = 4", True),
        ("\n[quantization.layers]\nconv1 = 4", True),
        ("\n[quantization]\nlayers = {}", False),
        ("\n[quantization]\ncalibration = 'saturating'", True),
        ("\n[quantization]\ncalibration = 'range'", False),
        ("\n[threat_model]\neps_255 = 8.0", True),
        ("\n[threat_model]\neps_255 = 25", False),
        ('\nadversary = "pgd"', False),
        ('\n[suite]\nname = "quick"', False),
        ("\n[gate.clean]\nreference = 0.9", False),
    ],
)
def test_the_training_digest_changes_with_what_decides_the_weights_alone(change, retrains):
    before, after = parse_recipe(SMALL).training_digest(), parse_recipe(SMALL + change).training_digest()
    assert (before != after) is retrains


def test_notes_are_kept_and_change_nothing():
    noted = parse_recipe('notes = "One seed.\\nA \\"quote\\"."\n' + SMALL)
    assert noted.notes == 'One seed.\nA "quote".'
    assert parse_recipe(noted.resolved_toml()) == noted
    plain = parse_recipe(SMALL)
    assert (noted.training_digest(), noted.digest()) == (plain.training_digest(), plain.digest())
    assert noted.document() == plain.document()


def test_how_the_file_is_called_and_what_is_evaluated_do_not_retrain():
    changed = SMALL.replace('"small"', '"large"').replace('mnist"', 'mnist"\nevaluation.count = 10')
    assert parse_recipe(changed).training_digest() == parse_recipe(SMALL).training_digest()
    assert parse_recipe(changed).digest() != parse_recipe(SMALL).digest()
