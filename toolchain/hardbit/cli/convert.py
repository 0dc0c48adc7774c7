"""Convert a recipe with its weights, or anybody's ONNX image classifier, to a bundle.

The bundle is one folder that a board needs nothing else next to: engine graph, attack graph, evaluation images, gate,
provenance, and a SHA-256 of every file. Nothing is trained here. A float ONNX file is quantized by what its layers hold
on the images of --calibrate; one that is quantized already is taken as it is. What flags leave open is read from
FILE.toml beside FILE.onnx, if there is one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hardbit_deploy.errors import HardbitError

EXAMPLES = """\
  hardbit convert models/fashion-cnn-w4a4/recipe.toml --out fashion.bundle
  hardbit convert my-weights.safetensors --recipe recipe.toml --out mine.bundle
  hardbit convert resnet.onnx --calibrate cifar10 --eps 2 --mean 0.4914,0.4822,0.4465 --std 0.2471,0.2435,0.2616
  hardbit convert mlp.onnx --calibrate mnist --eps 25 --count 500 --out mlp.bundle
  hardbit convert keras.onnx --calibrate npz:signs.npz --layout nhwc --scale 1 --eps 8"""

_ACCEPTED = (
    "accepted are a recipe (recipe.toml) with its weights, a weights file (.safetensors) with --recipe, and an ONNX "
    "file (.onnx) with --calibrate"
)
_OF_RECIPES = ("recipe", "run_dir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a recipe, .safetensors with --recipe, or an ONNX file")
    parser.add_argument("--target", metavar="NAME", help="the engine to lower to (default: the recipe's; onnxruntime)")
    parser.add_argument("--out", metavar="DIR", help="the bundle's folder (default: RUN_DIR/bundle, NAME.bundle)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of progress")
    recipes = parser.add_argument_group("recipes and weights")
    recipes.add_argument("--recipe", metavar="RECIPE", help="the recipe that a weights file belongs to")
    recipes.add_argument("--run-dir", metavar="DIR", help="where the steps leave their results (default: runs/NAME)")
    _add_image_arguments(parser.add_argument_group("ONNX files: images"))
    _add_network_arguments(parser.add_argument_group("ONNX files: the network"))
    _add_judgement_arguments(parser.add_argument_group("ONNX files: quantization and judgement"))


def _add_image_arguments(group: Any) -> None:
    group.add_argument("--calibrate", metavar="DATA", help="images for calibration: cifar10, npz:FILE, folder:DIR, ...")
    group.add_argument("--calibrate-split", choices=("train", "test"), help="default: train, or test if there is none")
    group.add_argument(
        "--calibration-images", dest="calibration_count", type=int, metavar="N", help="how many (default: 512)"
    )
    group.add_argument("--data", metavar="DATA", help="images to judge on (default: the set of --calibrate)")
    group.add_argument("--split", choices=("train", "test"), help="default: test")
    group.add_argument("--count", type=int, metavar="N", help="the first N of them (default: 1000, or all)")


def _add_network_arguments(group: Any) -> None:
    group.add_argument("--name", help="of the bundle (default: the file's)")
    group.add_argument("--layout", choices=("auto", "nchw", "nhwc"), help="where its channels stand (default: auto)")
    group.add_argument("--channels", choices=("rgb", "bgr"), help="in which order they come (default: rgb)")
    group.add_argument("--image-shape", type=_shape, metavar="C,H,W", help="where the input does not tell it")
    group.add_argument("--scale", type=_scale, metavar="S", help="it reads (pixel * S - mean) / std (default: 1/255)")
    group.add_argument("--mean", type=_numbers, metavar="M,...", help="one for all channels or one each (default: 0)")
    group.add_argument("--std", type=_numbers, metavar="S,...", help="one for all channels or one each (default: 1)")
    group.add_argument("--output", metavar="TENSOR", help="the output that holds the logits, of several")
    group.add_argument("--classes-file", metavar="FILE", help="names of the classes, one a line")
    group.add_argument(
        "--sign",
        choices=("auto", "clipped", "identity"),
        help="how derivatives pass a Sign: where |x| <= 1, everywhere, or the stronger (default: auto)",
    )


def _add_judgement_arguments(group: Any) -> None:
    group.add_argument("--calibration", choices=("max", "percentile", "entropy", "mse"), help="default: percentile")
    group.add_argument("--bits", type=int, metavar="N", help="of weights and activations, 2 to 8 (default: 8)")
    group.add_argument("--norm", choices=("linf", "l2"), help="of the attacker (default: linf)")
    group.add_argument("--eps", dest="eps_255", type=float, metavar="E", help="in grey levels: 8 is 8/255 (default: 8)")
    group.add_argument("--suite", metavar="NAME", help="attacks that the bundle asks for (default: standard)")


_ONNX_VALUES = (
    "calibrate", "calibrate_split", "calibration_count", "data", "split", "count", "name", "layout", "channels",
    "image_shape", "scale", "mean", "std", "output", "sign", "calibration", "bits", "norm", "eps_255", "suite",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    source = Path(args.source)
    if source.suffix == ".onnx":
        return _convert_onnx(source, args)
    _refuse_flags(args, (*_ONNX_VALUES, "classes_file"), "it belongs to ONNX files; a recipe says it itself")
    return _convert_recipe(args)


def _convert_onnx(source: Path, args: argparse.Namespace) -> int:
    from hardbit.importing.conversion import convert_onnx
    from hardbit.importing.request import read_request

    _refuse_flags(args, _OF_RECIPES, "it belongs to recipes; an ONNX file has none")
    if not source.is_file():
        raise HardbitError("there is no such file", where=str(source), remedy=_ACCEPTED)
    given = {name: getattr(args, name) for name in _ONNX_VALUES} | {"target": args.target}
    if args.classes_file:
        given["class_names"] = _lines(Path(args.classes_file))
    request = read_request(source, given)
    out = Path(args.out or f"{request.model_name}.bundle")
    report = (lambda line: None) if args.json else (lambda line: print(line, flush=True))
    made = convert_onnx(request, out, report)
    if args.json:
        document = {
            "bundle": str(made.bundle.path),
            "manifest_sha256": made.bundle.manifest_sha256,
            "images": made.images,
            "float_right": made.float_right,
            "engine_right": made.engine_right,
            "notes": list(made.notes),
        }
        print(json.dumps(document))
        return 0
    if made.float_right is not None:
        print(f"Float       {made.float_right:,} of {made.images:,} right: {made.float_right / made.images:.1%}")
    print(f"Engine      {made.engine_right:,} of {made.images:,} right: {made.engine_right / made.images:.1%}")
    threat = made.bundle.manifest.threat_model
    print(f"Attacker    {threat.norm}, eps {threat.eps_255:g}/255")
    print(f"Bundle      {made.bundle.path}")
    return 0


def _convert_recipe(args: argparse.Namespace) -> int:
    from hardbit import pipeline
    from hardbit.cli.progress import progress_for
    from hardbit.cli.run import run_folder
    from hardbit.recipe import load_recipe
    from hardbit_deploy.bundle import load_bundle, write_bundle

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
    source = Path(args.source)
    if source.suffix == ".safetensors":
        if not args.recipe:
            raise HardbitError("weights alone do not say which network they belong to", where=args.source,
                               remedy="name its recipe with --recipe")  # fmt: skip
        return Path(args.recipe), source
    if source.is_dir() or source.suffix == ".toml":
        if args.recipe:
            raise HardbitError("two recipes are named", where="--recipe", remedy=_ACCEPTED)
        return source, None
    raise HardbitError("this is neither a recipe, nor weights, nor ONNX", where=args.source, remedy=_ACCEPTED)


def _refuse_flags(args: argparse.Namespace, names: tuple[str, ...], remedy: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            flag = {"eps_255": "eps", "calibration_count": "calibration-images"}.get(name, name.replace("_", "-"))
            raise HardbitError(f"--{flag} says nothing about this source", where=args.source, remedy=remedy)


def _lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise HardbitError("there is no such file", where=str(path), remedy="name a text file, one class a line")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _numbers(text: str) -> tuple[float, ...]:
    from hardbit.importing.request import numbers_of

    try:
        return numbers_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' are no numbers with commas between them") from None


def _scale(text: str) -> float:
    values = _numbers(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError("must be one number, such as 1/255")
    return values[0]


def _shape(text: str) -> tuple[int, int, int]:
    from hardbit.importing.request import shape_of

    try:
        return shape_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be CHANNELS,HEIGHT,WIDTH") from None
