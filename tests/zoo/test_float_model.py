"""A network in float goes through every step and into the zoo: what the low-bit ones are compared with."""

import functools

from hardbit import cli
from hardbit.zoo import list_models, read_card
from hardbit.zoo.table import COLUMNS, model_row
from recipe_examples import RECIPE, write_bars

FLOAT = {
    "[4, 4]": "[8, 16]",
    "hidden = 8": "hidden = 32",
    "eps_255 = 8": "eps_255 = 2",
    "steps = 3": "steps = 10\nsquare_queries = 0",
    "weights = 4": "weights = 32\nfirst_layer = 32\nlast_layer = 32",
    "activations = 4": "activations = 32",
}
GATE = "[gate.clean]\nreference = 0.5\nmargin = 0.2\n"


def test_a_float_network_is_trained_judged_and_published(tmp_path, capsys):
    folder = tmp_path / "models" / "bars-float"
    folder.mkdir(parents=True)
    recipe = write_bars(folder, functools.reduce(lambda t, c: t.replace(*c), FLOAT.items(), RECIPE) + GATE)
    assert cli.main(["run", str(recipe), "--run-dir", str(tmp_path / "run"), "--latency", "off", "--publish"]) == 0
    card = read_card(folder / "card.json")
    assert card.verdict == "PASS"
    assert card.engine.integer_layers == 0
    assert [layer.name for layer in card.engine.float_layers] == ["conv1", "conv2", "fc1", "fc2"]
    page = (folder / "card.md").read_text()
    assert "in 32-bit float throughout" in page
    assert "scales fixed" not in page
    (model,) = list_models(folder.parent)
    assert dict(zip(COLUMNS, model_row(model.card), strict=True))["widths"] == "float"
