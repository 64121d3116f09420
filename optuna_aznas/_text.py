"""Text that a user wrote, made safe for a terminal, Markdown, plotly and CSV; numbers and tables as text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

#: Every ASCII punctuation character may be escaped in CommonMark; what is escaped is shown as it stands. That covers
#: HTML, links, tables, emphasis and, between dollar signs, mathematics.
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")

#: GitHub's Markdown looks for these in the text that remains once escapes are removed, and makes live links of them.
_AUTOLINK = re.compile(r"(?i)(https?:)(?=//)|(www)(?=\.)|(@)")

#: An invisible character that allows no line break. After it, Markdown does not recognise a link.
_WORD_JOINER = "\u2060"

_WRITTEN_OUT = 1e4  # numbers below it have no unit

#: Units of numbers for people to read, the largest first.
_UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))

#: Cells that begin with one of these are formulas to a spreadsheet.
_FORMULA = ("=", "+", "-", "@")


def for_terminal(text: object) -> str:
    r"""Return a text on one line, in which a character that a terminal may act on is shown as its escape.

    Runs of white space become one space. Control characters, escape sequences, characters that change the direction of
    writing, other invisible characters and lone surrogates appear as ``\x1b`` or ``\u202e``.
    """
    return _escaped(" ".join(str(text).split()))


def for_markdown(text: object, longest: int = 200) -> str:
    """Return a text so that Markdown shows it as :func:`for_terminal` does and makes no link of it.

    Args:
        text: The text.
        longest: Number of characters after which it is cut.
    """
    unlinked = _AUTOLINK.sub(lambda match: match[0] + _WORD_JOINER, cut(for_terminal(text), longest))
    return _PUNCTUATION.sub(r"\\\1", unlinked)


def for_plotly(text: object, longest: int = 60) -> str:
    """Return a text so that plotly shows it as :func:`for_terminal` does.

    Plotly reads some HTML, LaTeX between dollar signs, and ``%{...}`` in hover texts.

    Args:
        text: The text.
        longest: Number of characters after which it is cut.
    """
    escaped = html.escape(cut(for_terminal(text), longest), quote=True)
    return escaped.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def for_csv(value: Any) -> Any:
    """Return a value for a cell of a CSV file; no spreadsheet reads it as a formula.

    A text that begins with ``=``, ``+``, ``-`` or ``@`` and is not a number gets an apostrophe in front. Characters
    that a terminal may act on are shown as their escapes. Numbers are returned as they are.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _escaped(str(value))
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _is_number(text) else text


def for_json(value: Any) -> Any:
    """Return a value for JSON, which has no infinity and no NaN: these become strings such as ``"-inf"``."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plain_number(value: float, digits: int = 4) -> str:
    """Return a number in ASCII for people to read: large ones as ``86.43 M``, others with ``digits`` digits."""
    if _WRITTEN_OUT <= abs(value) < math.inf:
        unit, size = next((unit, size) for unit, size in _UNITS if abs(value) >= size)
        return f"{value / size:.{digits}g} {unit}"
    return f"{value:.{digits}g}"


def number(value: float) -> str:
    """Return :func:`plain_number` with a minus sign and the sign of infinity; ``"none"`` for NaN."""
    return "none" if math.isnan(value) else with_signs(plain_number(value))


def with_signs(text: str) -> str:
    """Return a number's text with a minus sign in place of the hyphen, and ∞."""
    return text.replace("inf", "∞").replace("-", "−")


def text_table(rows: Iterable[Sequence[str]], *, left: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table with aligned columns.

    Args:
        rows: The cells of each row, all rows of one length; the header is the first row.
        left: The columns that are aligned to the left; the others are aligned to the right.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = ()) -> str:
    """Return a table as HTML for a notebook; the cells are shown as :func:`for_terminal` shows them.

    Args:
        header: The columns' names.
        rows: The cells of each row.
        left: The columns that are aligned to the left; the others are aligned to the right.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        aligned = (f'<{tag} style="text-align:{"left" if i in left else "right"}">' for i in range(len(cells)))
        return "".join(f"{start}{in_html(cell)}</{tag}>" for start, cell in zip(aligned, cells, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def in_html(text: object) -> str:
    """Return a text so that HTML shows it as :func:`for_terminal` does."""
    return html.escape(for_terminal(text), quote=True)


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cut(text: str, longest: int) -> str:
    """Return a text of at most ``longest`` characters; where something is cut off, it ends in an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
