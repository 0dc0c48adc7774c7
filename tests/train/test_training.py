"""Training teaches, its plan is obeyed, its weights come back as they were."""

import dataclasses

import pytest
import torch

from hardbit.quantize import Bits
from hardbit.train import Adversary, Phase, TrainingPlan, load_twin, train
from hardbit.train.adversary import centred, pgd_on_bytes
from hardbit.train.augmentation import augment
from hardbit.train.weights import read_weights_metadata
from hardbit_deploy.errors import HardbitError

from .training_example import OPTIONS, PLAN, problem, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(tmp_path_factory.mktemp("trained"))


def accuracy(twin, images, labels):
    with torch.no_grad():
        return (twin(centred(torch.from_numpy(images))).argmax(1).numpy() == labels).mean()


def test_training_learns_the_bands_and_keeps_them_under_attack(trained):
    images, labels = problem(300)
    attacked = pgd_on_bytes(trained.twin, images, labels, eps_255=12.0, steps=10)
    assert accuracy(trained.twin, images, labels) > 0.9
    assert accuracy(trained.twin, attacked, labels) > 0.65  # chance is a third
    assert [record["epoch"] for record in trained.history] == [1, 2, 3, 4]
    assert [record["adversary"] for record in trained.history] == ["fgsm", "fgsm", "pgd", "pgd"]


def test_clean_training_is_less_robust_than_adversarial_training(trained, tmp_path):
    clean_phases = tuple(dataclasses.replace(p, adversary=Adversary("none", 0.0)) for p in PLAN.phases)
    clean = run(tmp_path, plan=dataclasses.replace(PLAN, phases=clean_phases))
    images, labels = problem(300)

    def robust(twin):
        return accuracy(twin, pgd_on_bytes(twin, images, labels, eps_255=30.0, steps=10), labels)

    assert robust(clean.twin) < robust(trained.twin)


def test_weights_come_back_as_they_were(trained):
    twin = load_twin(trained.weights, "lenet", OPTIONS, "onnxruntime", Bits(4, 4))
    images = centred(torch.from_numpy(problem(64)[0]))
    with torch.no_grad():
        assert torch.equal(twin(images), trained.twin(images))
    metadata = read_weights_metadata(trained.weights)
    assert metadata["training_digest"] == "tiny"
    assert metadata["history"] == trained.history


def test_weights_of_another_network_are_refused(trained):
    with pytest.raises(HardbitError, match="has shape"):
        load_twin(trained.weights, "lenet", {**OPTIONS, "hidden": 13}, "onnxruntime", Bits(4, 4))
    with pytest.raises(HardbitError, match="in the file or in the network"):
        load_twin(trained.weights, "resnet8", {}, "onnxruntime", Bits(4, 4))


def test_a_loss_that_is_not_finite_stops_training_and_says_where(tmp_path):
    plan = dataclasses.replace(
        PLAN, phases=(Phase(1, Adversary("none", 0.0), learning_rate=1e30, schedule="constant"),)
    )
    with pytest.raises(HardbitError, match=r"the loss is (nan|inf) in epoch 1, step \d+.*lower the learning rate"):
        run(tmp_path, plan=plan)


def test_one_image_more_than_a_batch_is_not_a_batch_of_its_own(tmp_path):
    """BatchNorm1d refuses to normalise a single row: calibration keeps to whole batches as training does."""
    images, labels = problem(33)
    phases = (Phase(1, Adversary("none", 0.0)),)
    plan = dataclasses.replace(PLAN, phases=phases)
    result = train("lenet", OPTIONS, "onnxruntime", Bits(4, 4), plan, images, labels, tmp_path, digest="odd")
    assert len(result.history) == 1


def test_a_plan_that_would_thaw_a_folded_network_is_refused():
    frozen, thawed = PLAN.phases[1], PLAN.phases[0]
    with pytest.raises(HardbitError, match=r"^training, phase 2: a frozen phase cannot be followed"):
        TrainingPlan((frozen, thawed))
    with pytest.raises(HardbitError, match="there is no phase"):
        TrainingPlan(())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adversary("apgd", 8.0), "no adversary 'apgd'; known: none, fgsm, n-fgsm, pgd, trades, square"),
        (lambda: Adversary("pgd", 8.0, norm="l1"), "no norm 'l1'; known: linf, l2"),
        (lambda: dataclasses.replace(PLAN.phases[0], optimizer="SGD"), "no optimizer 'SGD'; known: adam, sgd"),
        (lambda: dataclasses.replace(PLAN.phases[0], schedule="step"), "no schedule 'step'; known: one-cycle"),
        (lambda: dataclasses.replace(PLAN, augmentation=("mixup",)), "no augmentation 'mixup'; known: flip, crop"),
    ],
)
def test_words_that_a_plan_does_not_know_are_refused(make, message):
    with pytest.raises(HardbitError, match=f"^training: there is {message}"):
        make()


def test_augmentation_mirrors_half_and_shifts_by_at_most_four_pixels():
    images = torch.zeros(400, 1, 16, 16, dtype=torch.uint8)
    images[:, :, 8, 3] = 255
    generator = torch.Generator().manual_seed(0)
    flipped = augment(images, ("flip",), generator)
    assert 0.4 < (flipped[:, 0, 8, 12] == 255).float().mean() < 0.6
    where = augment(images, ("crop",), generator)[:, 0].nonzero()[:, 1:] - torch.tensor([8, 3])
    assert where.abs().max() <= 4
    assert {tuple(offset.tolist()) for offset in where} >= {(0, 0), (4, 4), (-4, 3)}
    assert torch.equal(augment(images, (), generator), images)
