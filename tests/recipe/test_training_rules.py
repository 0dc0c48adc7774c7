"""[training]: defaults that follow from an adversary, and what cannot stand together, each named with a remedy."""

import pytest

from hardbit.recipe import RecipeError, parse_recipe

SMALL = """\
name = "small"
[network]
architecture = "lenet"
[data]
set = "fashion-mnist"
[[training.phases]]
epochs = 2
"""
LINE = SMALL.count("\n") + 1
PHASE = "training.phases[0]"


def problems(text, **options):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, **options)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("", {"loss": "cross_entropy", "beta": None, "ema": 0.0, "eps_warmup": 0, "on_grid": False}),
        ('adversary = "trades"', {"steps": 10, "step_size_255": 6.25, "loss": "trades", "beta": 6.0}),
        ('adversary = "trades"\nloss = "cross_entropy"', {"loss": "cross_entropy", "beta": None}),
        ('adversary = "pgd"\nloss = "trades"', {"steps": 7, "loss": "trades", "beta": 6.0}),
        ('adversary = "square"', {"steps": 50, "step_size_255": 0.0, "random_start": True, "loss": "cross_entropy"}),
    ],
)
def test_defaults_of_a_phase(phase, expected):
    resolved = parse_recipe(SMALL + phase).training.phases[0].model_dump()
    assert {key: resolved[key] for key in expected} == expected


def test_defaults_of_training():
    training = parse_recipe(SMALL).training
    assert (training.inner_precision, training.outer_precision, training.inner_batch_norm) == (
        "auto",
        "float32",
        "batch",
    )
    assert (training.select, training.device, training.checkpoint_minutes) == ("last", "auto", 10.0)
    assert (training.initial_weights, training.teacher) == (None, None)


def in_phase(text, key, message, remedy, line=LINE):
    return SMALL + text, f"recipe:{line}: {PHASE}.{key}: {message}; {remedy}"


MISTAKES = {
    "a start for trades": in_phase(
        'random_start = false\nadversary = "trades"',
        "random_start",
        "the divergence that trades climbs is flat at the image itself",
        "remove random_start, or write adversary = 'fgsm'",
    ),
    "square without stripes": in_phase(
        'random_start = false\nadversary = "square"',
        "random_start",
        "square starts from random stripes",
        "remove random_start, or write adversary = 'fgsm'",
    ),
    "square in l2": in_phase(
        'adversary = "square"\n[threat_model]\nnorm = "l2"',
        "adversary",
        "square is defined for norm 'linf' only, the threat model says 'l2'",
        "write adversary = 'pgd'",
    ),
    "a step for square": in_phase(
        'step_size_255 = 2.0\nadversary = "square"',
        "step_size_255",
        "square changes pixels by the whole radius",
        "remove step_size_255",
    ),
    "a surrogate for square": in_phase(
        'surrogate = "smooth"\nadversary = "square"', "surrogate", "square takes no gradient", "remove surrogate"
    ),
    "a surrogate for nobody": in_phase(
        'surrogate = "both"\nadversary = "none"',
        "surrogate",
        "without an adversary nothing is perturbed",
        "remove surrogate",
    ),
    "a grid for nobody": in_phase(
        'on_grid = true\nadversary = "none"', "on_grid", "without an adversary nothing is perturbed", "remove on_grid"
    ),
    "a warm-up for nobody": in_phase(
        'eps_warmup = 1\nadversary = "none"',
        "eps_warmup",
        "without an adversary nothing is perturbed",
        "remove eps_warmup",
    ),
    "trades for nobody": in_phase(
        'loss = "trades"\nadversary = "none"',
        "loss",
        "without an adversary there is no divergence",
        "write adversary = 'trades'",
    ),
    "a warm-up longer than its phase": in_phase(
        "eps_warmup = 3",
        "eps_warmup",
        "the radius would still grow when the phase's 2 epochs are over",
        "write at most 2",
    ),
    "an average of nothing": (SMALL + "ema = 1.0", f"recipe:{LINE}: {PHASE}.ema: 1.0 should be less than 1"),
    "beta without trades": in_phase(
        "beta = 3.0", "beta", "loss 'cross_entropy' has no beta", "remove beta, or write loss = 'trades'"
    ),
    "a pupil without a teacher": in_phase(
        'loss = "distillation"',
        "loss",
        "distillation needs a teacher",
        "name a trained model in training.teacher",
    ),
    "trades without a step": in_phase(
        'steps = 0\nadversary = "trades"\nstep_size_255 = 1.0',
        "steps",
        "trades takes at least one step",
        "write steps = 7, or adversary = 'none'",
    ),
    "a last phase of other widths": in_phase(
        "activations = 8\n[quantization]\nactivations = 4",
        "activations",
        "the last phase trains 8-bit activations, the network has 4",
        "remove activations here, or write quantization.activations = 8",
    ),
    "widths that grow": (
        SMALL + "weights = 4\n[[training.phases]]\nepochs = 1\nweights = 8",
        "recipe:11: training.phases[1].weights: weights grow from 4 to 8 bits; let widths fall",
    ),
    "the best of nothing": (
        SMALL.replace("[[training", '[training]\nselect = "best"\n[[training'),
        "recipe:7: training.select: the best epoch is chosen on held-out images; write data.validation = 512",
    ),
    "weights that are not there": (
        SMALL.replace("[[training", '[training]\ninitial_weights = "nowhere.safetensors"\n[[training'),
        "recipe:7: training.initial_weights: there is no file nowhere.safetensors; 'hardbit train --out' writes one",
    ),
    "a teacher that is not there": (
        SMALL.replace("[[training", '[training]\nteacher = "nowhere"\n[[training') + 'loss = "distillation"',
        "recipe:7: training.teacher: there is no nowhere/recipe.toml; name the folder of a model, with its recipe and "
        "weights",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line_with_its_place_and_a_remedy(mistake):
    text, expected = MISTAKES[mistake]
    assert problems(text) == [expected]


def test_a_teacher_that_nobody_listens_to(tmp_path):
    (tmp_path / "recipe.toml").write_text(SMALL)
    text = SMALL.replace("[[training", '[training]\nteacher = "."\n[[training')
    assert problems(text, folder=tmp_path) == [
        "recipe:7: training.teacher: no phase learns from it; write loss = 'distillation' in one"
    ]


def test_widths_may_fall_from_phase_to_phase():
    text = SMALL + "weights = 8\nactivations = 8\n[[training.phases]]\nepochs = 1\nactivations = 4\n"
    text += "[quantization]\nweights = 4\nactivations = 4\n"
    phases = parse_recipe(text).training.phases
    assert [(phase.weights, phase.activations) for phase in phases] == [(8, 8), (None, 4)]


def test_everything_that_training_can_do_survives_being_written_out():
    text = SMALL.replace(
        "[[training", '[training]\nselect = "best"\ncheckpoint_minutes = 2.5\ninner_batch_norm = "folded"\n[[training'
    ).replace('mnist"', 'mnist"\nvalidation = 100')
    text += 'adversary = "trades"\nbeta = 3.0\nema = 0.999\neps_warmup = 1\non_grid = true\nsurrogate = "both"\n'
    recipe = parse_recipe(text)
    assert parse_recipe(recipe.resolved_toml()) == recipe
