"""A recipe so small that all its steps are run for real in seconds: three classes of bright bars, 28x28."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RECIPE = """\
name = "bars"
[network]
architecture = "lenet"
channels = [4, 4]
hidden = 8
classes = 3
[data]
set = "npz:bars.npz"
validation = 32
evaluation.count = 64
[quantization]
weights = 4
activations = 4
[threat_model]
eps_255 = 8
[suite]
steps = 3
restarts = 1
[training]
batch_size = 16
[[training.phases]]
epochs = 1
adversary = "fgsm"
learning_rate = 0.01
[[training.phases]]
epochs = 1
adversary = "pgd"
steps = 2
frozen = true
"""


def write_bars(folder: Path, recipe: str = RECIPE) -> Path:
    """Write recipe and images (256 to train, 64 to evaluate) into `folder`; returns the recipe's file."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 256), ("test", 64)):
        labels = rng.integers(0, 3, count)
        images = rng.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[9 * label : 9 * label + 8, 4:24] += 150
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    np.savez(folder / "bars.npz", **arrays)
    file = folder / "recipe.toml"
    file.write_text(recipe)
    return file
