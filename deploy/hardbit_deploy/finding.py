"""One thing that doctor looked for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    `status` is "found"; "missing" when no check is possible without it; "limited" when a check says less without it;
    "optional" when only other targets or commands need it. `remedy` says what brings it.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""
