"""Tables as text for a terminal and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table", "significant", "text_table"]


def significant(value: float | None, digits: int = 3) -> str:
    """A number at so many significant digits without an exponent: 0.0123, 1.23, 12,300; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = int(f"{abs(rounded):e}".partition("e")[2])
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> str:
    """Align columns for a terminal: numbers to the right, the columns named in ``left`` to the left."""
    widths = _widths(titles, rows)
    lines = [titles, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(_aligned(titles, line, widths, left)).rstrip() for line in lines)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> str:
    """The same as a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rules = ["---" if title in left else "---:" for title in titles]
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, rules, *escaped])


def _widths(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(titles, *rows, strict=True)]


def _aligned(titles: Sequence[str], cells: Sequence[str], widths: Sequence[int], left: Sequence[str]) -> list[str]:
    return [
        cell.ljust(width) if title in left else cell.rjust(width)
        for title, cell, width in zip(titles, cells, widths, strict=True)
    ]
