"""What a rule between values has to say."""

from __future__ import annotations

from dataclasses import dataclass

from hardbit.recipe.toml_text import KeyPath

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """A key, what is wrong with its value next to the others, and what to write instead."""

    path: KeyPath
    message: str
    remedy: str
