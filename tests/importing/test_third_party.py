"""Networks of other people, with published figures: they convert, and score what their publishers say.

HARDBIT_THIRD_PARTY names the folder of the files with their `manifest.json`; HARDBIT_DATA has the images.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hardbit.data import load_images
from hardbit.graph.gradient import build_attack_graph
from hardbit.importing import ImportedNetwork, Preprocessing, import_network
from hardbit.importing.conversion import convert_onnx
from hardbit.importing.graphs import float_bytes_graph
from hardbit.importing.request import read_request
from hardbit_deploy.attacks import ThreatModel, random_start
from hardbit_deploy.attacks.iterates import iterates_from
from hardbit_deploy.bundle import load_bundle
from hardbit_deploy.engines import Engine, Gradient
from hardbit_deploy.engines.onnxruntime import (
    OnnxRuntimeEngine,
    OnnxRuntimeGradient,
    executed_precision,
    open_engine,
    open_gradient,
)
from hardbit_deploy.statistics import wilson_interval

FOLDER = os.environ.get("HARDBIT_THIRD_PARTY", "")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="HARDBIT_THIRD_PARTY does not name the folder of third-party networks"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
MANIFEST = {} if not FOLDER else {e["name"]: e for e in json.loads((Path(FOLDER) / "manifest.json").read_text())}
ATTACKED = [name for name, entry in MANIFEST.items() if "measured_pgd20" in entry]
STEPS = 20


def preprocessing(entry: dict[str, Any]) -> Preprocessing:
    said = entry["preprocessing"]
    scale = 1 / 255 if said["scale"] == "x/255" else 1.0
    return Preprocessing(scale=scale, mean=tuple(said["mean"]), std=tuple(said["std"]))


@pytest.fixture(scope="session")
def signs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """GTSRB at 30 x 30: an npz with some images to calibrate with and the first 1,000 test images."""
    sets = {"train": load_images("gtsrb", "train", 2000), "test": load_images("gtsrb", "test", 1000)}
    arrays: dict[str, Any] = {}
    for split, images in sets.items():
        pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images.images]
        small = [np.asarray(picture.resize((30, 30), Image.Resampling.BICUBIC)) for picture in pictures]
        arrays |= {f"x_{split}": np.stack(small), f"y_{split}": images.labels}
    path = tmp_path_factory.mktemp("signs") / "gtsrb30.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def images_of(entry: dict[str, Any], signs: str) -> str:
    return {"CIFAR-10": "cifar10", "MNIST": "mnist"}.get(entry["dataset"], signs)


def inside(published: float, right: int, images: int) -> bool:
    """Whether a published rate lies in the interval, at 95 %, of our count on images of the same set."""
    low, high = wilson_interval(right, images)
    return low <= published <= high


def say(line: str) -> None:
    """Shown with `pytest -s`: the figures for the documentation."""
    sys.stdout.write(f"{line}\n")


@pytest.mark.parametrize("name", MANIFEST)
def test_it_converts_and_is_as_right_as_published(name: str, signs: str, tmp_path: Path) -> None:
    entry = MANIFEST[name]
    given = {"calibrate": images_of(entry, signs), "suite": "quick", "eps_255": 2.0, "count": 1000}
    request = read_request(Path(FOLDER) / entry["file"], given)
    said = preprocessing(entry)
    request = type(request)(**{**vars(request), "preprocessing": said})
    made = convert_onnx(request, tmp_path / "bundle", lambda line: None)
    bundle = load_bundle(tmp_path / "bundle")
    say(f"{name}: float {made.float_right}, engine {made.engine_right} of 1000; {made.notes}")
    assert made.float_right is not None
    assert inside(entry["clean_acc_first_1000_test"], made.float_right, 1000)
    assert inside(entry["clean_acc_first_1000_test"], made.engine_right, 1000)
    report = executed_precision(bundle)
    assert report.status == "integer", report
    assert len(bundle.manifest.integer_nodes) >= 1


def pgd(
    engine: Engine,
    gradient: Gradient,
    images: np.ndarray,
    labels: np.ndarray,
    eps_255: float,
    step_255: float,
    start: np.ndarray | None = None,
) -> int:
    """Images that every iterate of PGD-20 leaves right, from the image itself or `start`.

    So the manifest's figures were made, but not on bytes.
    """
    model = ThreatModel.of("linf", eps_255)
    iterates = iterates_from(images, images.copy() if start is None else start, model)
    standing = np.ones(len(images), bool)
    for step in range(STEPS + 1):
        logits = engine.infer(iterates.bytes)
        standing &= logits.argmax(1) == labels
        if step < STEPS:
            iterates.step(gradient.gradient(iterates.bytes, labels, logits, "cross_entropy"), step_255)
    return int(standing.sum())


def opened(network: ImportedNetwork, folder: Path) -> tuple[OnnxRuntimeEngine, OnnxRuntimeGradient]:
    """The float network as an engine, and its own attack graph."""
    for stem, model in (("engine", float_bytes_graph(network.model)), ("attack", build_attack_graph(network.model))):
        (folder / f"{stem}.onnx").write_bytes(model.SerializeToString())
    shape, classes = network.input_shape, network.classes
    return (
        OnnxRuntimeEngine(folder / "engine.onnx", shape, classes).activate(),
        OnnxRuntimeGradient(folder / "attack.onnx", shape, classes).activate(),
    )


@pytest.mark.parametrize("name", ATTACKED)
def test_its_own_pgd_is_as_strong_as_measured(name: str, signs: str, tmp_path: Path) -> None:
    """The float network through its own attack graph, at the eps and on the images of the manifest."""
    entry = MANIFEST[name]
    measured = entry["measured_pgd20"]
    network = import_network(Path(FOLDER) / entry["file"], preprocessing=preprocessing(entry))
    engine, gradient = opened(network, tmp_path)
    first = load_images(images_of(entry, signs), "test", 200)
    eps_255 = measured["eps"] * 255
    eps_255 = round(eps_255) if abs(eps_255 - round(eps_255)) < 0.01 else eps_255
    right = pgd(engine, gradient, first.images, first.labels, eps_255, eps_255 / 4)
    say(f"{name}: {right} of 200 survive PGD-20 at eps {eps_255:g}/255; measured {measured['accuracy']}")
    assert inside(measured["accuracy"], right, 200)


class HardRounding(Gradient):
    """What a framework's derivative through rounding is: rounding is flat, and the image is rounded first, so 0."""

    def activate_impl(self) -> None: ...

    def deactivate_impl(self) -> None: ...

    def gradient_impl(self, images: np.ndarray, labels: np.ndarray, engine_logits: np.ndarray, loss: str) -> np.ndarray:
        return np.zeros(images.shape, np.float32)

    def logits_impl(self, images: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def pullback_impl(self, images: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return np.zeros(images.shape, np.float32)


def test_an_int8_engine_is_as_robust_as_its_float_network_and_no_more(tmp_path: Path) -> None:
    """ResNet-2B at eps 2/255: hard rounding makes the engine look 10 points and more too robust, transfer a few, the
    straight-through attack through the engine gives the float network's own figure, to two points."""
    entry, images = MANIFEST["resnet_2b"], 1000
    given = {"calibrate": "cifar10", "suite": "quick", "eps_255": 2.0, "count": images}
    request = read_request(Path(FOLDER) / entry["file"], given)
    request = type(request)(**{**vars(request), "preprocessing": preprocessing(entry)})
    convert_onnx(request, tmp_path / "bundle", lambda line: None)
    bundle = load_bundle(tmp_path / "bundle")
    judged, labels = np.asarray(bundle.images), np.asarray(bundle.labels)
    shape, classes = bundle.manifest.input_shape, bundle.manifest.classes
    model = ThreatModel.of("linf", 2)
    with open_engine(bundle) as engine, open_gradient(bundle) as gradient, HardRounding(shape, classes) as flat:
        start = random_start(judged, model, seed=0, stream=0, indices=np.arange(images))
        hard = pgd(engine, flat, judged, labels, 2, 0.5, start)
        through = pgd(engine, gradient, judged, labels, 2, 0.5)
        (moved,) = bundle.transfers.values()
        standing = engine.infer(judged).argmax(1) == labels
        clean = int(standing.sum())
        transfer = int((standing & (engine.infer(moved[:, 0]).argmax(1) == labels)).sum())
    network = import_network(Path(FOLDER) / entry["file"], preprocessing=preprocessing(entry))
    own = pgd(*opened(network, tmp_path), judged, labels, 2, 0.5)
    say(f"clean {clean}, hard rounding {hard}, transfer {transfer}, straight-through {through}, float's own {own}")
    assert abs(through - own) <= 0.02 * images
    assert through <= transfer <= hard
    assert hard - through >= 0.08 * images
    assert inside(entry["measured_pgd20"]["accuracy"], own, images)
