"""Run every step of a recipe, ending in a verdict and a report.

Steps: train, export, lower, differentiate, transfer, bundle, check, report. A step whose inputs have not changed is
skipped, so the command can be given again after Ctrl-C or a change and does only what is left. Weights that lie beside
the recipe and were trained by it are taken as they are. The exit code is the verdict's: 0 PASS, 1 FAIL,
75 INCONCLUSIVE, 2 WRONG_ENGINE, 3 ENV_MISMATCH."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hardbit_deploy.errors import HardbitError

EXAMPLES = """\
  hardbit run models/fashion-cnn-w4a4/recipe.toml
  hardbit run recipe.toml --until bundle
  hardbit run recipe.toml --from check
  hardbit run recipe.toml --retrain --run-dir runs/mine
  hardbit run models/fashion-cnn-w4a4/recipe.toml --retrain --publish"""

_STEPS = ("train", "export", "lower", "differentiate", "transfer", "bundle", "check", "report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--until", choices=_STEPS, metavar="STEP", help="the last step to run")
    parser.add_argument(
        "--from", dest="start", choices=_STEPS, metavar="STEP", help="run this step and those after it again"
    )
    parser.add_argument("--retrain", action="store_true", help="train even where weights are shipped")
    parser.add_argument(
        "--publish", action="store_true", help="after a PASS, write weights, card and manifest beside the recipe"
    )
    parser.add_argument("--images", type=_count, metavar="N", help="check the first N evaluation images only")
    parser.add_argument("--latency", choices=("full", "short", "off"), default="full", help="full is latency-v1")


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb that takes a recipe has."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe.toml, or the folder that holds one")
    parser.add_argument("--run-dir", metavar="DIR", help="where results go (default: runs/NAME)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of progress and summary")


def run(args: argparse.Namespace) -> int:
    from hardbit import pipeline
    from hardbit.cli.progress import progress_for
    from hardbit.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    if args.publish and args.until not in (None, "check", "report"):
        raise HardbitError("a run that ends before its check cannot be published", "--publish", "leave out --until")
    options = pipeline.RunOptions(retrain=args.retrain, images=args.images, latency=args.latency)
    with progress_for(args) as progress:
        result = pipeline.run(recipe, run_folder(args, recipe.name), args.until, args.start, progress, options)
    document, page = _outcome(result)
    if not args.json and document is not None:
        from hardbit.report import summary

        print(f"\n{summary(document)}")
        if page is not None:
            print(f"Report      {page}", flush=True)
    published = _publish(args, recipe, result)
    if args.json:
        print(json.dumps(_as_json(result, document, page) | {"published": published}))
    else:
        for file in published:
            print(f"Published   {file}")
    return int(document["verdict"]["exit_code"]) if document is not None else 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def run_folder(args: argparse.Namespace, name: str) -> Path:
    """The run's folder: as given, or runs/NAME below the working folder."""
    return Path(args.run_dir) if args.run_dir else Path("runs") / name


def _publish(args: argparse.Namespace, recipe: Any, result: Any) -> list[str]:
    """The files written beside the recipe, none where that was not asked for."""
    if not args.publish:
        return []
    from hardbit.release import publish

    return [str(file) for file in publish(recipe, result, f"hardbit run {args.recipe} --retrain --publish")]


def _outcome(result: Any) -> tuple[dict[str, Any] | None, Path | None]:
    """The result document and the report, of a run that came so far."""
    from hardbit.steps.check import Checked
    from hardbit.steps.report import Reported

    done = {step.name for step in result.steps}
    document = Checked.at(result.folder("check")).read() if "check" in done else None
    page = Reported.at(result.folder("report")).page if "report" in done else None
    return document, page


def _as_json(result: Any, document: dict[str, Any] | None, page: Path | None) -> dict[str, Any]:
    return {
        "run_dir": str(result.run_dir),
        "steps": [
            {"name": step.name, "note": step.note, "seconds": step.seconds, "skipped": step.skipped}
            for step in result.steps
        ],
        "verdict": document["verdict"] if document else None,
        "result": document,
        "report": str(page) if page else None,
    }
