"""The manifest of a bundle that was made from somebody's ONNX file."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from hardbit.importing.graphs import Graphs
from hardbit.importing.images import ConversionImages
from hardbit.importing.network import ImportedNetwork
from hardbit.importing.request import ConversionRequest
from hardbit_deploy.errors import HardbitError

__all__ = ["manifest_fields", "transfer_entry"]

_LIBRARIES = ("hardbit", "onnx", "onnxruntime", "numpy")


def transfer_entry(source: str, candidates: int, suite: Any, imported: ImportedNetwork) -> dict[str, Any]:
    """The entry of images that were made on the float network `source`, `candidates` for each evaluation image."""
    return {
        "name": source,
        "images": f"transfer_{source}.npy",
        "candidates": candidates,
        "made": {
            "attack": "pgd, last iterates",
            "steps": suite.steps,
            "restarts": 1,
            "losses": list(suite.losses),
            "seed": 0,
            "source_sha256": imported.source_sha256,
        },
    }


def manifest_fields(
    request: ConversionRequest,
    imported: ImportedNetwork,
    images: ConversionImages,
    graphs: Graphs,
    suite: Any,
    transfer: list[dict[str, Any]],
) -> dict[str, Any]:
    """What `hardbit_deploy.bundle.write_bundle` takes, from what the conversion made; `suite` is a Suite."""
    from hardbit.targets import float_nodes, integer_nodes

    attack: dict[str, Any] = {"file": "attack.onnx", "losses": ["cross_entropy", "margin"]}
    if graphs.smooth is not None:
        attack["smooth_file"] = "attack_smooth.onnx"
    return {
        "name": request.model_name,
        "target": request.target,
        "profile": "onnxruntime",
        "network": {
            "architecture": f"onnx:{request.source.name}",
            "classes": imported.classes,
            "class_names": _class_names(request, images, imported.classes),
            "input_shape": list(imported.input_shape),
            "bits": {"weights": graphs.bits.weights, "activations": graphs.bits.activations},
        },
        "input": {"scale": 1 / 256, "zero_point": 128},
        "engine": {
            "file": "engine.onnx",
            "integer_nodes": integer_nodes(graphs.canonical),
            "float_nodes": float_nodes(graphs.canonical),
        },
        "canonical": {"file": "canonical.onnx"},
        "attack": attack,
        "evaluation": {
            "images": "images.npy",
            "labels": "labels.npy",
            "data_set": request.data,
            "split": request.split,
            "count": len(images.evaluation),
        },
        "twin": {
            "clean_logits": "twin_clean_logits.npy",
            "adversarial_images": "twin_adversarial_images.npy",
            "adversarial_logits": "twin_adversarial_logits.npy",
        },
        "threat_model": {"norm": request.norm, "eps_255": request.eps_255},
        "transfer": transfer,
        "suite": suite.to_document(),
        "gate": {},
        "provenance": _provenance(request, imported, images, graphs),
    }


def _provenance(
    request: ConversionRequest, imported: ImportedNetwork, images: ConversionImages, graphs: Graphs
) -> dict[str, Any]:
    quantized: Any = "by the source"
    if not imported.quantized:
        quantized = {
            "calibration": request.calibration,
            "images": len(images.calibration),
            "from": images.calibrated_with,
            "bits": request.bits,
        }
    return {
        "source": {
            "file": request.source.name,
            "sha256": imported.source_sha256,
            "preprocessing": imported.preprocessing.document(),
            "notes": [*imported.notes, *images.notes],
        },
        "quantized": quantized,
        "changes": list(graphs.changes),
        "signs": {"asked": request.sign, "standing": graphs.signs_standing},
        "twin": "the canonical graph, run by ONNX Runtime without optimisation",
        "versions": {library: version(library) for library in _LIBRARIES},
    }


def _class_names(request: ConversionRequest, images: ConversionImages, classes: int) -> list[str]:
    """Those given; those of the images, if there are as many; else numbers. Raises HardbitError for too few or many."""
    if request.class_names:
        if len(request.class_names) != classes:
            raise HardbitError(
                f"{len(request.class_names)} names for {classes} classes", "classes", "name every class once"
            )
        return list(request.class_names)
    names = images.evaluation.class_names
    return list(names) if len(names) == classes else [str(number) for number in range(classes)]
