"""No password is shown: in URLs, in their parameters, and in what drivers say."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_aznas import cli
from optuna_aznas.storage import redact_url

#: Marked at both ends, so that no part of a password occurs by chance in the text around it.
MARK = st.text("ÄÖÜ", min_size=4, max_size=4)
PASSWORDS = st.builds("".join, st.tuples(MARK, st.text("/#?@:&=%+ []'\"äöü7", max_size=8), MARK))
PLAIN = st.builds("".join, st.tuples(MARK, st.text("äöü7.-_~!*()", max_size=8), MARK))

URLS = [
    "postgresql+psycopg://user:{}@host:5432/nas?sslmode=require",
    "postgresql://:{}@host/nas",
    "redis://:{}@host:6379/0",
    "rediss://default:{}@[::1]:6379",
    "mysql+pymysql://u:{}@127.0.0.1/nas",
]
MESSAGES = [
    "{url}",
    "storage '{url}' cannot be opened",
    "Could not parse SQLAlchemy URL from given URL string: {url}.",
    'connection failed: FATAL: password authentication failed for user "u", {password}',
    'could not translate host name "{password}" to address',
    "Port could not be cast to integer value as {password!r}",
]


def test_a_quoted_colon_in_a_password_hides_nothing_else():
    assert redact_url("redis://u:ab%3A/%3A/cd@[::1]:1", "redis://u:ab%3A/%3A/cd@[::1]:1") == "redis://u:***@[::1]:1"


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("template", URLS)
@given(password=PASSWORDS, quoting=st.sampled_from([str, quote, quote_plus, lambda text: quote(text, safe="")]))
def test_passwords_before_the_host(template, message, password, quoting):
    url = template.format(quoting(password))
    shown = redact_url(message.format(url=url, password=password), url)
    for spelling in (password, quoting(password), password[:4], password[-4:]):
        assert spelling not in shown, shown
    assert "***" in shown
    if message == "{url}" and "?" not in template:
        assert shown == template.format("***")


@pytest.mark.parametrize("name", ["password", "passwd", "PASSWORD", "sslpassword", "auth_token", "client-secret"])
@given(password=PASSWORDS.filter(lambda text: "&" not in text and ";" not in text))
def test_passwords_among_the_parameters(name, password):
    url = f"postgresql://host/nas?user=u&{name}={password}&sslmode=require"
    shown = redact_url(url, url)
    assert password[:4] not in shown
    assert password[-4:] not in shown
    if not set(password) & set("@:?"):
        assert shown == f"postgresql://host/nas?user=u&{name}=***&sslmode=require"


@given(password=PASSWORDS, cut=st.sampled_from("/#?@:"))
def test_drivers_that_cut_a_password(password, cut):
    """With an unquoted delimiter in it, a driver takes part of the password for the host or the port."""
    url = f"postgresql://user:{password}@host/nas"
    for part in password.split(cut):
        if len(part) >= 4 and any(map(str.isalnum, part)):  # delimiters alone tell nothing
            assert part not in redact_url(f'could not translate host name "{part}@host" to address', url)


@given(password=PLAIN)
def test_urls_and_conninfos_that_are_not_the_storage(password):
    for template in URLS:
        shown = redact_url(f"cannot reach {template.format(password)} now")
        assert shown == f"cannot reach {template.format('***')} now"
    assert redact_url(f"connect host=h password={quote(password)} user=u") == "connect host=h password=*** user=u"
    assert redact_url(f"connect host=h password='{quote(password)} x' user=u") == "connect host=h password=*** user=u"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///nas.db",
        "journal:nas.log",
        "grpc://host:13000",
        "redis://host:6379/0",
        "postgresql+psycopg://user@host:5432/nas",
        "postgresql://host/nas?user=u&sslmode=require",
        "no such table: studies",
        "sqlite:////tmp/pass word/nas.db?timeout=5",
        "",
    ],
)
def test_what_holds_no_password_is_shown_as_it_is(text):
    assert redact_url(text) == text
    assert redact_url(text, text) == text


def test_short_passwords_are_hidden_where_they_stand_alone():
    url = "postgresql://user:a@host/nas"
    assert redact_url("a database has no 'a' at all, said user:a@host", url) == (
        "*** database has no '***' at all, said user:***@host"
    )


@pytest.mark.parametrize("password", ["se/cret#wo?rd", "p@sswörter", "hunter22"])
@pytest.mark.parametrize("template", ["postgresql+psycopg://u:{}@127.0.0.1:1/nas", "nonsense://u:{}@h/nas"])
def test_commands_show_no_password(template, password, capsys):
    for command in (["search", "nas_bench_201"], ["top"], ["dashboard", "--publish-only"]):
        assert cli.main([*command, "--storage", template.format(password)]) == 1
        shown = "".join(capsys.readouterr())
        assert "cannot be opened" in shown
        assert all(part not in shown for part in (password, password[:4], password[-5:])), shown
