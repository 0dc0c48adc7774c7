"""Pictures of a page by a headless Chromium: `python -m hardbit.report.screenshot REPORT.html OUT.png`.

Also how the tests open a report. Knows browsers, nothing of reports.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hardbit_deploy.errors import HardbitError

__all__ = ["find_chromium", "main", "open_page", "screenshot"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Quiet, alone, and on its own: nothing of this asks the network, and no profile of the user is touched.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--virtual-time-budget=4000",
    "--enable-logging=stderr",
    "--v=0",
)
TIMEOUT_S = 120


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome, or None."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def open_page(page: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a fresh browser on `page` until it is idle; standard error carries what the page wrote to its console."""
    browser = find_chromium()
    if browser is None:
        raise HardbitError("no Chromium is installed", remedy="install the package chromium")
    with tempfile.TemporaryDirectory(prefix="hardbit-browser-") as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", *arguments, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def screenshot(page: Path, picture: Path, width: int, height: int, dark: bool = False, scale: float = 1.0) -> None:
    """Write `picture`, a PNG of the top `width` x `height` px of `page`, with as few colours as keep it small."""
    if not page.is_file():
        raise HardbitError("there is no such page", where=str(page))
    if not picture.resolve().parent.is_dir():
        raise HardbitError("there is no such folder", where=str(picture.parent), remedy="make it first")
    size = [f"--window-size={width},{height}", f"--force-device-scale-factor={scale:g}"]
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = open_page(page, [f"--screenshot={picture.resolve()}", *size, *theme])
    if not picture.is_file():
        raise HardbitError("Chromium made no picture", where=str(page), remedy=done.stderr.strip()[-300:])
    with Image.open(picture) as image:
        _with_commonest_colours(image.convert("RGB")).save(picture, optimize=True)


def _with_commonest_colours(image: Image.Image) -> Image.Image:
    """The image in its 256 commonest colours, each kept exactly: a page is few flat colours and edges of letters."""
    pixels = np.asarray(image, dtype=np.int64)
    packed = (pixels << np.array([16, 8, 0])).sum(axis=2)
    values, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1)
    commonest = colours[np.argsort(-counts)[:256]]
    nearest = np.array([((commonest - colour) ** 2).sum(axis=1).argmin() for colour in colours], dtype=np.uint8)
    small = Image.fromarray(nearest[where].reshape(packed.shape))
    small.putpalette(commonest.astype(np.uint8).ravel().tolist())
    return small


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hardbit.report.screenshot", description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, metavar="REPORT.html")
    parser.add_argument("picture", type=Path, metavar="OUT.png")
    parser.add_argument("--width", type=int, default=1160, help="px (default %(default)s)")
    parser.add_argument("--height", type=int, default=1640, help="px (default %(default)s)")
    parser.add_argument("--scale", type=float, default=1.5, help="device pixels a px (default %(default)s)")
    parser.add_argument("--dark", action="store_true", help="as with a dark desktop")
    options = parser.parse_args(argv)
    try:
        screenshot(options.page, options.picture, options.width, options.height, options.dark, options.scale)
    except HardbitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
