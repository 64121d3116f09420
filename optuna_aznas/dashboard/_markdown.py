"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int) -> str:
    """Return a table in Markdown, whose columns are aligned to the right except for the one that holds words.

    Args:
        header: The columns' names.
        rows: The cells of each row.
        words: The column that is aligned to the left; negative numbers count from the end.
    """
    align = [":--" if column == words % len(header) else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *rows))
