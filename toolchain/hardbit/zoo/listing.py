"""A folder of models -> the models in it, in the order in which tables show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hardbit.zoo.card import CARD_FILE, Card, read_card
from hardbit_deploy.errors import HardbitError

__all__ = ["Model", "list_models"]


@dataclass(frozen=True)
class Model:
    """A folder with a recipe; `card` is None until a run of it has been published."""

    folder: Path
    card: Card | None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"


def list_models(folder: Path) -> list[Model]:
    """Every subfolder of `folder` that has a recipe: those with a card by data set, network and falling width, then
    those without.

    Raises HardbitError if there is none, and for a card that cannot be read.
    """
    if not folder.is_dir():
        raise HardbitError("there is no such folder", where=str(folder), remedy="name the folder of models: --models")
    models = []
    for recipe in sorted(folder.glob("*/recipe.toml")):
        file = recipe.parent / CARD_FILE
        models.append(Model(recipe.parent, read_card(file) if file.is_file() else None))
    if not models:
        raise HardbitError(
            "there are no models in it", where=str(folder), remedy="a model is a folder with recipe.toml"
        )
    return sorted(models, key=_place)


def _place(model: Model) -> tuple[bool, str, str, int, int, str]:
    card = model.card
    if card is None:
        return True, "", "", 0, 0, model.name
    return (
        False,
        card.data.set,
        card.network.architecture,
        -card.bits.activations,
        -card.bits.weights,
        model.name,
    )
