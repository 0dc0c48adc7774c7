"""Results for people: one self-contained page of HTML, and a few lines for the terminal.

Reads result documents and the arrays beside them; measures and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardbit.report.terminal import summary

__all__ = ["bench_picture", "html_report", "summary"]

Document = Mapping[str, Any]


def html_report(documents: Document | Sequence[Document], artifacts_dir: Path | str | None = None) -> str:
    """One HTML page: of one result in full, or of several side by side.

    `artifacts_dir` holds the npz files that a single document names; without it the page says what it cannot show.
    Everything is inside the page: it asks for nothing from anywhere, and text from documents is always escaped.
    """
    several = [documents] if isinstance(documents, Mapping) else list(documents)
    if not several:
        raise ValueError("a report needs one result document at least")
    if len(several) == 1:
        from hardbit.report.result_page import result_page

        return result_page(several[0], Path(artifacts_dir) if artifacts_dir is not None else None)
    from hardbit.report.comparison_page import comparison_page

    return comparison_page(several)


def bench_picture(documents: Sequence[Document]) -> str:
    """Latency against robustness as an SVG file of its own; raises ValueError where no result has both."""
    from hardbit.report.comparison_page import bench_picture as draw

    return draw(documents)
