"""Convert a recipe with its trained weights, or a weights file and its recipe, to a bundle.

The bundle is one folder that a board needs nothing else next to: engine graph, attack graph, evaluation images, gate,
provenance, and a SHA-256 of every file. Nothing is trained here. ONNX files of unknown origin are not accepted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """\
  hardbit convert models/fashion-cnn-w4a4/recipe.toml --out fashion.bundle
  hardbit convert my-weights.safetensors --recipe recipe.toml --out mine.bundle"""

_ACCEPTED = "accepted are a recipe (recipe.toml) with its weights, or a weights file (.safetensors) with --recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a recipe, or a .safetensors file of weights with --recipe")
    parser.add_argument("--recipe", metavar="RECIPE", help="the recipe that a weights file belongs to")
    parser.add_argument("--target", metavar="NAME", help="the engine to lower to (default: the recipe's)")
    parser.add_argument("--out", metavar="DIR", help="the bundle's folder (default: RUN_DIR/bundle)")
    parser.add_argument("--run-dir", metavar="DIR", help="where the steps leave their results (default: runs/NAME)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of progress")


def run(args: argparse.Namespace) -> int:
    from hardbit import pipeline
    from hardbit.cli.progress import progress_for
    from hardbit.cli.run import run_folder
    from hardbit.recipe import load_recipe
    from hardbit_deploy.bundle import load_bundle, write_bundle
    from hardbit_deploy.errors import HardbitError

    recipe_file, weights = _sources(args)
    recipe = load_recipe(recipe_file)
    if args.target not in (None, recipe.target.name):
        from hardbit.targets import names

        raise HardbitError(
            f"the recipe's network is trained for target '{recipe.target.name}', not '{args.target}'",
            where="--target",
            remedy=f"known targets: {', '.join(names())}; training belongs to the target, so change the recipe's",
        )
    options = pipeline.RunOptions(weights=weights, may_train=False)
    with progress_for(args) as progress:
        result = pipeline.run(recipe, run_folder(args, recipe.name), "bundle", None, progress, options)
    bundle = load_bundle(result.folder("bundle"))
    if args.out:
        fields = {k: v for k, v in bundle.manifest.document.items() if k not in ("format", "schema_version", "files")}
        bundle = write_bundle(args.out, fields, {name: bundle.file(name) for name in bundle.manifest.files})
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), "manifest_sha256": bundle.manifest_sha256}))
    else:
        print(f"Bundle      {bundle.path}")
    return 0


def _sources(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """The recipe's file and the weights' file, if one is named. Raises HardbitError for anything else."""
    from hardbit_deploy.errors import HardbitError

    source = Path(args.source)
    if source.suffix == ".onnx":
        raise HardbitError("an ONNX file of unknown origin cannot be converted", where=args.source, remedy=_ACCEPTED)
    if source.suffix == ".safetensors":
        if not args.recipe:
            raise HardbitError("weights alone do not say which network they belong to", where=args.source,
                               remedy="name its recipe with --recipe")  # fmt: skip
        return Path(args.recipe), source
    if source.is_dir() or source.suffix == ".toml":
        if args.recipe:
            raise HardbitError("two recipes are named", where="--recipe", remedy=_ACCEPTED)
        return source, None
    raise HardbitError("this is neither a recipe nor weights", where=args.source, remedy=_ACCEPTED)
