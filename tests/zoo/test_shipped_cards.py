"""Every model that ships: recipe, weights, manifest and both cards belong together."""

import json
from pathlib import Path

import pytest

from hardbit.recipe import load_recipe
from hardbit.release import LARGEST_WEIGHTS
from hardbit.report.card import model_card
from hardbit.zoo import list_models
from hardbit_deploy.storage import sha256_file

MODELS = [model for model in list_models(Path(__file__).parents[2] / "models") if model.card is not None]


@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def test_the_files_of_a_model_belong_together(model):
    card, folder = model.card, model.folder
    recipe = load_recipe(folder)
    assert card.name == recipe.name == folder.name
    assert (folder / "card.md").read_text(encoding="utf-8") == model_card(card)
    assert card.provenance.weights_sha256 == sha256_file(recipe.weights_path)
    assert card.provenance.manifest_sha256 == sha256_file(folder / "manifest.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["provenance"]["training"]["training_digest"] == recipe.training_digest()
    assert card.bits.model_dump(exclude={"layers"}) == {
        kind: width for kind, width in manifest["network"]["bits"].items() if kind != "layers"
    }
    assert card.threat_model.eps_255 == recipe.threat_model.eps_255
    assert card.evaluation.images >= recipe.data.evaluation.count
    assert recipe.weights_path.stat().st_size <= LARGEST_WEIGHTS


def test_the_folder_of_models_is_of_published_ones():
    assert MODELS
