"""List the models of a folder with their figures, or write them into a page.

The figures are those of the cards that 'hardbit run RECIPE --publish' leaves beside a recipe. --write fills the places
that a Markdown page marks: <!-- zoo --> to <!-- /zoo --> with the table of all models, <!-- zoo NAME --> to
<!-- /zoo --> with the scores of one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """\
  hardbit zoo
  hardbit zoo --models ../models --json
  hardbit zoo --write README.md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="(default: models)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="fill the marked places of a Markdown page")
    parser.add_argument("--json", action="store_true", help="print the cards as one JSON object")


def run(args: argparse.Namespace) -> int:
    from hardbit.zoo import list_models

    models = list_models(args.models)
    without = [model for model in models if model.card is None]
    if args.write is not None:
        _write(args.write, models)
    if args.json:
        cards = [model.card.model_dump(mode="json") for model in models if model.card is not None]
        print(json.dumps({"models": cards, "without_card": [str(model.folder) for model in without]}))
        return 0
    if args.write is not None:
        print(f"Written     {args.write}")
    else:
        print(_listing(models))
    for model in without:
        print(f"{model.name}: not published yet; 'hardbit run {model.recipe} --publish' attacks it and writes its card")
    return 0


def _listing(models: list) -> str:
    from hardbit.zoo.table import ALIGNMENT, COLUMNS, model_row
    from hardbit_deploy.text_table import text_table

    rows = [model_row(model.card) for model in models if model.card is not None]
    return text_table([COLUMNS, *rows], ALIGNMENT, indent="") if rows else "no model here has a card"


def _write(page: Path, models: list) -> None:
    from hardbit.zoo.table import fill
    from hardbit_deploy.errors import HardbitError
    from hardbit_deploy.storage import write_atomically

    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HardbitError(f"this page cannot be read: {error}", where=str(page)) from error
    write_atomically(page, fill(text, page, models))
