"""Text in notes, and our part of a note."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_aznas._text import for_markdown
from optuna_aznas.dashboard._markdown import table
from optuna_aznas.dashboard._section import with_section

text = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=80)
body = text.filter(lambda t: t.strip() and "[optuna-aznas]" not in t)
own = text.filter(lambda t: "[optuna-aznas]" not in t)


def test_a_table_keeps_its_columns():
    lines = table(["a", "b"], [[for_markdown("x|y"), for_markdown("z")]], words=-1).splitlines()
    assert lines == ["| a | b |", "| --: | :-- |", r"| x\|y | z |"]


@given(own, body, body)
def test_replacing_our_section_leaves_the_rest_alone(note, first, second):
    once = with_section(note, first)
    assert note.strip() in once
    assert with_section(once, first) == once
    again = with_section(once, second)
    assert again == with_section(note, second)
    assert with_section(again, None).strip() == note.strip()


@given(own, own, body)
def test_text_on_both_sides_stays(before, after, ours):
    note = f"{before}\n\n{with_section('', ours)}\n\n{after}"
    without = with_section(note, None)
    assert without.split() == [*before.split(), *after.split()]
    assert with_section(note, ours).split() == note.split()


@given(own, body, body)
def test_what_was_edited_is_the_users(note, ours, fresh):
    edited = with_section(note, "ours").replace("ours", f"ours and {ours}")
    result = with_section(edited, fresh)
    assert " ".join(f"ours and {ours}".split()) in " ".join(result.split())
    assert result.count("(begin ") == 1
    # From now on nothing changes it any more.
    assert " ".join(f"ours and {ours}".split()) in " ".join(with_section(result, None).split())


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_endings_of_a_browser(ending):
    note = with_section("mine", "ours\nand more").replace("\n", ending)
    assert with_section(note, "new").count("(begin ") == 1
    assert "and more" not in with_section(note, "new")
