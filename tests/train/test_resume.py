"""A training that is interrupted or killed ends in the same weights, bit for bit, as one that is not."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hardbit import nets
from hardbit.train.checkpoint import Checkpoint, read_checkpoint
from hardbit.train.epoch import EpochUnderWay
from hardbit_deploy.errors import HardbitError

from .training_example import EVERY_STEP, PLAN, StopAt, problem, run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return load_file(run(tmp_path_factory.mktemp("whole")).weights)


def assert_same(weights: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(weights)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_two_runs_of_the_same_recipe_are_the_same(tmp_path, uninterrupted):
    assert_same(run(tmp_path).weights, uninterrupted)


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_ctrl_c_in_any_epoch(tmp_path, uninterrupted, epoch):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, StopAt(epoch, interrupt))
    saved = read_checkpoint(tmp_path / "checkpoint.safetensors")
    assert (saved.epoch if saved else 0) == epoch - 1
    assert_same(run(tmp_path).weights, uninterrupted)


def train_and_kill(run_dir: Path, *arguments: str) -> None:
    """kill -9 a program that trains, in the middle of the epoch that the first argument names."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, "-W", "ignore", str(HERE / "training_example.py"), str(run_dir), *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline().strip() == "reached"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (run_dir / "weights.safetensors").exists()


def test_kill_9_in_the_middle_of_an_epoch(tmp_path, uninterrupted):
    train_and_kill(tmp_path, "4")
    assert_same(run(tmp_path).weights, uninterrupted)


class CountSteps(StopAt):
    """Progress that knows how many steps were taken, and which epoch was begun where."""

    def __init__(self) -> None:
        super().__init__(0, None)
        self.begun: list[tuple[int, int]] = []
        self.taken = 0

    def epoch_started(self, epoch, epochs, steps, done) -> None:
        self.begun.append((epoch + 1, done))

    def step_done(self, loss) -> None:
        self.taken += 1


def test_kill_9_between_two_checkpoints_of_an_epoch_costs_only_what_lies_between(tmp_path):
    epoch = 3
    expected = run(tmp_path / "whole", plan=EVERY_STEP)
    train_and_kill(tmp_path / "killed", str(epoch), "every step")
    saved = read_checkpoint(tmp_path / "killed" / "checkpoint.safetensors")
    assert (saved.epoch, saved.step) == (epoch - 1, 3), "the fourth step was told of, and not yet written"
    count = CountSteps()
    result = run(tmp_path / "killed", count, plan=EVERY_STEP)
    assert count.begun == [(epoch, 3), *((later, 0) for later in range(epoch + 1, 5))]
    assert count.taken == 4 * 8 - 8 * (epoch - 1) - 3
    assert_same(result.weights, load_file(expected.weights))
    told = [{key: value for key, value in record.items() if key != "seconds"} for record in result.history]
    assert told == [{k: v for k, v in record.items() if k != "seconds"} for record in expected.history]


def test_the_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path):
    run(tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(HardbitError, match="checkpoint of another recipe"):
        run(tmp_path, digest="other")
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(HardbitError, match="not a checkpoint"):
        run(tmp_path)


def test_a_folder_where_the_checkpoint_should_be_is_refused(tmp_path):
    (tmp_path / "checkpoint.safetensors").mkdir()
    with pytest.raises(HardbitError, match="not a checkpoint"):
        run(tmp_path)


class WithDropout(nn.Module):
    """A network that draws random numbers itself, and counts its batches for BatchNorm (momentum None)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6, momentum=None)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6 * 36, 3)

    def forward(self, x):
        return self.fc(self.drop(torch.flatten(torch.relu(self.norm(self.conv(x))), 1)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_network_with_dropout_resumes_to_the_same_bits_in_every_phase(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(nets, "build", lambda name, **options: WithDropout())
    phases = tuple(dataclasses.replace(p, optimizer=optimizer, weight_decay=1e-3) for p in PLAN.phases)
    plan = dataclasses.replace(PLAN, phases=phases, augmentation=("flip", "crop"))
    expected = load_file(run(tmp_path / "whole", plan=plan).weights)

    def interrupt():
        raise KeyboardInterrupt

    for epoch, minutes in ((1, 1e-9), (2, 0.0), (3, 1e-9), (4, 1e-9)):
        often = dataclasses.replace(plan, checkpoint_minutes=minutes)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", StopAt(epoch, interrupt), plan=often)
        torch.rand(7)  # whatever else a program draws
    assert_same(run(tmp_path / "stopped", plan=plan).weights, expected)


def test_an_epoch_that_began_on_another_device_is_not_gone_on_with(tmp_path):
    """Its order and noise cannot be drawn here. Between epochs the device may change."""
    data = tuple(map(torch.from_numpy, problem()))
    random = {"epoch": torch.zeros(16), "global": torch.get_rng_state(), "cuda": torch.zeros(16)}
    saved = Checkpoint(1, "x", [], {}, {}, step=3, random=random)
    with pytest.raises(
        HardbitError, match=r"^training.device: the checkpoint lies .* device 'cuda'; say device = 'cuda'"
    ):
        EpochUnderWay.resume(saved, PLAN, data)
