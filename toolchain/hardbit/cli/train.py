"""Train the network of a recipe: weights only.

Quantization-aware adversarial training on the whole train split. A checkpoint is written after every epoch and every
ten minutes within one: after Ctrl-C or a kill the same command goes on from it, to the weights that an uninterrupted
run would have given.
torchrun starts it in several processes, one a GPU, which share every batch. Curves for TensorBoard are written to
tensorboard/ in the run's folder."""

from __future__ import annotations

import argparse
import json
import shutil

from hardbit.cli.run import add_recipe_arguments, run_folder

EXAMPLES = """\
  hardbit train models/fashion-cnn-w4a4/recipe.toml
  hardbit train recipe.toml --out weights.safetensors
  HARDBIT_DATA=/data/fashion-mnist hardbit train recipe.toml
  hardbit train recipe.toml --mlflow http://localhost:5000
  torchrun --nproc-per-node 2 -m hardbit train recipe.toml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="copy the weights here too, such as beside the recipe")
    parser.add_argument("--no-tensorboard", action="store_true", help="write no curves")
    parser.add_argument("--mlflow", metavar="URI", help="an MLflow server that gets the curves too")


def run(args: argparse.Namespace) -> int:
    from hardbit import pipeline
    from hardbit.cli.output import output_file
    from hardbit.cli.progress import progress_for
    from hardbit.processes import place
    from hardbit.recipe import load_recipe
    from hardbit.steps import processes
    from hardbit.steps.train import Trained

    recipe = load_recipe(args.recipe)
    if not place().is_leader:
        processes.follow(recipe)
        return 0
    out = output_file(args.out) if args.out else None
    options = pipeline.RunOptions(retrain=True, tensorboard=not args.no_tensorboard, mlflow=args.mlflow)
    with progress_for(args) as progress:
        result = pipeline.run(recipe, run_folder(args, recipe.name), "train", None, progress, options)
    if place().size > 1 and result.steps[0].skipped:
        processes.dismiss(recipe)
    trained = Trained.at(result.folder("train"))
    if out is not None:
        shutil.copyfile(trained.weights, out)
    if args.json:
        print(json.dumps({"weights": str(out or trained.weights), "training": trained.read_log()}))
    else:
        print(f"Weights     {out or trained.weights}")
    return 0
