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


@pytest.mark.parametrize("bits", [8, 7, 4, 3, 2])
def test_engine_and_twin_agree_on_two_thousand_real_images_and_their_attacks(bits, tmp_path):
    data = load_images(f"npz:{IMAGES}", "test")
    images, labels = np.array(data.images), np.array(data.labels)
    twin = train(
        "lenet", {}, "onnxruntime", Bits(bits, bits), PLAN, images, labels, tmp_path, digest=f"width {bits}"
    ).twin
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
        assert np.abs(found - expected).max() <= 1e-4  # zero wherever scales make the arithmetic exact
        accuracies.append(np.mean(found.argmax(1) == labels))
    assert accuracies[0] > 0.7, "a network that learned nothing agrees with anything"
    assert accuracies[1] < accuracies[0]
