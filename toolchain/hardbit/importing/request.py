"""What a conversion of somebody's ONNX file is asked for: flags, then the sidecar file beside it, then defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardbit.importing.preprocessing import Preprocessing, read_sidecar
from hardbit.importing.sign_surrogate import SIGNS
from hardbit.importing.words import Shape
from hardbit_deploy.errors import HardbitError

__all__ = ["TABLES", "ConversionRequest", "numbers_of", "read_request", "shape_of"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ConversionRequest:
    """Everything that decides the bundle of an imported network.

    `calibrate` and `data` are names of image sets as in a recipe; the first gives the images that quantizers are
    calibrated with, `calibration_count` of its split `calibrate_split`, the second the `count` images (None for 1,000,
    or all if there are fewer) that the engine is judged on. `eps_255` is in grey levels. `sign` says how derivatives
    pass a Sign node: "clipped" (where |x| <= 1), "identity", or the better of them ("auto").
    """

    source: Path
    calibrate: str
    data: str
    target: str = "onnxruntime"
    name: str = ""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    image_shape: Shape | None = None
    output: str | None = None
    class_names: tuple[str, ...] = ()
    calibrate_split: str | None = None
    calibration_count: int = 512
    split: str = "test"
    count: int | None = None
    calibration: str = "percentile"
    bits: int = 8
    norm: str = "linf"
    eps_255: float = 8.0
    suite: str = "standard"
    sign: str = "auto"

    def __post_init__(self) -> None:
        for name in ("count", "calibration_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HardbitError(f"{name} is {value}", name, "give a whole number of at least 1")
        if self.name and not _NAME.fullmatch(self.name):
            raise HardbitError(
                f"name is {self.name!r}", "network.name", "begin with a letter or digit; then a-z, 0-9, dot, dash, _"
            )
        if self.sign not in ("auto", *SIGNS):
            raise HardbitError(f"sign is {self.sign!r}", "network.sign", f"known: auto, {', '.join(SIGNS)}")

    @property
    def model_name(self) -> str:
        """The name given, or the file's in the letters that a name may have."""
        return self.name or re.sub(r"[^a-z0-9._-]+", "-", self.source.stem.lower()).strip("-._")[:64] or "network"


TABLES: Mapping[str, tuple[str, ...]] = {
    "preprocessing": ("layout", "channels", "scale", "mean", "std"),
    "network": ("name", "image_shape", "output", "classes", "sign"),
    "data": ("calibrate", "calibrate_split", "calibration_count", "set", "split", "count"),
    "quantization": ("calibration", "bits"),
    "threat_model": ("norm", "eps_255"),
    "suite": ("name",),
}
"""The tables of a sidecar file and their keys."""
_FIELDS = {("data", "set"): "data", ("network", "classes"): "class_names", ("suite", "name"): "suite"}


def read_request(source: Path, given: Mapping[str, Any]) -> ConversionRequest:
    """The request for `source`: `given` by flags (None counts as not given), else by `source` with the suffix .toml.

    Raises HardbitError for a key of the sidecar that is not known or holds something else than it should, and where no
    calibration images are named.
    """
    sidecar = source.with_suffix(".toml")
    values = _of_sidecar(sidecar)
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        pre = Preprocessing(**{name: values.pop(name) for name in TABLES["preprocessing"] if name in values})
    except TypeError as error:
        raise HardbitError(f"a value has the wrong type: {error}", f"{sidecar} [preprocessing]") from None
    if not values.get("calibrate"):
        raise HardbitError(
            "no images are named to calibrate quantizers with",
            where=str(source),
            remedy="name a set: --calibrate cifar10, npz:FILE or folder:DIR",
        )
    values.setdefault("data", values["calibrate"])
    return ConversionRequest(source=source, preprocessing=pre, **values)


def _of_sidecar(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for table, entries in read_sidecar(path).items():
        if table not in TABLES:
            raise HardbitError(f"there is no table [{table}]", str(path), f"known: {', '.join(TABLES)}")
        for key, value in entries.items():
            if key not in TABLES[table]:
                raise HardbitError(
                    f"there is no key '{key}'", f"{path} [{table}]", f"known: {', '.join(TABLES[table])}"
                )
            values[_FIELDS.get((table, key), key)] = _read(f"{path} [{table}] {key}", key, value)
    return values


def _read(where: str, key: str, value: Any) -> Any:
    try:
        return _READERS.get(key, _text)(value)
    except (TypeError, ValueError):
        raise HardbitError(f"is {value!r}", where, "look it up in docs/onnx.md") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, str):
        return numbers_of(value)[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(entry) for entry in value) if isinstance(value, list) else (_number(value),)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_text(entry) for entry in value)


def _shape(value: Any) -> Shape:
    channels, height, width = (_whole(entry) for entry in value)
    return channels, height, width


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "scale": _number, "mean": _numbers, "std": _numbers, "eps_255": _number, "classes": _names,
    "image_shape": _shape, "count": _whole, "calibration_count": _whole, "bits": _whole,
}  # fmt: skip


def numbers_of(text: str) -> tuple[float, ...]:
    """Numbers with commas between them, each a decimal or a fraction such as 1/255. Raises ValueError for others."""
    found = []
    for part in text.split(","):
        above, slash, below = part.partition("/")
        if slash and float(below) == 0:
            raise ValueError(f"{part} is no number")
        found.append(float(above) / float(below) if slash else float(above))
    return tuple(found)


def shape_of(text: str) -> Shape:
    """CHANNELS,HEIGHT,WIDTH. Raises ValueError for anything else."""
    channels, height, width = (int(part) for part in text.split(","))
    if min(channels, height, width) < 1:
        raise ValueError(text)
    return channels, height, width
