"""export: trained weights -> the canonical graph, and what the PyTorch twin says to clean and adversarial images.

The twin's answers travel in the bundle, so that a board without PyTorch can compare its engine with the twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardbit.recipe import Recipe
from hardbit.steps.step import RunOptions, Step, Work
from hardbit.steps.train import Trained, load_trained_twin
from hardbit.steps.twin import canonical_logits, require_agreement, twin_logits
from hardbit_deploy.storage import write_atomically

__all__ = ["STEP", "Exported"]

_TWIN_ATTACK_STEPS = 10


@dataclass(frozen=True)
class Exported:
    """The files that this step leaves; arrays as in the bundle."""

    canonical: Path
    images: Path
    labels: Path
    class_names: Path
    twin_clean_logits: Path
    twin_adversarial_images: Path
    twin_adversarial_logits: Path

    @classmethod
    def at(cls, folder: Path) -> Exported:
        return cls(
            folder / "canonical.onnx",
            folder / "images.npy",
            folder / "labels.npy",
            folder / "class_names.npy",
            folder / "twin_clean_logits.npy",
            folder / "twin_adversarial_images.npy",
            folder / "twin_adversarial_logits.npy",
        )


def _run(work: Work) -> str:
    from hardbit.data import load_images
    from hardbit.graph.export import export_canonical
    from hardbit.graph.rounding import rounding_places
    from hardbit.targets import float_nodes
    from hardbit.train.adversary import pgd_on_bytes

    recipe, exported = work.recipe, Exported.at(work.folder)
    twin = load_trained_twin(recipe, Trained.at(work.inputs["train"]).weights)
    model = export_canonical(twin, recipe.network.input_shape, profile=recipe.quantization.profile)
    write_atomically(exported.canonical, model.SerializeToString())

    wanted = recipe.data.evaluation
    evaluation = load_images(recipe.evaluation_set, wanted.split, wanted.count, recipe.network.input_shape)
    threat = recipe.threat_model
    adversarial = pgd_on_bytes(
        twin,
        evaluation.images,
        evaluation.labels,
        norm=threat.norm,
        eps_255=threat.eps_255,
        steps=_TWIN_ATTACK_STEPS,
        seed=recipe.suite.seed,
    )
    clean_logits, adversarial_logits = twin_logits(twin, evaluation.images), twin_logits(twin, adversarial)
    exceptions = float_nodes(model), rounding_places(model)
    agreements = [
        require_agreement(logits, canonical_logits(exported.canonical, images), kind, *exceptions)
        for kind, logits, images in (
            ("clean", clean_logits, evaluation.images),
            ("adversarial", adversarial_logits, adversarial),
        )
    ]
    np.save(exported.images, np.ascontiguousarray(evaluation.images))
    np.save(exported.labels, evaluation.labels)
    np.save(exported.class_names, np.array(evaluation.class_names))
    np.save(exported.twin_clean_logits, clean_logits)
    np.save(exported.twin_adversarial_images, adversarial)
    np.save(exported.twin_adversarial_logits, adversarial_logits)
    rate = (clean_logits.argmax(1) == evaluation.labels).mean()
    flips, difference = sum(a.flips for a in agreements), max(a.difference for a in agreements)
    but = f", {flips} labels apart" if flips else ""
    return (
        f"canonical graph equals the twin on {len(evaluation):,} clean and adversarial images "
        f"(logits within {difference:.1g}{but}); twin: {100 * rate:.1f} % clean"
    )


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    from hardbit.data import data_fingerprint

    return {
        "recipe": recipe.digest("network", "quantization", "threat_model", "data.evaluation", "data.set", "suite.seed"),
        "images": data_fingerprint(recipe.evaluation_set, recipe.data.evaluation.split),
    }


STEP = Step(
    name="export",
    title="canonical graph",
    needs=("train",),
    libraries=("torch", "brevitas", "onnx", "onnxruntime"),
    decides=_decides,
    run=_run,
)
