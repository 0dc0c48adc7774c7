"""The attack graphs of a run at 8 bits: one of them with a backward pass in integers."""

from __future__ import annotations

import numpy as np

from hardbit import pipeline
from hardbit.recipe import load_recipe
from hardbit_deploy import engines
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.engines.directions import GradientWithDirections
from recipe_examples import RECIPE, write_bars

BITS = "weights = 4\nactivations = 4"


def test_networks_of_eight_bits_are_attacked_by_integers_too(tmp_path):
    recipe = load_recipe(write_bars(tmp_path, RECIPE.replace(BITS, BITS.replace("4", "8"))))
    bundle = load_bundle(pipeline.run(recipe, tmp_path / "run", until="bundle").folder("bundle"))
    assert bundle.manifest.integer_attack_file == "attack_integer.onnx"
    with engines.open_target(bundle) as target:
        assert isinstance(target.gradient, GradientWithDirections)
        images, labels = np.array(bundle.images[:8]), np.array(bundle.labels[:8])
        logits, direction = target.gradient.ascend(images, labels, "margin")
        assert np.array_equal(logits, target.engine.infer(images))
        exact = target.gradient.gradient(images, labels, logits, "margin")
        first, second = (values.reshape(8, -1).astype(np.float64) for values in (direction, exact))
        cosines = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        assert (cosines > 0.95).all()
