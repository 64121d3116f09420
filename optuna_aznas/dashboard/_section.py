"""Replaces the section of a note that this package wrote, between two marks, and keeps the user's text."""

from __future__ import annotations

import hashlib
import re

# The marks are link definitions without a link, which Markdown does not show. (optuna-dashboard would show an HTML
# comment.) The digest tells whether the text between the marks was edited.
_BEGIN = "[optuna-aznas]: # (begin {digest})"
_END = "[optuna-aznas]: # (end)"
_SECTION = re.compile(
    re.escape(_BEGIN).replace(re.escape("{digest}"), "(?P<digest>[0-9a-f]{16})")
    + r"[ \t]*\n(?P<body>.*?)\n?"
    + re.escape(_END)
    + r"[ \t]*",
    re.DOTALL,
)


def with_section(note: str, body: str | None) -> str:
    """Return a note in which a new section replaces the old one; the rest is unchanged.

    A section that the user has edited is kept as the user's text, without its marks. The new section is then added at
    the end.

    Args:
        note: The present note.
        body: Text of the new section; ``None`` removes the section.
    """
    note = note.replace("\r\n", "\n")
    fresh = "" if body is None else f"{_BEGIN.format(digest=_digest(body))}\n\n{body.strip()}\n\n{_END}"
    placed = False

    def replace(match: re.Match[str]) -> str:
        nonlocal placed
        if match["digest"] != _digest(match["body"]):
            return match["body"].strip()
        if placed:
            return ""
        placed = True
        return fresh

    note = _SECTION.sub(replace, note)
    if fresh and not placed:
        note = f"{note.rstrip()}\n\n{fresh}" if note.strip() else fresh
    return note if note.strip() else ""


def _digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]
