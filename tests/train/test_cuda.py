"""The same training on a GPU: data, augmentation, noise and network on the device, files as from anywhere."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from hardbit.quantize import Bits
from hardbit.train import load_twin
from hardbit.train.adversary import centred

from .training_example import EVERY_STEP, OPTIONS, StopAt, problem, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch sees no CUDA device"),
]
PLAN = dataclasses.replace(EVERY_STEP, device="cuda", inner_precision="auto")


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def test_it_learns_and_its_weights_load_on_a_cpu(tmp_path):
    result = run(tmp_path, plan=PLAN)
    images, labels = problem(300)
    twin = load_twin(result.weights, "lenet", OPTIONS, "onnxruntime", Bits(4, 4))
    with torch.no_grad():
        assert (twin(centred(torch.from_numpy(images))).argmax(1).numpy() == labels).mean() > 0.8


@pytest.mark.parametrize("epoch", [1, 3])
def test_it_resumes_within_an_epoch_to_the_same_bits(tmp_path, epoch):
    def interrupt():
        raise KeyboardInterrupt

    expected = load_file(run(tmp_path / "whole", plan=PLAN).weights)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", StopAt(epoch, interrupt), plan=PLAN)
    found = load_file(run(tmp_path / "stopped", plan=PLAN).weights)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
