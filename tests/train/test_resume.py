"""A training that is interrupted or killed ends in the same weights, bit for bit, as one that is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hardbit.train.checkpoint import read_checkpoint
from hardbit_deploy.errors import HardbitError

from .training_example import StopAt, run

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


@pytest.mark.parametrize("epoch", [2, 4])
def test_kill_9_in_the_middle_of_an_epoch(tmp_path, uninterrupted, epoch):
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, "-W", "ignore", str(HERE / "training_example.py"), str(tmp_path), str(epoch)]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline().strip() == "reached"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "weights.safetensors").exists()
    assert_same(run(tmp_path).weights, uninterrupted)


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
