"""Catastrophic overfitting is seen when it happens, and only then."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console

from hardbit.quantize import Bits
from hardbit.train import Adversary, Phase, TrainingPlan, train
from hardbit.train.adversary import centred
from hardbit.train.distributed import World
from hardbit.train.monitor import Probe, is_overfitting
from hardbit.train.progress import TerminalProgress
from quantized_examples import calibrated, random_images


def records(*pairs, adversary="fgsm"):
    """(accuracy under the training adversary, accuracy under PGD) of each epoch."""
    return [{"adversary": adversary, "adversarial_accuracy": own, "pgd": pgd} for own, pgd in pairs]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (records((0.40, 0.35), (0.50, 0.42), (0.97, 0.01)), True),  # as in Wong et al., figure 1
        (records((0.40, 0.35), (0.50, 0.42), (0.60, 0.33)), False),  # 9 points: within three standard errors
        (records((0.40, 0.35), (0.50, 0.42), (0.60, 0.31)), True),
        (records((0.40, 0.35), (0.50, 0.42), (0.50, 0.30)), True),  # PGD falls alone
        (records((0.40, 0.35), (0.50, 0.42), (0.39, 0.20)), False),  # both fall: the learning rate
        (records((0.90, 0.10), (0.60, 0.45), (0.65, 0.30)), True),  # while the radius grew, training accuracy fell
        (records((0.40, 0.35), (0.97, 0.01), (0.60, 0.40)), False),  # it recovered
        (records((0.40, 0.35), (0.97, 0.01), (0.98, 0.01)), True),  # it did not
        (records((0.40, 0.35)), False),
        (records((0.80, 0.35), (0.90, 0.10), adversary="none"), False),  # nothing to fool
        ([{"adversary": "fgsm", "adversarial_accuracy": 0.5}] * 2, False),  # records without a measurement
    ],
)
def test_planted_histories(history, expected):
    assert is_overfitting(history) is expected


def patterns(count, seed):
    """Ten classes of smooth patterns under strong smooth noise: (n, 1, 12, 12) and labels."""
    labels = np.arange(count, dtype=np.int64) % 10
    signal = random_images(10, (1, 12, 12), seed=99).astype(np.float32)[labels] - 128
    noise = random_images(count, (1, 12, 12), seed=seed).astype(np.float32) - 128
    return np.clip(signal + 0.8 * noise + 128, 0, 255).astype(np.uint8), labels


@pytest.mark.parametrize(("adversary", "expected"), [("fgsm", True), ("pgd", False)])
def test_one_large_step_without_a_random_start_overfits_and_several_do_not(tmp_path, adversary, expected):
    steps = {"fgsm": 1, "pgd": 4}[adversary]
    spec = Adversary(adversary, 50.0, steps=steps, step_size_255=None if steps > 1 else 50.0, random_start=steps > 1)
    plan = TrainingPlan((Phase(4, spec, learning_rate=0.01, schedule="constant"),), batch_size=64, eps_255=25.0)
    options = {"channels": (16, 32), "hidden": 64, "input_shape": (1, 12, 12)}
    bits = Bits(32, 32, 32, 32)
    images, labels = patterns(1500, seed=1)
    result = train(
        "lenet",
        options,
        "onnxruntime",
        bits,
        plan,
        images,
        labels,
        tmp_path,
        digest="x",
        held_out=patterns(256, seed=6),
    )
    assert any(record["overfitting"] for record in result.history) is expected


def test_the_terminal_says_so():
    shown = io.StringIO()
    record = {"epoch": 3, "adversary": "fgsm", "adversarial_accuracy": 0.97, "loss": 0.1, "seconds": 12.0}
    with TerminalProgress(Console(file=shown, width=200)) as progress:
        progress.epoch_ended({**record, "clean": 0.9, "pgd": 0.4, "overfitting": False})
        assert "clean  90.0 %  PGD  40.0 %" in shown.getvalue()
        assert "overfitting" not in shown.getvalue()
        progress.epoch_ended({**record, "clean": 0.9, "pgd": 0.01, "overfitting": True})
    assert "catastrophic overfitting: accuracy under PGD fell" in shown.getvalue()


def test_the_probe_measures_what_evaluation_would_and_changes_nothing():
    module = calibrated("lenet", 4).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = centred(torch.from_numpy(random_images(300, (1, 28, 28))))
    with torch.no_grad():
        labels = module.eval()(images).argmax(1)
    labels[:30] = (labels[:30] + 1) % 10
    probe = Probe(images, labels, Adversary("pgd", 25.0, steps=10), seed=0)
    first = probe.measure(module, World())
    torch.rand(5)
    assert first == probe.measure(module, World()), "the same images, starts and steps every time"
    assert first["clean"] == 0.9
    assert first["pgd"] <= first["fgsm"] < first["clean"]
    coarse = dataclasses.replace(probe, precision="bfloat16").measure(module, World())
    assert coarse["clean"] == 0.9, "judged in float32 all the same"
    assert abs(coarse["pgd"] - first["pgd"]) <= 0.02
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
