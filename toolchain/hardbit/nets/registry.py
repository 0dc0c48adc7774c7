"""Which networks there are, by name. A decorator registers a network; a second one of the same name warns."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hardbit_deploy.errors import HardbitError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "names", "register"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_MODULES = (
    "hardbit.nets.lenet",
    "hardbit.nets.mobilenet",
    "hardbit.nets.resnet",
    "hardbit.nets.vgg",
    "hardbit.nets.vit",
    "hardbit.nets.wide_resnet",
)


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the decorated class or function as the network `name`."""

    def add(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in _BUILDERS:
            warnings.warn(f"network '{name}' replaces another of the same name", stacklevel=2)
        _BUILDERS[name] = builder
        return builder

    return add


def names() -> list[str]:
    """The names that `build` knows, sorted."""
    _load()
    return sorted(_BUILDERS)


def build(name: str, **options: Any) -> nn.Module:
    """A freshly initialised network with attributes `input_shape` (channels, height, width) and `classes`.

    Raises HardbitError for an unknown name or option, and for options of which no network can be made.
    """
    _load()
    if name not in _BUILDERS:
        raise HardbitError(
            f"there is no network '{name}'", where="network.architecture", remedy=f"known: {', '.join(names())}"
        )
    builder = _BUILDERS[name]
    known = list(inspect.signature(builder).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise HardbitError(
            f"network '{name}' has no option '{unknown[0]}'", where="network", remedy=f"known: {', '.join(known)}"
        )
    try:
        return builder(**options)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise HardbitError(f"no network '{name}' can be made of these options: {error}", where="network") from error


def _load() -> None:
    for module in _MODULES:
        importlib.import_module(module)
