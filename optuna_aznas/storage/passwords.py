"""Hides passwords in storage URLs and in the messages of database drivers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_HIDDEN = "***"
_SECRET = r"[\w.-]*(?:pass|pwd|secret|token|auth)[\w.-]*"  # names of URL parameters whose values are secret
_SHORT = 4  # characters; a shorter password is hidden only where it is a word of its own

#: In a URL that stands alone the password ends at the last ``@``: people write ``/ # ? @`` and spaces in it unquoted.
_IN_URL = (
    re.compile(r"^[\w.+-]+:(?://)?[^:@]*:(?P<secret>.*)@", re.DOTALL),
    re.compile(rf"(?=[?&;]{_SECRET}=(?P<secret>[^&;]*))", re.IGNORECASE),
)

#: In a text a URL ends at white space.
_IN_TEXT = (
    re.compile(r"[\w.+-]+://[^\s:@]*:(?P<secret>\S*)@"),
    re.compile(rf"(?=[?&;]{_SECRET}=(?P<secret>[^\s&;'\"]*))", re.IGNORECASE),
    re.compile(r"\bpassword\s*=\s*(?P<secret>'[^']*'|\"[^\"]*\"|[^\s;&,)]+)", re.IGNORECASE),
)


def redact_url(text: str, url: str | None = None) -> str:
    """Hide the passwords in a text: in a URL, in its parameters, and in the messages of drivers.

    Args:
        text: What is to be shown.
        url: The storage URL in use. Its password is then hidden wherever the text holds it, also quoted, unquoted and
            in part. Without it, only what looks like a URL or a driver's ``password=...`` is searched.

    Returns:
        The text with ``***`` for each password. Where a password holds an unquoted ``@``, or a parameter does, more
        than the password may be hidden.

    Example:
        >>> redact_url("postgresql://user:a/b#c?d@host/nas?sslmode=require")
        'postgresql://user:***@host/nas?sslmode=require'
        >>> redact_url("no host 'b@host'", "postgresql://user:a@b@host/nas")
        "no host '***@host'"
    """
    if url is not None:
        text = text.replace(url, _masked(url, _IN_URL))
        for secret in _secrets(url):
            if len(secret) >= _SHORT:
                text = text.replace(secret, _HIDDEN)
            else:
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
    return _masked(text, _IN_TEXT)


def _masked(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    spans = sorted(match.span("secret") for pattern in patterns for match in pattern.finditer(text))
    shown: list[str] = []
    end = 0
    for begin, stop in spans:
        if stop <= end or begin == stop:
            continue
        if begin > end or not shown:
            shown += [text[end:begin], _HIDDEN]
        end = stop
    return "".join([*shown, text[end:]])


def _secrets(url: str) -> list[str]:
    """Return the passwords of a URL in each spelling, and the parts at which a driver may cut them; longest first."""
    written = {match["secret"] for pattern in _IN_URL for match in pattern.finditer(url)}
    parts = {part for secret in written for part in re.split(r"[/?#@:\[\]&;\s]", secret)}
    parts = {part for part in parts if any(map(str.isalnum, unquote(part)))}  # a quoted colon alone tells nothing
    spellings: set[str] = set()
    for secret in written | parts:
        plain = {secret, unquote(secret), unquote_plus(secret)}
        spellings |= plain
        for spelling in plain:
            spellings |= {quote(spelling, safe=""), quote(spelling), quote_plus(spelling), repr(spelling)[1:-1]}
    return sorted(spellings - {"", _HIDDEN}, key=len, reverse=True)
