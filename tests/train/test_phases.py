"""What a phase or a plan may ask for beyond an adversary: widths, averages, a start, a teacher, the best epoch."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hardbit.quantize import Bits, load_state
from hardbit.quantize.quantizers import activation_numerics, parameter_codes
from hardbit.train import Adversary, Phase, Teacher, TrainingPlan, load_twin, read_initial_weights, train
from hardbit.train.adversary import centred, pgd_on_bytes
from hardbit.train.averaging import WeightAverage
from hardbit.train.weights import read_weights_metadata
from hardbit_deploy.errors import HardbitError

from .training_example import OPTIONS, PLAN, StopAt, problem, run

FGSM = Adversary("fgsm", 12.0)


def accuracy(twin, images, labels):
    with torch.no_grad():
        return (twin(centred(torch.from_numpy(images))).argmax(1).numpy() == labels).mean()


def plan_of(*phases, **options) -> TrainingPlan:
    return dataclasses.replace(PLAN, phases=phases, **options)


@pytest.mark.parametrize("frozen", [False, True])
def test_widths_fall_from_phase_to_phase_and_end_at_the_networks(tmp_path, frozen):
    plan = plan_of(
        Phase(2, FGSM, learning_rate=4e-3, weights=8, activations=8),
        Phase(1, FGSM, activations=4, weights=3, frozen=frozen),
        Phase(1, FGSM, frozen=frozen),
    )
    images, labels = problem()
    bits = Bits(2, 3)
    result = train("lenet", OPTIONS, "onnxruntime", bits, plan, images, labels, tmp_path, digest="widths")
    widths = [(record["bits"]["weights"], record["bits"]["activations"]) for record in result.history]
    assert widths == [(8, 8), (8, 8), (3, 4), (2, 3)]
    assert parameter_codes(result.twin.conv2).weight_bits == 2
    assert activation_numerics(result.twin.relu2).bits == 3
    again = load_twin(result.weights, "lenet", OPTIONS, "onnxruntime", bits)
    assert accuracy(again, images, labels) == accuracy(result.twin, images, labels) > 0.6


def test_a_training_with_several_widths_resumes_to_the_same_bits(tmp_path):
    plan = plan_of(
        Phase(1, FGSM, learning_rate=4e-3, weights=8, activations=8, ema=0.9),
        Phase(1, FGSM, frozen=True, weights=4, ema=0.9),
        Phase(2, FGSM, frozen=True, weights=4),
        checkpoint_minutes=1e-9,
        inner_precision="bfloat16",
        outer_precision="bfloat16",
    )

    def interrupt():
        raise KeyboardInterrupt

    whole = load_file(run(tmp_path / "whole", plan=plan).weights)
    for epoch in (1, 2, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", StopAt(epoch, interrupt), plan=plan)
    resumed = load_file(run(tmp_path / "stopped", plan=plan).weights)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_two_phases_that_are_the_same_object_are_two_phases(tmp_path):
    phase = Phase(1, FGSM, ema=0.9)

    def interrupt():
        raise KeyboardInterrupt

    plan = plan_of(phase, phase)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", StopAt(2, interrupt), plan=plan)
    one, other = run(tmp_path / "stopped", plan=plan), run(tmp_path / "whole", plan=plan)
    assert [record["epoch"] for record in one.history] == [1, 2]
    assert torch.equal(one.twin.fc1.weight, other.twin.fc1.weight)


def test_the_average_of_the_weights_is_what_a_phase_ends_with(tmp_path):
    """With a constant rate the average and the last weights differ; the average is recomputed here step by step."""
    seen = []

    class Watch(StopAt):
        def step_done(self, loss):
            seen.append(loss)

    plain = plan_of(Phase(1, FGSM, schedule="constant"))
    averaged = plan_of(Phase(1, FGSM, schedule="constant", ema=0.5))
    last = run(tmp_path / "last", Watch(0, None), plan=plain).twin
    mean = run(tmp_path / "mean", plan=averaged).twin
    assert len(seen) == 8
    assert not torch.equal(last.conv1.weight, mean.conv1.weight)
    assert torch.allclose(last.conv1.weight, mean.conv1.weight, atol=0.05)


def test_a_weight_average_follows_its_formula_and_takes_integers_as_they_are():
    module = torch.nn.BatchNorm1d(3)
    average = WeightAverage(module, decay=0.5)
    expected, generator = module.weight.detach().clone(), torch.Generator().manual_seed(0)
    for update in range(6):
        with torch.no_grad():
            module.weight.copy_(torch.rand(3, generator=generator))
            module.num_batches_tracked += 1
        average.update(module)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    assert torch.allclose(average.state["weight"], expected)
    assert average.state["num_batches_tracked"] == 6
    load_state(module, average.state)
    assert torch.equal(module.weight.detach(), average.state["weight"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network in float that has learned, its file, and its accuracy."""
    images, labels = problem()
    bits = Bits(32, 32, 32, 32)
    folder = tmp_path_factory.mktemp("trained")
    plan = plan_of(Phase(6, FGSM, learning_rate=1e-2))
    return train("lenet", OPTIONS, "onnxruntime", bits, plan, images, labels, folder, digest="float")


