"""Publishing a run into the zoo: weights, cards and the bundle's manifest go beside the recipe.

Boundary: copies what a run made and measured; only a PASS is published.
"""

from __future__ import annotations

import json
from pathlib import Path

from hardbit.pipeline import RunResult
from hardbit.recipe import Recipe
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import write_atomically

__all__ = ["LARGEST_WEIGHTS", "publish"]

LARGEST_WEIGHTS = 5_000_000
"""Bytes: a zoo lives in a repository."""


def publish(recipe: Recipe, result: RunResult, command: str) -> tuple[Path, ...]:
    """Write weights, card.md, card.json and manifest.json of a whole run beside its recipe; returns the files.

    `command` is what the card tells a reader to run. Raises HardbitError for a verdict other than PASS, for a check of
    fewer images than the recipe names, and for weights that are too large.
    """
    from hardbit.report.card import model_card
    from hardbit.steps.check import Checked
    from hardbit.steps.train import Trained, load_trained_twin
    from hardbit.zoo.card import CARD_FILE, card_text
    from hardbit.zoo.make import make_card

    document = Checked.at(result.folder("check")).read()
    trained = Trained.at(result.folder("train"))
    weights = trained.weights.read_bytes()
    _refuse(recipe, document["verdict"]["name"], document["suite"]["images"], len(weights))
    bundle = result.folder("bundle")
    manifest = (bundle / "manifest.json").read_bytes()
    graphs = sorted(file for file in bundle.glob("*.onnx") if file.name != "canonical.onnx")
    card = make_card(
        recipe,
        document,
        trained.read_log(),
        json.loads(manifest),
        parameters=sum(p.numel() for p in load_trained_twin(recipe, trained.weights).parameters()),
        files={recipe.weights: len(weights)} | {f"bundle/{file.name}": file.stat().st_size for file in graphs},
        command=command,
    )
    files: dict[Path, bytes | str] = {
        recipe.weights_path: weights,
        recipe.folder / "card.md": model_card(card),
        recipe.folder / CARD_FILE: card_text(card),
        recipe.folder / "manifest.json": manifest,
    }
    for path, content in files.items():
        write_atomically(path, content)
    return tuple(files)


def _refuse(recipe: Recipe, verdict: str, images: int, size: int) -> None:
    if verdict != "PASS":
        raise HardbitError(
            f"the verdict is {verdict}, and only a PASS is published", where=recipe.name, remedy="nothing was written"
        )
    if images < recipe.data.evaluation.count:
        raise HardbitError(
            f"{images:,} images were checked, the recipe names {recipe.data.evaluation.count:,}",
            where=recipe.name,
            remedy="leave out --images",
        )
    if size > LARGEST_WEIGHTS:
        raise HardbitError(f"the weights have {size:,} bytes, the zoo takes {LARGEST_WEIGHTS:,}", where=recipe.name)
