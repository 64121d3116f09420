"""Text of a user in a terminal, in Markdown, in plotly and in CSV."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import unicodedata

import optuna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import optuna_aznas as az
from optuna_aznas._text import for_csv, for_json, for_markdown, for_plotly, for_terminal, number, text_table

#: What mdast-util-gfm-autolink-literal, which optuna-dashboard bundles, makes links of once escapes are removed.
AUTOLINKS = [r"(?i)(https?://|www(?=\.))([-.\w]+)([^ \t\r\n]*)", r"([-.\w+]+)@([-\w]+(?:\.[-\w]+)+)"]

DANGEROUS = "\x1b[2K\x1b[1A\n\r\x07\x9b\u202e\u2066\u200b\u2028\x00\ud800"

#: A choice that printed a row of its own in a terminal.
FAKE_ROW = "conv\n    1      0   0.000  999  999  op=mine"


def unescaped(markdown):
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


def invisible(text):
    return [c for c in text if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")]


@given(st.text(st.characters(), max_size=300))
@example(DANGEROUS)
@example(FAKE_ROW)
def test_a_terminal_gets_one_line_of_visible_characters(value):
    shown = for_terminal(value)
    assert not invisible(shown)
    assert len(shown.splitlines()) <= 1
    if not invisible(value):
        assert shown.split() == value.split()


def test_what_is_invisible_is_shown_as_its_escape():
    assert for_terminal("a\x1b[31mb\u202ec\nd") == r"a\x1b[31mb\u202ec d"


@given(st.text(st.characters(), max_size=300))
@example(DANGEROUS)
def test_markdown_shows_text_as_it_stands(value):
    escaped = for_markdown(value)
    assert not set(invisible(escaped)) - {"\u2060"}
    assert not re.search(r"(?<!\\)(?:\\\\)*[!-/:-@\[-`{-~]", re.sub(r"\\[!-/:-@\[-`{-~]", "", escaped))
    shown = unescaped(escaped).replace("\u2060", "")
    whole = for_terminal(value)
    assert shown == whole or (shown.endswith("…") and whole.startswith(shown[:-1]))


@pytest.mark.parametrize(
    "value",
    [
        "https://example.org/x",
        "HTTP://example.org",
        "see www.example.org",
        "WWW.example.org",
        "someone@example.org",
        "a.b+c@d-e.example.org",
        "https://www.example.org/a@b.c",
        "[x](https://example.org)",
        "wwwwww.example.org",
    ],
)
def test_markdown_has_no_live_links(value):
    assert any(re.search(pattern, value) for pattern in AUTOLINKS)
    assert not any(re.search(pattern, unescaped(for_markdown(value))) for pattern in AUTOLINKS)


@given(st.text(st.sampled_from("htps:/w.@ab+-"), max_size=40))
def test_no_text_becomes_a_live_link(value):
    assert not any(re.search(pattern, unescaped(for_markdown(value))) for pattern in AUTOLINKS)


@given(st.text(st.characters(), max_size=300))
@example("$x$ %{y} <b>&amp;")
def test_plotly_shows_text_as_it_stands(value):
    escaped = for_plotly(value)
    assert not set("<>\"'${}") & set(escaped)
    shown, whole = html.unescape(escaped), for_terminal(value)
    assert shown == whole or (shown.endswith("…") and whole.startswith(shown[:-1]))


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1+1", "' =1+1"),
        ("-1.5", "-1.5"),
        ("-inf", "-inf"),
        ("conv3x3", "conv3x3"),
        ("\x1b[2Ka", r"\x1b[2Ka"),
        ("\t=1", r"\t=1"),
        (-2, -2),
        (-math.inf, -math.inf),
        (True, True),
        (None, None),
    ],
)
def test_csv_cells(value, cell):
    assert for_csv(value) == cell


@given(st.text(st.characters(), max_size=50))
def test_no_csv_cell_is_a_formula(value):
    file = io.StringIO()
    csv.writer(file).writerow([for_csv(value), "end"])
    ((cell, _),) = csv.reader(io.StringIO(file.getvalue()))
    if cell.lstrip()[:1] in ("=", "+", "-", "@"):
        float(cell)
    assert not invisible(cell)


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (-math.inf, "-inf"), (1.5, 1.5), (3, 3), ("x", "x")])
def test_json_values(value, shown):
    assert json.loads(json.dumps(for_json(value), allow_nan=False)) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (86.43e6, "86.43 M"),
        (1234567.0, "1.235 M"),
        (-12345.0, "−12.35 k"),
        (9999.0, "9999"),
        (3e12, "3 T"),
        (-0.5, "−0.5"),
        (-math.inf, "−∞"),
        (math.nan, "none"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_a_text_table_aligns_columns():
    assert text_table([["a", "bcd"], ["10", "x"]], left=[1]) == [" a  bcd", "10  x"]


def test_a_leaderboard_has_one_line_for_each_entry():
    study = az.create_study(proxies=["expressivity", "complexity"])
    names = [FAKE_ROW, "\x1b[2J", "\u202eabc"]
    distributions = {"op\x1b[0m": optuna.distributions.CategoricalDistribution(names)}
    for i, name in enumerate(names):
        study.add_trial(
            optuna.trial.create_trial(params={"op\x1b[0m": name}, distributions=distributions, values=[i, i])
        )
    text = str(az.leaderboard(study))
    assert len(text.splitlines()) == 1 + len(names)
    assert not invisible(text.replace("\n", ""))
