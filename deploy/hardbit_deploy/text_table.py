"""Tables in plain text: columns as wide as their cells, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(rows: Sequence[Sequence[str]], alignment: str, indent: str = "  ") -> str:
    """Lay out `rows`; `alignment` has one `<` or `>` for each column. Trailing blanks are cut."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(alignment))] if rows else []
    lines = []
    for row in rows:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, alignment, widths, strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
