"""Tables of cards, and the places of a page that they fill."""

import re
from pathlib import Path

import pytest

from hardbit.zoo import Model, list_models
from hardbit.zoo.table import ALIGNMENT, COLUMNS, duration, fill, markdown_table, model_row, size, widths
from hardbit_deploy.errors import HardbitError
from zoo_examples import attack, card, document, write_model


def cells(made):
    return {column: cell.replace("\u00a0", " ") for column, cell in zip(COLUMNS, model_row(made), strict=True)}


def test_a_row_says_what_the_card_says():
    assert cells(card()) == {
        "model": "example-w4a4",
        "data": "fashion-mnist",
        "network": "lenet",
        "widths": "W4A4",
        "eps": "25/255",
        "clean": "86.0 %",
        "FGSM": "75.0 %",
        "PGD": "67.0 %",
        "Square": "70.0 %",
        "worst case": "66.0 % (63.9 – 68.0 %)",
        "latency": "0.0214 ms",
        "engine": "444 kB",
        "training": "13 min",
        "verdict": "PASS",
    }
    assert len(ALIGNMENT) == len(COLUMNS)


def test_an_alarm_that_the_gate_accepts_is_told():
    alarm = {"name": "surrogates", "status": "accepted", "reason": "x", "accepted_because": "y"}
    assert cells(card(alarms=[*document()["alarms"], alarm]))["verdict"] == "PASS, alarm accepted"


def test_what_was_not_measured_is_a_dash():
    attacks = [attack("clean", 0.9).model_dump(mode="json")]
    row = cells(card(attacks=attacks, latency=None, training={**document()["training"], "seconds": 0.0}))
    assert [row[key] for key in ("FGSM", "PGD", "Square", "worst case", "latency", "training")] == ["–"] * 6


@pytest.mark.parametrize(
    ("bits", "name"),
    [((32, 32), "float"), ((1, 4), "W1A4"), ((4, 32), "W4Afloat"), ((32, 8), "WfloatA8"), ((8, 8), "W8A8")],
)
def test_widths_by_their_usual_names(bits, name):
    made = card("x", *bits)
    assert widths(made.bits) == name
    assert widths(made.bits.model_copy(update={"layers": {"conv1": 2}})) == f"{name}+"


def test_sizes_and_durations_have_the_unit_that_fits():
    assert [size(n).replace("\u00a0", " ") for n in (999_499, 1_234_567, 4_000)] == ["999 kB", "1.23 MB", "4 kB"]
    assert [duration(s).replace("\u00a0", " ") for s in (0, 90, 7000, 9000)] == ["–", "2 min", "117 min", "2.5 h"]


def test_models_stand_by_set_network_and_falling_width_and_those_without_a_card_last(tmp_path):
    write_model(tmp_path, "a-without", None)
    for name, weights, activations in (("a-w1a4", 1, 4), ("a-w4a4", 4, 4), ("a-float", 32, 32), ("a-w2a2", 2, 2)):
        write_model(tmp_path, name, card(name, weights, activations))
    earlier = document("b-w4a4", data={**document()["data"], "set": "cifar10"})
    write_model(tmp_path, "b-w4a4", card(**earlier))
    (tmp_path / "no-model").mkdir()
    models = list_models(tmp_path)
    assert [model.name for model in models] == ["b-w4a4", "a-float", "a-w4a4", "a-w1a4", "a-w2a2", "a-without"]
    assert models[-1].card is None


def test_a_folder_without_models_is_said(tmp_path):
    with pytest.raises(HardbitError, match="there are no models in it; a model is a folder with recipe"):
        list_models(tmp_path)
    with pytest.raises(HardbitError, match="there is no such folder; name the folder of models: --models"):
        list_models(tmp_path / "nowhere")


def page(tmp_path, text):
    models = tmp_path / "models"
    for name, made in (("a-w4a4", card("a-w4a4")), ("b", None)):
        write_model(models, name, made)
    return fill(text, tmp_path / "docs" / "page.md", list_models(models))


def test_the_places_of_a_page_are_filled_and_nothing_else_is_touched(tmp_path):
    text = (
        "Before\n<!-- zoo -->\nold\n\n| table |\n<!-- /zoo -->\n*between*\n<!-- zoo a-w4a4 -->\n<!-- /zoo -->\nAfter\n"
    )
    filled = page(tmp_path, text)
    assert filled.startswith("Before\n<!-- zoo -->\n| model | data |")
    assert "[a-w4a4](../models/a-w4a4/card.md)" in filled
    assert "old" not in filled
    scores = filled.partition("*between*\n<!-- zoo a-w4a4 -->\n")[2]
    assert scores.startswith("| attack | right | rate | 95 % interval |")
    assert "| PGD-20 margin, smooth surrogate | 1,340 of 2,000 |" in scores
    assert "The strongest single attack was PGD-20 margin, smooth surrogate" in scores
    assert filled.endswith("\n<!-- /zoo -->\nAfter\n")
    models = list_models(tmp_path / "models")
    assert fill(filled, tmp_path / "docs/page.md", models) == filled, "filling twice is filling once"


def test_a_place_of_a_model_without_a_card_is_left_as_it_is(tmp_path):
    text = "<!-- zoo b -->\nwritten by hand\n<!-- /zoo -->\n"
    assert page(tmp_path, text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no place", "there is no place for a table in it; write <!-- zoo --> and <!-- /zoo --> there"),
        ("<!-- zoo -->\n<!-- zoo a-w4a4 -->\n<!-- /zoo -->\n", "there is no place for a table in it"),
        ("<!-- zoo -->\nnever closed", "there is no place for a table in it"),
        ("<!-- zoo c -->\n<!-- /zoo -->", "there is no model 'c'; known: a-w4a4, b"),
    ],
)
def test_each_defect_of_a_page_is_named(tmp_path, text, message):
    with pytest.raises(HardbitError, match=re.escape(message)):
        page(tmp_path, text)


def test_without_any_card_there_is_a_sentence_in_place_of_the_table():
    assert markdown_table([Model(Path("models/x"), None)], Path("README.md")) == "No model here has been published yet."
