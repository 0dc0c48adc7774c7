"""Publishing a run into the zoo: weights, card and the bundle's manifest go beside the recipe.

Boundary: copies what a run made and measured; only a PASS is published.
"""

from __future__ import annotations

from pathlib import Path

from hardbit.pipeline import RunResult
from hardbit.recipe import Recipe
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import write_atomically

__all__ = ["LARGEST_WEIGHTS", "publish"]

LARGEST_WEIGHTS = 5_000_000
"""Bytes: a zoo lives in a repository."""


def publish(recipe: Recipe, result: RunResult, command: str) -> tuple[Path, ...]:
    """Write weights, card.md and manifest.json of a whole run beside its recipe; returns the files.

    `command` is what the card tells a reader to run. Raises HardbitError for a verdict other than PASS, for a check of
    fewer images than the recipe names, and for weights that are too large.
    """
    from hardbit.report.card import model_card
    from hardbit.steps.check import Checked
    from hardbit.steps.train import Trained, load_trained_twin

    document = Checked.at(result.folder("check")).read()
    trained = Trained.at(result.folder("train"))
    weights = trained.weights.read_bytes()
    _refuse(recipe, document["verdict"]["name"], document["suite"]["images"], len(weights))
    manifest = (result.folder("bundle") / "manifest.json").read_bytes()
    parameters = sum(p.numel() for p in load_trained_twin(recipe, trained.weights).parameters())
    sizes = {recipe.weights: len(weights)}
    sizes |= {
        f"bundle/{name}": (result.folder("bundle") / name).stat().st_size for name in ("engine.onnx", "attack.onnx")
    }
    card = model_card(
        document, recipe.document(), trained.read_log(), parameters=parameters, files=sizes, command=command
    )
    files: dict[Path, bytes | str] = {
        recipe.weights_path: weights,
        recipe.folder / "card.md": card,
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
