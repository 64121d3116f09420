"""Text for notes, which optuna-dashboard reads as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

#: Every ASCII punctuation character may be escaped in CommonMark; what is escaped is shown as it stands. That covers
#: HTML, links, tables, emphasis and, between dollar signs, mathematics.
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def plain(text: object, longest: int = 200) -> str:
    """Return a user's text so that Markdown shows it as it stands, on one line, cut to a length that fits."""
    line = " ".join(str(text).split())
    if len(line) > longest:
        line = line[: longest - 1] + "…"
    return _PUNCTUATION.sub(r"\\\1", line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int) -> str:
    """Return a table whose columns are aligned to the right, as numbers are, but for the one that holds words."""
    align = [":--" if column == words % len(header) else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *rows))


def number(value: float) -> str:
    """Return a number as text."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}".replace("-", "−")
