"""Two processes do what one does, fail as one, and leave one set of files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hardbit import cli, pipeline
from hardbit.processes import Place, place
from hardbit.recipe import load_recipe
from hardbit.train import distributed
from hardbit.train.distributed import World
from hardbit_deploy.errors import HardbitError
from recipe_examples import RECIPE, write_bars

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # as the program has it that torchrun starts

from distributed_example import CASES, NETWORKS, run_case, steps_of_batch_norm  # noqa: E402


def two_processes(what: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`distributed_example.py` under torchrun."""
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return subprocess.run(
        [*launch, *options, str(HERE / "distributed_example.py"), what, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The folder in which two processes have trained every case."""
    folder = tmp_path_factory.mktemp("steps")
    done = two_processes("steps", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_of_two_processes_ends_in_the_weights_of_one(steps, tmp_path, case):
    alone = run_case(case, tmp_path, World()).twin.state_dict()
    first, second = (load_file(steps / f"{case} {rank}.safetensors") for rank in (0, 1))
    assert largest_difference(first, second) == 0.0, "the processes must not drift apart"
    assert largest_difference(alone, first) < 1e-5


def test_only_the_first_process_writes_weights(steps):
    assert (steps / "run of 0" / "weights.safetensors").is_file()
    assert not (steps / "run of 1" / "weights.safetensors").exists()


@pytest.mark.parametrize("network", NETWORKS)
def test_batch_norm_over_two_processes_is_that_of_torch_over_the_whole_batch(steps, network):
    """In float64, so that only a wrong formula can differ; rows are shared as four and five."""
    alone = steps_of_batch_norm(network, World())
    first, second = (load_file(steps / f"steps of {network} {rank}.safetensors") for rank in (0, 1))
    for name, expected in alone.items():
        if name in ("logits", "images"):
            assert [len(part[name]) for part in (first, second)] == [4, 5]
            torch.testing.assert_close(torch.cat([first[name], second[name]]), expected, rtol=1e-12, atol=1e-12)
        else:
            torch.testing.assert_close(first[name], expected, rtol=1e-12, atol=1e-12)
            assert torch.equal(first[name], second[name]), name


def test_a_killed_process_ends_all_and_the_restarted_training_ends_as_if_nothing_had_been(tmp_path):
    """In bfloat16 sums in another order are other numbers, and the adversary's images others: not wrong, not equal."""
    recipe = RECIPE.replace(
        "batch_size = 16", "batch_size = 15\ncheckpoint_minutes = 0.0001\ninner_precision = 'float32'"
    )
    file = write_bars(tmp_path, recipe)
    done = two_processes("killed", tmp_path, "--max-restarts", "1")
    assert done.returncode == 0, done.stderr
    assert "another process of this training ended" in done.stderr
    assert "defect" not in done.stderr
    assert done.stdout.count("Weights     ") == 1
    alone = pipeline.run(load_recipe(file), tmp_path / "alone", "train").folder("train")
    found = (load_file(folder / "weights.safetensors") for folder in (tmp_path / "run" / "train", alone))
    assert largest_difference(*found) < 1e-5


def test_what_is_wrong_in_one_process_is_said_once_and_ends_all(tmp_path):
    write_bars(tmp_path)
    (tmp_path / "other").mkdir()
    write_bars(tmp_path / "other")
    with np.load(tmp_path / "bars.npz") as arrays:
        np.savez(tmp_path / "other" / "bars.npz", **{**arrays, "x_train": arrays["x_train"] ^ 1})
    done = two_processes("other-images", tmp_path)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("bars: process 1 reads other images than process 0; let every machine hold") == 1
    assert "defect" not in done.stderr
    assert "another process" not in done.stderr
    assert not (tmp_path / "run" / "train").exists()


def test_rows_are_shared_as_evenly_as_they_can_be():
    for size in (1, 2, 3, 7):
        shares = [World(rank, size).share(torch.arange(23)) for rank in range(size)]
        assert torch.cat(shares).tolist() == list(range(23))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(HardbitError, match="a batch of 2 cannot be shared by 3 processes; start fewer"):
        World(0, 3).share(torch.arange(2))


def test_a_process_alone_sends_nothing():
    world, module = World(), torch.nn.Linear(2, 2)
    module(torch.ones(3, 2)).sum().backward()
    before = module.weight.grad.clone()
    world.sum_gradients(module)
    world.copy_from_leader(module)
    world.barrier()
    world.close()
    assert torch.equal(module.weight.grad, before)
    assert world.total(2.5) == 2.5
    assert world.told_by_leader({"a": 1}) == {"a": 1}
    assert place() == Place()
    assert World.from_environment("cpu") == world


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    pretend(monkeypatch, rank=2, size=4)
    with pytest.raises(HardbitError, match="process 3 of this machine has no GPU of its own: there are 2"):
        World.from_environment()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardbitError, match=r"training.device: PyTorch finds no GPU here"):
        World.from_environment("cuda")


def pretend(monkeypatch, rank, size, port=1):
    """The environment that torchrun gives."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in {**given, "TORCHELASTIC_USE_AGENT_STORE": True}.items():
        monkeypatch.setenv(name, str(value))


def test_only_training_runs_in_several_processes_and_the_first_to_fail_speaks(monkeypatch, capsys):
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    pretend(monkeypatch, rank=1, size=2, port=store.port)
    distributed._store.cache_clear()
    assert place() == Place(1, 2, 1)
    codes = [cli.main(["run", "recipe.toml"]) for _ in range(2)]
    distributed._store.cache_clear()
    assert codes == [cli.EXIT_USAGE] * 2
    assert capsys.readouterr().err == (
        "torchrun: 'hardbit run' runs in one process; let torchrun start 'hardbit train', and then go on without "
        "torchrun\n"
    )


@pytest.mark.slow
def test_the_documented_command_trains_once_and_then_finds_nothing_to_do(tmp_path):
    write_bars(tmp_path)
    torchrun = shutil.which("torchrun", path=Path(sys.executable).parent)
    command = [torchrun, "--standalone", "--nproc-per-node", "2", "-m", "hardbit", "train", "recipe.toml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for expected in ("weights: trained for 2 epochs", "unchanged"):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert expected in done.stdout
        assert done.stdout.count("Weights     runs/bars/train/weights.safetensors") == 1
