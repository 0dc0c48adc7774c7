"""Copy the first images of a set into a small .npz, so that a model's folder can carry its evaluation images.

python -m hardbit.data.extract fashion-mnist test 2000 models/fashion-cnn-w4a4/images.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hardbit.data.load import load_images, set_names
from hardbit.data.npz import write_npz
from hardbit_deploy.errors import HardbitError

__all__ = ["extract", "main"]

_PROVENANCE = {
    "mnist": "first {count} images of MNIST's {split} split, Y. LeCun, C. Cortes, C. Burges",
    "fashion-mnist": "first {count} images of Fashion-MNIST's {split} split, (c) 2017 Zalando SE, MIT licence, "
    "https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "first {count} images of CIFAR-10's {split} split, A. Krizhevsky, Learning Multiple Layers of Features "
    "from Tiny Images, 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
    "gtsrb": "first {count} images of GTSRB's {split} split, J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel, Neural "
    "Networks 2012, https://benchmark.ini.rub.de",
}


def extract(data_set: str, split: str, count: int, file: Path, shape: tuple[int, int, int] | None = None) -> None:
    """Write the first `count` images of a split to `file`; the same set gives the same bytes.

    `shape` (channels, height, width) is what pictures of a folder are cut to.
    """
    images = load_images(data_set, split, count, shape)
    template = _PROVENANCE.get(data_set, f"first {{count}} images of the {{split}} split of {data_set}")
    try:
        write_npz(file, images, split, template.format(count=count, split=split))
    except OSError as error:
        raise HardbitError(f"it cannot be written: {error.strerror}", where=str(file)) from error


def main(argv: list[str] | None = None) -> int:
    """The command above; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hardbit.data.extract", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data_set", help=", ".join(set_names()))
    parser.add_argument("split", choices=["train", "test"])
    parser.add_argument("count", type=int, help="how many images, from the first")
    parser.add_argument("file", type=Path, help="the .npz file to write")
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("CHANNELS", "HEIGHT", "WIDTH"), help="what pictures of a folder become"
    )
    arguments = parser.parse_args(argv)
    shape = tuple(arguments.shape) if arguments.shape else None
    try:
        extract(arguments.data_set, arguments.split, arguments.count, arguments.file, shape)
    except HardbitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
