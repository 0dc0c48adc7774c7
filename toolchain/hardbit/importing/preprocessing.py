"""What a network wants done to the bytes of an image, as flags or a sidecar file describe it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tomllib
from numpy.typing import NDArray

from hardbit.importing.words import Channels, Layout
from hardbit_deploy.errors import HardbitError

__all__ = ["Preprocessing", "read_sidecar"]

PIXEL_SCALE, PIXEL_ZERO_POINT = 256, 128  # hardbit's input is (pixel - 128) / 256


@dataclass(frozen=True)
class Preprocessing:
    """The network reads (pixel * scale - mean) / std, with one mean and std for all channels or one for each.

    `scale` None is 1/255, or 1 where the network reads integers itself. `layout` says where the channels stand, and
    `channels` in which order they come; "auto" lets the shape decide. Raises HardbitError for what cannot be meant.
    """

    layout: Layout = "auto"
    channels: Channels = "rgb"
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, value, known in (("layout", self.layout, Layout), ("channels", self.channels, Channels)):
            if value not in get_args(known):
                raise HardbitError(
                    f"{name} is {value!r}", f"preprocessing.{name}", f"known: {', '.join(get_args(known))}"
                )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise HardbitError(f"scale is {self.scale}", "preprocessing.scale", "give a positive number, such as 1/255")
        if not all(math.isfinite(value) for value in self.mean):
            raise HardbitError(f"mean is {list(self.mean)}", "preprocessing.mean", "give finite numbers")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise HardbitError(f"std is {list(self.std)}", "preprocessing.std", "give positive numbers")

    def on_pixels(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Factor and shift for `count` channels: the network reads pixel * factor + shift. Both float64 (count,)."""
        scale = 1 / 255 if self.scale is None else self.scale
        mean, std = (_per_channel(name, getattr(self, name), count) for name in ("mean", "std"))
        return scale / std, -mean / std

    def on_image(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same for hardbit's input (pixel - 128) / 256 in the place of the pixel."""
        factor, shift = self.on_pixels(count)
        return factor * PIXEL_SCALE, shift + factor * PIXEL_ZERO_POINT

    def with_given(self, **given: Any) -> Preprocessing:
        """A copy in which what is given, that is not None, has been replaced."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def read_sidecar(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a sidecar TOML file, {} where there is none. Raises HardbitError where it is not TOML."""
    if not path.is_file():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HardbitError(f"this is not TOML: {error}", where=str(path)) from None
    for name, table in document.items():
        if not isinstance(table, Mapping):
            raise HardbitError(f"'{name}' stands outside of a table", where=str(path), remedy="write [preprocessing]")
    return document


def _per_channel(name: str, values: tuple[float, ...], count: int) -> NDArray[np.float64]:
    neutral = 0.0 if name == "mean" else 1.0
    if len(values) not in (0, 1, count):
        raise HardbitError(
            f"{len(values)} values of {name} for {count} channels",
            f"preprocessing.{name}",
            "give one for all, or one for each channel",
        )
    return np.broadcast_to(np.array(values or (neutral,), np.float64), (count,)).copy()
