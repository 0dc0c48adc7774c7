"""`hardbit zoo`: the models of a folder for people, for machines, and into a page."""

import json

import pytest

from hardbit import cli
from zoo_examples import card, write_model


@pytest.fixture
def models(tmp_path):
    for name, made in (("a-w4a4", card("a-w4a4")), ("a-float", card("a-float", 32, 32)), ("b", None)):
        write_model(tmp_path / "models", name, made)
    return tmp_path / "models"


def test_a_table_for_people_and_a_word_on_what_has_no_card(models, capsys):
    assert cli.main(["zoo", "--models", str(models)]) == 0
    header, first, second, without = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["model", "data", "network", "widths"]
    assert first.split()[:4] == ["a-float", "fashion-mnist", "lenet", "float"]
    assert second.split()[:4] == ["a-w4a4", "fashion-mnist", "lenet", "W4A4"]
    assert without == (
        f"b: not published yet; 'hardbit run {models}/b/recipe.toml --publish' attacks it and writes its card"
    )


def test_the_default_is_the_folder_of_models_here(models, capsys, monkeypatch):
    monkeypatch.chdir(models.parent)
    assert cli.main(["zoo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in document["models"]] == ["a-float", "a-w4a4"]
    assert document["models"][1]["attacks"][0]["rate"] == 0.86
    assert document["without_card"] == ["models/b"]


def test_a_page_is_written(models, capsys):
    page = models.parent / "README.md"
    page.write_text("# Title\n<!-- zoo -->\n<!-- /zoo -->\n")
    assert cli.main(["zoo", "--models", str(models), "--write", str(page)]) == 0
    assert "[a-w4a4](models/a-w4a4/card.md)" in page.read_text()
    assert capsys.readouterr().out.startswith(f"Written     {page}\n")


def test_mistakes_end_with_one_line(models, tmp_path, capsys):
    assert cli.main(["zoo", "--models", str(tmp_path / "nowhere")]) == 64
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["zoo", "--models", str(models), "--write", str(tmp_path / "nowhere.md")]) == 64
    assert "this page cannot be read" in capsys.readouterr().err
    (models / "a-w4a4" / "card.json").write_text("{}")
    assert cli.main(["zoo", "--models", str(models)]) == 64
    assert "a-w4a4/card.json: this is not a card" in capsys.readouterr().err


def test_a_folder_in_which_nothing_is_published_is_no_error(tmp_path, capsys):
    write_model(tmp_path, "b", None)
    assert cli.main(["zoo", "--models", str(tmp_path)]) == 0
    assert "no model here has a card" in capsys.readouterr().out
