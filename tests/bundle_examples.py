"""Tiny bundles that really run, made from the graphs of `canonical_examples`; labels are the engine's own, so that
clean accuracy is 1 unless a test wants it otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import canonical_examples
from hardbit.graph.gradient import build_attack_graph
from hardbit.targets import integer_nodes, lower
from hardbit_deploy.bundle import Bundle, write_bundle
from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from hardbit_deploy.suite import named_suite

CLASSES = 10


def smooth_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Blurred noise, so that neighbouring pixels agree as they do in photographs; uint8 (count, *shape)."""
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    for axis in (2, 3):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    low, high = noise.min(), noise.max()
    return np.round(255 * (noise - low) / (high - low)).astype(np.uint8)


def manifest_fields(
    canonical: onnx.ModelProto, images: NDArray[np.uint8], target: str = "onnxruntime", **changes: Any
) -> dict[str, Any]:
    """The manifest of a bundle of `canonical`, without what `write_bundle` adds; `changes` replace whole sections."""
    suite = named_suite("quick").to_document()
    return {
        "name": "example",
        "target": target,
        "profile": "onnxruntime",
        "network": {
            "architecture": "example",
            "classes": CLASSES,
            "class_names": [f"class {row}" for row in range(CLASSES)],
            "input_shape": list(images.shape[1:]),
            "bits": {"weights": 4, "activations": 4, "first_layer": 8, "last_layer": 8},
        },
        "input": {"scale": 1 / 256, "zero_point": 128},
        "engine": {"file": "engine.onnx", "integer_nodes": integer_nodes(canonical)},
        "canonical": {"file": "canonical.onnx"},
        "attack": {"file": "attack.onnx", "losses": ["cross_entropy", "margin"]},
        "evaluation": {
            "images": "images.npy",
            "labels": "labels.npy",
            "data_set": "noise",
            "split": "test",
            "count": len(images),
        },
        "twin": {
            "clean_logits": "twin_clean_logits.npy",
            "adversarial_images": "twin_adversarial_images.npy",
            "adversarial_logits": "twin_adversarial_logits.npy",
        },
        "threat_model": {"norm": "linf", "eps_255": 4.0},
        "suite": {key: suite[key] for key in ("name", "steps", "restarts", "losses", "seed")},
        "gate": {},
        "provenance": {"recipe": {}},
        **changes,
    }


def build_bundle(
    path: Path,
    canonical: onnx.ModelProto | None = None,
    count: int = 24,
    engine: onnx.ModelProto | None = None,
    seed: int = 0,
    engine_section: dict[str, Any] | None = None,
    labels: NDArray[np.int64] | None = None,
    with_twin: bool = True,
    with_smooth: bool = False,
    attack_graph: onnx.ModelProto | None = None,
    transfers: dict[str, NDArray[np.uint8]] | None = None,
    **changes: Any,
) -> Bundle:
    """Write a bundle whose engine, attack graph and twin are all `canonical`.

    `engine` and `attack_graph` replace the graphs, `engine_section` the manifest's section `engine`, other `changes`
    sections by their names. The images are `smooth_images(count, input shape, seed)`. `with_smooth` adds the attack
    graph through the smooth surrogate, `transfers` images of other networks, uint8 (count, candidates, *input shape).
    """
    canonical = canonical_examples.plain_cnn() if canonical is None else canonical
    lowered = lower(canonical, "onnxruntime")
    shape = tuple(dimension.dim_value for dimension in canonical.graph.input[0].type.tensor_type.shape.dim[1:])
    images = smooth_images(count, (shape[0], shape[1], shape[2]), seed)
    adversarial = np.clip(images.astype(int) + np.random.default_rng(seed).integers(-4, 5, images.shape), 0, 255)
    adversarial = adversarial.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{path.name}.engine.onnx"
    scratch.write_bytes(lowered.SerializeToString())
    with OnnxRuntimeEngine(scratch, (shape[0], shape[1], shape[2]), CLASSES) as runner:
        clean_logits, adversarial_logits = runner.infer(images), runner.infer(adversarial)
    scratch.unlink()
    files: dict[str, Any] = {
        "engine.onnx": (lowered if engine is None else engine).SerializeToString(),
        "canonical.onnx": canonical.SerializeToString(),
        "attack.onnx": (build_attack_graph(canonical) if attack_graph is None else attack_graph).SerializeToString(),
        "images.npy": images,
        "labels.npy": clean_logits.argmax(axis=1).astype(np.int64) if labels is None else labels,
        "twin_clean_logits.npy": clean_logits,
        "twin_adversarial_images.npy": adversarial,
        "twin_adversarial_logits.npy": adversarial_logits,
    }
    if engine_section is not None:
        changes["engine"] = engine_section
    if with_smooth:
        files["smooth.onnx"] = build_attack_graph(canonical, surrogate="smooth").SerializeToString()
        changes["attack"] = {"file": "attack.onnx", "smooth_file": "smooth.onnx", "losses": ["cross_entropy", "margin"]}
    if transfers:
        files |= {f"transfer_{name}.npy": made for name, made in transfers.items()}
        changes["transfer"] = [
            {"name": name, "images": f"transfer_{name}.npy", "candidates": made.shape[1]}
            for name, made in transfers.items()
        ]
    fields = manifest_fields(canonical, images, **changes)
    if not with_twin:
        del fields["twin"]
        files = {name: content for name, content in files.items() if not name.startswith("twin")}
    return write_bundle(path, fields, files)
