"""From somebody's ONNX file to a bundle: import, quantize, lower, differentiate, and attack the float network.

There is no training framework on this path. What stands for the twin is the canonical graph, run by ONNX Runtime
operator by operator: engine and twin differ where the runtime's fusions round differently.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.importing.graphs import Graphs, build_graphs, float_bytes_graph
from hardbit.importing.images import ConversionImages, known_shape, load_conversion_images
from hardbit.importing.manifest_fields import manifest_fields, transfer_entry
from hardbit.importing.network import ImportedNetwork, import_network
from hardbit.importing.request import ConversionRequest
from hardbit_deploy.bundle import Bundle, write_bundle
from hardbit_deploy.errors import HardbitError

__all__ = ["Conversion", "convert_onnx"]

_TWIN_ATTACK_STEPS = 10
Report = Callable[[str], None]


@dataclass(frozen=True)
class Conversion:
    """The bundle, and how many of its `images` engine and float network get right (None where there is no such)."""

    bundle: Bundle
    images: int
    float_right: int | None
    engine_right: int
    notes: tuple[str, ...]


def convert_onnx(request: ConversionRequest, out: Path, report: Report) -> Conversion:
    """Write the bundle to the folder `out`; `report` is told what is done, one line each.

    Raises HardbitError as the steps do, and where the threat model or the suite is not known.
    """
    from hardbit_deploy.attacks import ThreatModel
    from hardbit_deploy.suite import SMOOTH, named_suite

    threat = ThreatModel.of(request.norm, request.eps_255)
    named_suite(request.suite)
    imported = import_network(
        request.source,
        preprocessing=request.preprocessing,
        image_shape=known_shape(request),
        output=request.output,
    )
    for note in imported.notes:
        report(note)
    images = load_conversion_images(request, imported.input_shape, imported.classes)
    for note in images.notes:
        report(note)
    report("its quantizers are taken as they are" if imported.quantized else _how_quantized(request, images))
    graphs = build_graphs(imported, images.calibration, request)
    suite = named_suite(request.suite, graphs.bits)
    if SMOOTH in suite.surrogates and graphs.smooth is None:
        suite = suite.without_smooth(graphs.bits)
    evaluation = images.evaluation
    with _files(imported, graphs) as folder:
        report("images for the comparison of engine and twin")
        adversarial = _climb(
            folder / "attack.onnx", imported, evaluation, threat, _TWIN_ATTACK_STEPS, ("cross_entropy",)
        )
        files: dict[str, bytes | Path | NDArray[Any]] = {
            "engine.onnx": folder / "engine.onnx",
            "canonical.onnx": folder / "canonical.onnx",
            "attack.onnx": folder / "attack.onnx",
            "images.npy": np.ascontiguousarray(evaluation.images),
            "labels.npy": evaluation.labels,
            "twin_clean_logits.npy": _twin_logits(folder / "canonical.onnx", evaluation.images),
            "twin_adversarial_images.npy": adversarial[:, 0],
            "twin_adversarial_logits.npy": _twin_logits(folder / "canonical.onnx", adversarial[:, 0]),
        }
        if graphs.smooth is not None:
            files["attack_smooth.onnx"] = folder / "attack_smooth.onnx"
        engine_right = _right(folder / "engine.onnx", imported, evaluation)
        float_right, transfer = None, []
        if graphs.float_attack is not None:
            float_right = _right(folder / "float.onnx", imported, evaluation)
            report("adversarial images of the float network")
            made = _climb(folder / "float_attack.onnx", imported, evaluation, threat, suite.steps, suite.losses)
            source = f"{request.model_name[:58]}-float"
            files[f"transfer_{source}.npy"] = made
            transfer.append(transfer_entry(source, made.shape[1], suite, imported))
        fields = manifest_fields(request, imported, images, graphs, suite, transfer)
        fields["provenance"]["clean"] = {
            "images": len(evaluation), "engine_right": engine_right, "float_right": float_right,
        }  # fmt: skip
        bundle = write_bundle(out, fields, files)
    return Conversion(bundle, len(evaluation), float_right, engine_right, imported.notes + images.notes)


def _how_quantized(request: ConversionRequest, images: ConversionImages) -> str:
    return (
        f"quantized to {request.bits} bits: {request.calibration} over {len(images.calibration)} images of "
        f"{images.calibrated_with}"
    )


@contextmanager
def _files(imported: ImportedNetwork, graphs: Graphs) -> Iterator[Path]:
    """A folder with every graph, for as long as it is needed."""
    models: Mapping[str, onnx.ModelProto | None] = {
        "engine": graphs.engine,
        "canonical": graphs.canonical,
        "attack": graphs.attack,
        "attack_smooth": graphs.smooth,
        "float_attack": graphs.float_attack,
        "float": None if imported.quantized else float_bytes_graph(imported.model),
    }
    with tempfile.TemporaryDirectory(prefix="hardbit-convert-") as name:
        for stem, model in models.items():
            if model is not None:
                (Path(name) / f"{stem}.onnx").write_bytes(model.SerializeToString())
        yield Path(name)


def _climb(
    graph: Path, imported: ImportedNetwork, images: Any, threat: Any, steps: int, losses: tuple[str, ...]
) -> NDArray[np.uint8]:
    """Last iterates of PGD on the graph's own network: uint8 (n, losses, channels, height, width)."""
    from hardbit.steps.transfer import climbed
    from hardbit_deploy.engines.onnxruntime import OnnxRuntimeGradient

    with OnnxRuntimeGradient(graph, imported.input_shape, imported.classes) as gradient:
        made = [
            climbed(gradient, images.images, images.labels, threat, steps, loss=loss, restart=0, seed=0)
            for loss in losses
        ]
    return np.stack(made, axis=1)


def _twin_logits(canonical: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    from hardbit.steps.twin import canonical_logits

    return canonical_logits(canonical, images)


def _right(graph: Path, imported: ImportedNetwork, images: Any) -> int:
    from hardbit_deploy.engines.onnxruntime import OnnxRuntimeEngine

    with OnnxRuntimeEngine(graph, imported.input_shape, imported.classes) as engine:
        logits = engine.infer(images.images)
    if not np.isfinite(logits).all():
        raise HardbitError("the network computes what is no finite number", graph.stem, "repair the network")
    return int((logits.argmax(1) == images.labels).sum())
