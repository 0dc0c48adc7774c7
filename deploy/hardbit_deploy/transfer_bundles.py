"""Transfer from other bundles: their adversarial images, made on this machine, are tried on the bundle that is judged.

A bundle may carry images of other networks, which were made where it was built. With the bundle of another network at
hand they are made here instead, by its own attack graph: PGD with the suite's steps and restarts on every loss, every
last iterate a candidate. The images lie in a temporary folder, as large as the evaluation images times candidates.

Boundary: makes images and names their source; the harness judges them as it does those that a bundle carries.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy import engines
from hardbit_deploy.attacks.transfer import last_iterates
from hardbit_deploy.bundle import Bundle, load_bundle
from hardbit_deploy.engines.base import Gradient
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.manifest import TransferSource
from hardbit_deploy.suite import Suite

__all__ = ["open_sources", "with_transfers"]

_SLICE = 256  # images that are attacked together: memory, and how often progress is told
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _WithTransfers(Bundle):
    """A bundle, and images of further sources beside those that it carries; its manifest names them all."""

    all_transfers: tuple[tuple[str, NDArray[np.uint8]], ...] = ()

    @cached_property
    def transfers(self) -> dict[str, NDArray[np.uint8]]:
        return dict(self.all_transfers)


def open_sources(bundle: Bundle, paths: Sequence[Path]) -> list[Bundle]:
    """The bundles at `paths`, verified. Raises HardbitError where one is no source for `bundle`: for other images or
    classes, or of a name that is taken."""
    sources: list[Bundle] = []
    taken = [source.name for source in bundle.manifest.transfers]
    for path in paths:
        source = load_bundle(path)
        mine, theirs = bundle.manifest, source.manifest
        if (mine.input_shape, mine.classes) != (theirs.input_shape, theirs.classes):
            raise HardbitError(
                f"{theirs.name} takes images {list(theirs.input_shape)} of {theirs.classes} classes, {mine.name} "
                f"{list(mine.input_shape)} of {mine.classes}",
                where=f"--transfer {path}",
                remedy="name the bundle of a network for the same images",
            )
        if theirs.name in taken:
            raise HardbitError(
                f"images of {theirs.name} are there already",
                where=f"--transfer {path}",
                remedy="name every source once; those that the bundle carries are used anyhow",
            )
        taken.append(theirs.name)
        sources.append(source)
    return sources


@contextlib.contextmanager
def with_transfers(
    bundle: Bundle, sources: Sequence[Bundle], suite: Suite, limit: int | None, progress: Progress
) -> Iterator[Bundle]:
    """`bundle` with adversarial images of `sources` for its first `limit` images (default all).

    They last as long as the context. Raises HardbitError where a source's runtime is missing or cannot load it.
    """
    if not sources:
        yield bundle
        return
    count = min(limit or bundle.manifest.image_count, bundle.manifest.image_count)
    arrays = dict(bundle.transfers)
    named = list(bundle.manifest.transfers)
    with tempfile.TemporaryDirectory(prefix="hardbit-transfer-") as folder:
        for source in sources:
            made = _made_on(source, bundle, suite, count, Path(folder), progress)
            arrays[source.manifest.name] = made
            # What decides the images stands in the place of a file's name, so that no other measurement is resumed.
            named.append(TransferSource(source.manifest.name, f"made on {source.manifest_sha256}", made.shape[1]))
        yield _WithTransfers(
            bundle.path,
            replace(bundle.manifest, transfers=tuple(named)),
            bundle.manifest_sha256,
            tuple(arrays.items()),
        )


def _made_on(
    source: Bundle, bundle: Bundle, suite: Suite, count: int, folder: Path, progress: Progress
) -> NDArray[np.uint8]:
    """Candidates uint8 (count, candidates, channels, height, width), in a file of `folder`."""
    climbs = [(loss, restart) for loss in suite.losses for restart in range(suite.restarts)]
    shape = (count, len(climbs), *bundle.manifest.input_shape)
    file = folder / f"{source.manifest.name}.npy"
    made: NDArray[np.uint8] = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with engines.open_target(source) as target:
        for first in range(0, count, _SLICE):
            rows = slice(first, min(first + _SLICE, count))
            progress(f"adversarial images of {source.manifest.name}", first, count)
            made[rows] = _candidates(target.gradient, bundle, suite, rows, climbs)
    return made


def _candidates(
    gradient: Gradient, bundle: Bundle, suite: Suite, rows: slice, climbs: Sequence[tuple[str, int]]
) -> NDArray[np.uint8]:
    images, labels = np.array(bundle.images[rows]), np.array(bundle.labels[rows])
    places = np.arange(rows.start, rows.stop, dtype=np.int64)
    found = [
        last_iterates(
            gradient,
            images,
            labels,
            bundle.manifest.threat_model,
            suite.steps,
            loss=loss,
            restart=restart,
            seed=suite.seed,
            indices=places,
        )
        for loss, restart in climbs
    ]
    return np.stack(found, axis=1)
