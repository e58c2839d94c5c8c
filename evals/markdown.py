"""Markdown of evaluation pages."""

from collections.abc import Iterable


def markdown_table(header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """A table with a line for each of `lines`."""
    rows = [header, ("---",) * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