def test_training_goes_on_from_the_weights_of_another_network(trained, tmp_path):
    images, labels = problem(300)
    barely = Phase(1, FGSM, learning_rate=1e-6, schedule="constant")
    scratch = run(tmp_path / "scratch", plan=plan_of(barely))
    plan = plan_of(barely, initial=read_initial_weights(trained.weights))
    started = run(tmp_path / "started", plan=plan)
    assert accuracy(started.twin, images, labels) > accuracy(trained.twin, images, labels) - 0.05
    assert accuracy(started.twin, images, labels) > accuracy(scratch.twin, images, labels) + 0.3

    def interrupt():
        raise KeyboardInterrupt

    longer = dataclasses.replace(plan, phases=(barely, dataclasses.replace(barely, frozen=True)))
    whole = run(tmp_path / "whole", plan=longer)
    for epoch in (1, 2):
        often = dataclasses.replace(longer, checkpoint_minutes=1e-9)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", StopAt(epoch, interrupt), plan=often)
    assert torch.equal(run(tmp_path / "stopped", plan=longer).twin.fc1.weight, whole.twin.fc1.weight)


def test_a_pupil_learns_from_its_teacher_without_labels(trained, tmp_path):
    """Half of the images carry a wrong label: soft labels do not."""
    images, labels = problem()
    wrong = np.where(np.arange(len(labels)) % 2 == 0, (labels + 1) % 3, labels)
    teacher = Teacher(trained.twin, "digest")
    phase = Phase(6, Adversary("trades", 12.0, steps=2), learning_rate=1e-2, loss="distillation")
    plan = plan_of(phase, teacher=teacher)
    taught = train("lenet", OPTIONS, "onnxruntime", Bits(4, 4), plan, images, wrong, tmp_path / "taught", digest="x")
    alone = plan_of(dataclasses.replace(phase, loss="trades"))
    untaught = train("lenet", OPTIONS, "onnxruntime", Bits(4, 4), alone, images, wrong, tmp_path / "alone", digest="x")
    test_images, test_labels = problem(300)
    assert accuracy(taught.twin, test_images, test_labels) > 0.85
    assert accuracy(taught.twin, test_images, test_labels) > accuracy(untaught.twin, test_images, test_labels)


def test_distillation_without_a_teacher_is_refused():
    with pytest.raises(HardbitError, match="distillation needs a teacher"):
        plan_of(Phase(1, FGSM, loss="distillation"))


def test_trades_teaches_robustness(tmp_path):
    images, labels = problem(300)
    phase = Phase(6, Adversary("trades", 12.0, steps=2), learning_rate=1e-2, loss="trades", beta=6.0)
    result = run(tmp_path, plan=plan_of(phase))
    attacked = pgd_on_bytes(result.twin, images, labels, eps_255=12.0, steps=10)
    assert accuracy(result.twin, images, labels) > 0.9
    assert accuracy(result.twin, attacked, labels) > 0.65


@pytest.mark.parametrize("surrogate", ["smooth", "both"])
@pytest.mark.parametrize("inner", ["batch", "running", "folded"])
def test_every_surrogate_and_batch_norm_of_the_adversary_trains(tmp_path, surrogate, inner):
    spec = Adversary("pgd", 12.0, steps=2, surrogate=surrogate, on_grid=True)
    plan = plan_of(Phase(1, FGSM, learning_rate=1e-2), Phase(1, spec), inner_batch_norm=inner, inner_precision="auto")
    assert np.isfinite(run(tmp_path, plan=plan).history[-1]["loss"])


def test_the_best_epoch_of_the_last_phase_is_kept(tmp_path):
    """A rate that grows until nothing is left: the last epochs are the worst, and are not taken."""
    images, labels = problem()
    held_out = problem(96)
    good = Phase(3, FGSM, learning_rate=1e-2)
    bad = Phase(4, FGSM, learning_rate=0.5, schedule="constant", optimizer="sgd")
    plan = plan_of(good, bad, select="best")
    result = train(
        "lenet", OPTIONS, "onnxruntime", Bits(4, 4), plan, images, labels, tmp_path, digest="best", held_out=held_out
    )
    of_last_phase = {record["epoch"]: record["pgd"] for record in result.history[3:]}
    assert result.epoch == max(of_last_phase, key=lambda epoch: of_last_phase[epoch])
    assert of_last_phase[result.epoch] > min(of_last_phase.values())
    assert read_weights_metadata(result.weights)["epoch"] == result.epoch
    attacked = pgd_on_bytes(result.twin, *held_out, eps_255=12.0, steps=10)
    assert accuracy(result.twin, attacked, held_out[1]) == pytest.approx(of_last_phase[result.epoch], abs=0.06)

    def interrupt():
        raise KeyboardInterrupt

    for epoch in (5, 7):
        with pytest.raises(KeyboardInterrupt):
            train(
                "lenet", OPTIONS, "onnxruntime", Bits(4, 4), plan, images, labels, tmp_path / "stopped",
                digest="best", held_out=held_out, progress=StopAt(epoch, interrupt),
            )  # fmt: skip
    again = train(
        "lenet", OPTIONS, "onnxruntime", Bits(4, 4), plan, images, labels, tmp_path / "stopped",
        digest="best", held_out=held_out,
    )  # fmt: skip
    assert again.epoch == result.epoch
    assert torch.equal(again.twin.fc1.weight, result.twin.fc1.weight)


def test_the_best_epoch_is_not_chosen_on_training_images(tmp_path):
    with pytest.raises(HardbitError, match="chosen on held-out images under attack, and there are none"):
        run(tmp_path, plan=plan_of(Phase(1, FGSM), select="best"))
