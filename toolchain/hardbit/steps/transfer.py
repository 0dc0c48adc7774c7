"""transfer: adversarial images made on the networks of other recipes, for this network's evaluation images.

What a naive evaluation would attack is the float network, or the network of other widths. Whatever their images fool in
this network's engine counts against it, and tells whether its own gradients hide something.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardbit.recipe import Recipe, load_recipe
from hardbit.steps.export import Exported
from hardbit.steps.step import RunOptions, Step, Work
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file, write_atomically
from hardbit_deploy.suite import LOSSES

if TYPE_CHECKING:
    pass

__all__ = ["STEP", "Transferred"]


@dataclass(frozen=True)
class Transferred:
    """The files that this step leaves: images of every source, and a list of the sources."""

    folder: Path
    sources: Path

    @classmethod
    def at(cls, folder: Path) -> Transferred:
        return cls(folder, folder / "sources.json")

    def images(self, source: str) -> Path:
        """Of one source: uint8 (n, candidates, channels, height, width)."""
        return self.folder / f"{source}.npy"

    def read_sources(self) -> list[dict[str, Any]]:
        """Name, number of candidates, and how they were made."""
        sources: list[dict[str, Any]] = json.loads(self.sources.read_text())
        return sources


def _run(work: Work) -> str:
    exported, transferred = Exported.at(work.inputs["export"]), Transferred.at(work.folder)
    images, labels = np.load(exported.images), np.load(exported.labels)
    sources = []
    for other in _sources(work.recipe):
        _refuse_other_images(other, work.recipe)
        work.progress.remark(f"adversarial images of {other.name}")
        made = _made_on(other, work.recipe, images, labels)
        np.save(transferred.images(other.name), made)
        sources.append({"name": other.name, "candidates": made.shape[1], "made": _how(other, work.recipe)})
    write_atomically(transferred.sources, json.dumps(sources, indent=1))
    names = ", ".join(source["name"] for source in sources)
    return f"{len(images):,} images made on each of {names}" if sources else "no other networks are named"


def _made_on(other: Recipe, recipe: Recipe, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Every loss and restart is a candidate: each fools some images that the others do not."""
    from hardbit.graph.export import export_canonical
    from hardbit.graph.gradient import build_attack_graph
    from hardbit.steps.train import load_trained_twin
    from hardbit_deploy.attacks import ThreatModel
    from hardbit_deploy.attacks.transfer import last_iterates
    from hardbit_deploy.engines.onnxruntime import OnnxRuntimeGradient
    from hardbit_deploy.preflight import usable_cores

    shape, suite = other.network.input_shape, recipe.suite
    model = ThreatModel.of(recipe.threat_model.norm, recipe.threat_model.eps_255)
    twin = load_trained_twin(other, other.weights_path)
    canonical = export_canonical(twin, shape, profile=other.quantization.profile)
    climbs = [(loss, restart) for loss in LOSSES for restart in range(suite.restarts)]
    with tempfile.TemporaryDirectory(prefix="hardbit-transfer-") as folder:
        graph = Path(folder) / "attack.onnx"
        graph.write_bytes(build_attack_graph(canonical).SerializeToString())
        with (
            OnnxRuntimeGradient(graph, shape, other.network.classes) as gradient,
            ThreadPoolExecutor(usable_cores()) as pool,
        ):
            candidates = pool.map(
                lambda climb: last_iterates(
                    gradient, images, labels, model, suite.steps, loss=climb[0], restart=climb[1], seed=suite.seed
                ),
                climbs,
            )
            return np.stack(list(candidates), axis=1)


def _sources(recipe: Recipe) -> list[Recipe]:
    """The recipes that are named; raises HardbitError where one has no weights, or two have one name."""
    sources = [load_recipe(recipe.folder / path) for path in recipe.suite.transfer]
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise HardbitError(f"two sources are called {source.name}", "suite.transfer", "name every network once")
        if not source.weights_path.is_file():
            raise HardbitError(
                f"the network {source.name} has no weights in {source.weights_path}",
                where="suite.transfer",
                remedy="train it first: hardbit train, and put its weights beside its recipe",
            )
    return sources


def _refuse_other_images(other: Recipe, recipe: Recipe) -> None:
    mine, theirs = recipe.network, other.network
    if (mine.input_shape, mine.classes) != (theirs.input_shape, theirs.classes):
        raise HardbitError(
            f"{other.name} takes images {list(theirs.input_shape)} of {theirs.classes} classes, this network "
            f"{list(mine.input_shape)} of {mine.classes}",
            where="suite.transfer",
            remedy="name a network for the same images",
        )


def _how(other: Recipe, recipe: Recipe) -> dict[str, Any]:
    return {
        "attack": "pgd, last iterates",
        "steps": recipe.suite.steps,
        "restarts": recipe.suite.restarts,
        "losses": list(LOSSES),
        "seed": recipe.suite.seed,
        "weights_sha256": sha256_file(other.weights_path),
    }


def _decides(recipe: Recipe, options: RunOptions) -> Mapping[str, Any]:
    sources = _sources(recipe)
    parts = ("suite.steps", "suite.restarts", "suite.seed", "threat_model")
    return {
        "sources": [
            [source.name, source.digest("network", "quantization"), sha256_file(source.weights_path)]
            for source in sources
        ],
        "recipe": recipe.digest(*parts) if sources else None,
    }


STEP = Step(
    name="transfer",
    title="adversarial images of other networks",
    needs=("export",),
    libraries=("torch", "brevitas", "onnx", "onnxruntime"),
    decides=_decides,
    run=_run,
)
