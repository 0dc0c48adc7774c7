"""The page on the zoo: it has every key of a card, and every file that publishing writes."""

from __future__ import annotations

import re
from pathlib import Path

from hardbit.zoo.card import Card

PAGE = (Path(__file__).parents[2] / "docs/zoo.md").read_text(encoding="utf-8")
MODEL = Path(__file__).parents[2] / "models/fashion-cnn-w4a4"


def test_every_key_of_a_card_is_there_once() -> None:
    rows = re.findall(r"^\| (`[\w`, ]+`) \|", PAGE.partition("## card.json")[2], re.M)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(Card.model_fields)


def test_the_files_of_a_model_are_those_that_ship() -> None:
    files = re.findall(r"^\| ([a-z]+\.[a-z]+) \|", PAGE, re.M)
    assert len(files) == 5
    assert all((MODEL / file).is_file() for file in files)
