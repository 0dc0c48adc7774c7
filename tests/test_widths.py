"""At every width, a trained network's deployed engine says what its PyTorch twin says, clean and under attack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hardbit.data import load_images
from hardbit.graph.export import export_canonical
from hardbit.quantize import Bits
from hardbit.quantize.bits import FLOAT
from hardbit.targets import lower
from hardbit.train import Adversary, Phase, TrainingPlan, train
from hardbit.train.adversary import centred, pgd_on_bytes

IMAGES = Path(__file__).parents[1] / "models/fashion-cnn-w4a4/images.npz"
PLAN = TrainingPlan(
    phases=(
        Phase(3, Adversary("fgsm", 25.0), learning_rate=4e-3),
        Phase(1, Adversary("fgsm", 25.0), learning_rate=1e-3, schedule="cosine", frozen=True),
    ),
    batch_size=64,
)


def twin_logits(twin, images):
    with torch.no_grad():
        return np.concatenate([twin(centred(torch.from_numpy(batch))).numpy() for batch in np.split(images, 8)])


WIDTHS = {"W8A8": (8, 8), "W4A4": (4, 4), "W2A2": (2, 2), "W1A4": (1, 4), "W1A1": (1, 1), "activations alone": (32, 4)}
MORE = {"W7A7": (7, 7), "W3A3": (3, 3), "W2A4": (2, 4), "weights alone": (4, 32)}


@pytest.mark.parametrize("name", [*WIDTHS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_engine_and_twin_agree_on_two_thousand_real_images_and_their_attacks(name, tmp_path):
    bits = Bits(*(WIDTHS | MORE)[name])
    data = load_images(f"npz:{IMAGES}", "test")
    images, labels = np.array(data.images), np.array(data.labels)
    twin = train("lenet", {}, "onnxruntime", bits, PLAN, images, labels, tmp_path, digest=name).twin
    canonical = export_canonical(twin, (1, 28, 28))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    engine = onnxruntime.InferenceSession(lower(canonical, "onnxruntime").SerializeToString(), options)
    attacked = pgd_on_bytes(twin, images, labels, eps_255=25.0, steps=5)
    accuracies = []
    for pictures in (images, attacked):
        expected = twin_logits(twin, pictures)
        found = engine.run(None, {"image": pictures})[0]
        assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.999
        difference = np.abs(found - expected).max(axis=1)
        if FLOAT in (bits.weights, bits.activations):
            assert difference.max() <= 1e-4
        elif bits.weights >= 7:  # a wide layer at 8 bits may round a sum, which moves a code by one, see the docs
            assert np.mean(difference > 0) <= 0.002
            assert difference.max() <= 0.05
        else:
            assert difference.max() == 0
        accuracies.append(np.mean(found.argmax(1) == labels))
    assert accuracies[0] > 0.7, "a network that learned nothing agrees with anything"
    assert accuracies[1] < accuracies[0]
