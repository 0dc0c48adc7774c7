"""From somebody's ONNX file to a bundle: import, quantize, lower, differentiate, and attack the float network.

There is no training framework on this path. What stands for the twin is the canonical graph, run by ONNX Runtime
operator by operator: engine and twin differ where the runtime's fusions round differently.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.importing.graphs import HERE, Graphs, build_graphs, float_bytes_graph
from hardbit.importing.images import ConversionImages, known_shape, load_conversion_images
from hardbit.importing.manifest_fields import manifest_fields, transfer_entry
from hardbit.importing.network import ImportedNetwork, import_network
from hardbit.importing.request import ConversionRequest
from hardbit_deploy.bundle import Bundle, write_bundle
from hardbit_deploy.errors import HardbitError

__all__ = ["Conversion", "convert_onnx"]

_TWIN_ATTACK_STEPS = 10
_BUNDLED = ("engine.onnx", "canonical.onnx", "attack.onnx", "attack_smooth.onnx")
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

    Raises HardbitError as the steps do, and where threat model, suite or target are not known.
    """
    from hardbit import targets
    from hardbit_deploy.attacks import ThreatModel
    from hardbit_deploy.suite import SMOOTH, named_suite

    threat = ThreatModel.of(request.norm, request.eps_255)
    named_suite(request.suite)
    if request.target not in targets.names():
        known = ", ".join(targets.names())
        raise HardbitError(f"there is no target '{request.target}'", where="target", remedy=f"known: {known}")
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
    graphs = build_graphs(imported, images, request)
    if graphs.signs_standing is not None:
        found = ", ".join(f"{sign} {count}" for sign, count in graphs.signs_standing.items())
        report(f"derivatives straight through signs, images that stand after PGD-10: {found}; the stronger one is used")
    suite = named_suite(request.suite, graphs.bits)
    if SMOOTH in suite.surrogates and graphs.smooth is None:
        suite = suite.without_smooth(graphs.bits)
    with _files(imported, graphs) as folder:
        report("images for the comparison of engine and twin")
        files = _evidence(folder, imported, images, threat)
        files |= {name: folder / name for name in _BUNDLED if (folder / name).is_file()}
        float_right, transfer = None, []
        if graphs.float_attack is not None:
            report("adversarial images of the float network")
            float_right = _right(folder / "float.onnx", imported, images.evaluation)
            climbs = images.evaluation, threat, suite.steps, suite.losses
            made = _climb(folder / "float_attack.onnx", imported, *climbs)
            source = f"{request.model_name[:58]}-float"
            files[f"transfer_{source}.npy"] = made
            transfer.append(transfer_entry(source, made.shape[1], suite, imported))
        engine_right = _engine_right(folder, imported, images.evaluation, request.target)
        fields = manifest_fields(request, imported, images, graphs, suite, transfer)
        count = len(images.evaluation)
        fields["provenance"]["clean"] = {"images": count, "engine_right": engine_right, "float_right": float_right}
        bundle = write_bundle(out, fields, files)
    _doubt(engine_right if float_right is None else float_right, count, imported.classes, report)
    return Conversion(bundle, count, float_right, engine_right, imported.notes + images.notes)


def _evidence(
    folder: Path, imported: ImportedNetwork, images: ConversionImages, threat: Any
) -> dict[str, bytes | Path | NDArray[Any]]:
    """Evaluation images with labels, and what the twin says to them and to adversarial versions of them."""
    judged, twin = images.evaluation, folder / "canonical.onnx"
    made = _climb(folder / "attack_here.onnx", imported, judged, threat, _TWIN_ATTACK_STEPS, ("cross_entropy",))
    adversarial = made[:, 0]
    return {
        "images.npy": np.ascontiguousarray(judged.images),
        "labels.npy": judged.labels,
        "twin_clean_logits.npy": _twin_logits(twin, judged.images),
        "twin_adversarial_images.npy": adversarial,
        "twin_adversarial_logits.npy": _twin_logits(twin, adversarial),
    }


def _doubt(right: int, images: int, classes: int, report: Report) -> None:
    """Say so where the network looks lost: as a rule its images are not made as it wants them."""
    if right < images * 2 / (classes + 1):
        report(
            f"only {right} of {images} are right: do --scale, --mean, --std, --channels and --layout describe what the "
            "network was trained on?"
        )


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
        "attack_here": graphs.attack_here,
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
    from hardbit_deploy.attacks.transfer import last_iterates
    from hardbit_deploy.engines.onnxruntime import OnnxRuntimeGradient
    from hardbit_deploy.preflight import usable_cores

    with (
        OnnxRuntimeGradient(graph, imported.input_shape, imported.classes) as gradient,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        made = pool.map(
            lambda loss: last_iterates(
                gradient, images.images, images.labels, threat, steps, loss=loss, restart=0, seed=0
            ),
            losses,
        )
        return np.stack(list(made), axis=1)


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


def _engine_right(folder: Path, imported: ImportedNetwork, images: Any, target: str) -> int:
    """How many images the engine decides rightly; of an engine that cannot run here, how many the canonical graph does,
    whose values it has."""
    if target == HERE:
        return _right(folder / "engine.onnx", imported, images)
    return int((_twin_logits(folder / "canonical.onnx", images.images).argmax(1) == images.labels).sum())
