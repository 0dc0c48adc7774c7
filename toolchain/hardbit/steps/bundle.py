"""bundle: everything that a board needs, in one inert folder with a digest for every file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hardbit.recipe import Recipe
from hardbit.steps.differentiate import Differentiated
from hardbit.steps.export import Exported
from hardbit.steps.lower import Lowered
from hardbit.steps.step import RunOptions, Step, Work
from hardbit.steps.train import Trained
from hardbit.steps.transfer import Transferred
from hardbit_deploy.storage import sha256_file

__all__ = ["STEP", "bundled_gate"]

_LIBRARIES = ("hardbit", "torch", "brevitas", "onnx", "onnxruntime", "numpy")


def bundled_gate(recipe: Recipe) -> dict[str, Any]:
    """The gate that travels: without the baseline, which is a file of the machine that the recipe is on."""
    return {name: rules for name, rules in recipe.gate.document().items() if name != "baseline"}


def _run(work: Work) -> str:
    from hardbit_deploy.bundle import write_bundle

    exported = Exported.at(work.inputs["export"])
    lowered = Lowered.at(work.inputs["lower"])
    differentiated = Differentiated.at(work.inputs["differentiate"])
    transferred = Transferred.at(work.inputs["transfer"])
    files: dict[str, Path] = {
        "engine.onnx": lowered.engine,
        "canonical.onnx": exported.canonical,
        "attack.onnx": differentiated.attack,
        "images.npy": exported.images,
        "labels.npy": exported.labels,
        "twin_clean_logits.npy": exported.twin_clean_logits,
        "twin_adversarial_images.npy": exported.twin_adversarial_images,
        "twin_adversarial_logits.npy": exported.twin_adversarial_logits,
    }
    fields = _manifest(work.recipe, exported, lowered, Trained.at(work.inputs["train"]))
    if differentiated.smooth.is_file():
        files["attack_smooth.onnx"] = differentiated.smooth
        fields["attack"]["smooth_file"] = "attack_smooth.onnx"
    if differentiated.integer.is_file():
        files["attack_integer.onnx"] = differentiated.integer
        fields["attack"]["integer_file"] = "attack_integer.onnx"
    fields["transfer"] = []
    for source in transferred.read_sources():
        file = f"transfer_{source['name']}.npy"
        files[file] = transferred.images(source["name"])
        fields["transfer"].append({**source, "images": file})
    bundle = write_bundle(work.folder, fields, dict(files))
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    return f"{len(files) + 1} files, {size / 1e6:.1f} MB"


def _manifest(recipe: Recipe, exported: Exported, lowered: Lowered, trained: Trained) -> dict[str, Any]:
    q, evaluation = recipe.quantization, recipe.data.evaluation
    return {
        "name": recipe.name,
        "target": recipe.target.name,
        "profile": q.profile,
        "network": {
            "architecture": recipe.network.architecture,
            "classes": recipe.network.classes,
            "class_names": np.load(exported.class_names).tolist(),
            "input_shape": list(recipe.network.input_shape),
            "bits": {
                "weights": q.weights,
                "activations": q.activations,
                "first_layer": q.first_layer,
                "last_layer": q.last_layer,
                "layers": dict(q.layers),
            },
        },
        "input": {"scale": 1 / 256, "zero_point": 128},
        "engine": {
            "file": "engine.onnx",
            "integer_nodes": json.loads(lowered.integer_nodes.read_text()),
            "float_nodes": json.loads(lowered.float_nodes.read_text()),
        },
        "canonical": {"file": "canonical.onnx"},
        "attack": {"file": "attack.onnx", "losses": ["cross_entropy", "margin"]},
        "evaluation": {
            "images": "images.npy",
            "labels": "labels.npy",
            "data_set": recipe.data.set,
            "split": evaluation.split,
            "count": evaluation.count,
        },
        "twin": {
            "clean_logits": "twin_clean_logits.npy",
            "adversarial_images": "twin_adversarial_images.npy",
            "adversarial_logits": "twin_adversarial_logits.npy",
        },
        "threat_model": recipe.threat_model.model_dump(mode="json"),
        "suite": recipe.suite.document(),
        "gate": bundled_gate(recipe),
        "provenance": {
            "recipe": recipe.document(),
            "weights_sha256": sha256_file(trained.weights),
            "versions": {library: version(library) for library in _LIBRARIES},
            "training": _training_summary(trained),
        },
    }


def _training_summary(trained: Trained) -> dict[str, Any]:
    """The log without its epochs, but the last one."""
    log = {key: value for key, value in trained.read_log().items() if key not in ("recipe", "history")}
    history = trained.read_log().get("history") or []
    return {**log, "epochs": len(history), **({"last_epoch": history[-1]} if history else {})}


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    return {"recipe": recipe.digest()}


STEP = Step(
    name="bundle",
    title="one folder of everything a board needs",
    needs=("train", "export", "lower", "differentiate", "transfer"),
    libraries=_LIBRARIES[1:],
    decides=_decides,
    run=_run,
)
