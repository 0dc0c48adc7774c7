"""Layer taps: how far the engine's integers are from the canonical graph's, layer by layer, in LSB.

The canonical graph is the network as it was exported, run in float without any optimisation; the engine is what is
deployed. Both are asked for the codes behind every quantizer, on clean and on adversarial images. A code that differs
by one differs by one least significant bit of that layer's scale. Small differences are not faults: where a sum lands
on the border between two codes, programs that add in another order round to another side. A layer that differs much,
and the first one in the network's order, say where to look.

What is compared with taps is what runs without: logits have the very bits, and the same kernels are executed. Where
that is not so, nothing is reported but that.

Boundary: compares; how a runtime is made to show its codes is the business of its back end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy import engines
from hardbit_deploy.bundle import Bundle
from hardbit_deploy.engines.base import Engine

__all__ = [
    "TAPPED_IMAGES",
    "LayerTaps",
    "Tap",
    "TapReport",
    "TappedImages",
    "TappedLayer",
    "compare_bundle_layers",
    "compare_layers",
]

TAPPED_IMAGES = 256  # of every kind: enough for one code in a million, and seconds on a board
_LARGEST_BIN = 3


@dataclass(frozen=True)
class Tap:
    """A tensor of codes, and the node of the source whose result it holds."""

    node: str
    tensor: str


@dataclass(frozen=True)
class TappedImages:
    """What both graphs gave: logits float32 (n, classes); codes int32 (n, ...) by tap, in the same numbers for both."""

    engine_logits: NDArray[np.float32]
    canonical_logits: NDArray[np.float32]
    engine_codes: tuple[NDArray[np.int32], ...]
    canonical_codes: tuple[NDArray[np.int32], ...]


class LayerTaps(Protocol):
    """A back end with its taps open."""

    taps: tuple[Tap, ...]

    @property
    def batch(self) -> int: ...

    def images(self, images: NDArray[np.uint8]) -> TappedImages: ...

    def kernels_moved(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class TappedLayer:
    """One layer on one kind of images. `histogram` counts values whose |difference| is 0, 1, 2, and 3 or more LSB."""

    node: str
    tensor: str
    images: int
    images_apart: int  # in which some value differs
    values: int
    histogram: tuple[int, int, int, int]
    largest_lsb: int

    @property
    def apart(self) -> int:
        """Values that differ."""
        return self.values - self.histogram[0]

    def to_document(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "tensor": self.tensor,
            "images": self.images,
            "images_apart": self.images_apart,
            "values": self.values,
            "histogram": list(self.histogram),
            "share_apart": self.apart / self.values if self.values else 0.0,
            "largest_lsb": self.largest_lsb,
        }


@dataclass(frozen=True)
class TapReport:
    """`layers` by kind of images, each in the network's order; empty where `problems` says why nothing was compared."""

    layers: Mapping[str, tuple[TappedLayer, ...]]
    largest_logit_difference: Mapping[str, float]
    problems: tuple[str, ...] = ()

    def first_apart(self, kind: str) -> TappedLayer | None:
        """The first layer that diverges on these images."""
        return next((layer for layer in self.layers[kind] if layer.apart), None)

    def to_document(self) -> dict[str, Any]:
        """The `taps` part of a result."""
        firsts = {kind: self.first_apart(kind) for kind in self.layers}
        return {
            "status": "not_run" if self.problems else "run",
            "problems": list(self.problems),
            "kinds": [
                {
                    "name": kind,
                    "images": layers[0].images if layers else 0,
                    "first_divergent": first.node if (first := firsts[kind]) is not None else None,
                    "max_logit_difference": self.largest_logit_difference[kind],
                    "layers": [layer.to_document() for layer in layers],
                }
                for kind, layers in self.layers.items()
            ],
        }


def compare_bundle_layers(
    bundle: Bundle,
    limit: int | None = None,
    found: Mapping[str, NDArray[Any]] | None = None,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> TapReport:
    """The bundle's engine against its canonical graph, on its first images (`limit`, at most TAPPED_IMAGES).

    Adversarial images are those that the bundle carries, made on the training framework's twin; and `found`, the
    examples of an evaluation, whose `adversarial` were made on this engine.
    """
    count = min(limit or TAPPED_IMAGES, TAPPED_IMAGES, len(bundle.images))
    images = {"clean": bundle.images[:count]}
    if bundle.twin_adversarial_images is not None:
        images["adversarial"] = bundle.twin_adversarial_images[:count]
    if found is not None and len(found["adversarial"]):
        images["found by attacks"] = found["adversarial"]
    with engines.open_engine(bundle) as engine:
        taps = engines.open_taps(bundle)
        return compare_layers(engine, taps, images, lambda done, total: report("layer taps", done, total))


def compare_layers(
    engine: Engine,
    taps: LayerTaps,
    images: Mapping[str, NDArray[np.uint8]],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> TapReport:
    """Engine against canonical graph on `images`, uint8 (n, channels, height, width) by kind (`clean`, `adversarial`).

    `engine` is the one without taps, active: its logits prove that taps move nothing. `report` is told of images that
    were done, and of how many.
    """
    if not taps.taps:
        return TapReport({}, {}, ("the network has no integer codes to compare: its layers run in float",))
    if moved := taps.kernels_moved():
        return TapReport({}, {}, (f"taps change what the engine executes: {', '.join(moved)}",))
    layers: dict[str, tuple[TappedLayer, ...]] = {}
    differences: dict[str, float] = {}
    done, total = 0, sum(len(some) for some in images.values())
    for kind, some in images.items():
        sums = [_Sum() for _ in taps.taps]
        largest = 0.0
        for first in range(0, len(some), taps.batch):
            part = np.ascontiguousarray(some[first : first + taps.batch])
            tapped = taps.images(part)
            if not np.array_equal(tapped.engine_logits, engine.infer(part), equal_nan=True):
                return TapReport({}, {}, ("taps move the engine's logits",))
            for total_of, ours, theirs in zip(sums, tapped.engine_codes, tapped.canonical_codes, strict=True):
                total_of.add(ours, theirs)
            with np.errstate(invalid="ignore", over="ignore"):
                apart = np.abs(tapped.engine_logits - tapped.canonical_logits).max(initial=0)
            largest = max(largest, float(apart) if np.isfinite(apart) else float(np.finfo(np.float32).max))
            done += len(part)
            report(done, total)
        layers[kind] = tuple(total_of.layer(tap) for total_of, tap in zip(sums, taps.taps, strict=True))
        differences[kind] = largest
    return TapReport(layers, differences)


class _Sum:
    """Counts of one layer over micro-batches."""

    def __init__(self) -> None:
        self.images = self.images_apart = self.values = self.largest = 0
        self.histogram = np.zeros(_LARGEST_BIN + 1, np.int64)

    def add(self, ours: NDArray[np.int32], theirs: NDArray[np.int32]) -> None:
        difference = np.abs(ours - theirs).reshape(len(ours), -1)
        bins = np.bincount(np.minimum(difference, _LARGEST_BIN).ravel(), minlength=_LARGEST_BIN + 1)
        self.histogram += bins
        self.images += len(ours)
        self.images_apart += int(np.count_nonzero(difference.any(axis=1)))
        self.values += difference.size
        self.largest = max(self.largest, int(difference.max(initial=0)))

    def layer(self, tap: Tap) -> TappedLayer:
        zero, one, two, more = (int(count) for count in self.histogram)
        return TappedLayer(
            tap.node,
            tap.tensor,
            self.images,
            self.images_apart,
            self.values,
            (zero, one, two, more),
            self.largest,
        )
