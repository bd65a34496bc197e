"""Names of databases: any text that can be one, and nothing that could leave its place."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.names import MAX_DATABASE_BYTES, is_database_name


@pytest.mark.parametrize(
    "name",
    [
        *("Home Assistant", "production", "_internal", ".hidden", "...", "..a", "a..", " ", "%2E%2E", "C:\\x", "~"),
        *("é", "日本語", "💧", 'a"b', "a,b", "a=b", "$(id)", "a?b#c", "x" * 128, "ü" * 64, "\u202ea", "\u2028"),
    ],
)
def test_any_text_is_a_name(name: str) -> None:
    assert is_database_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "a/b", "../x", "a\n", "\0", "a\tb", "\x7f", "\x9b", "x" * 129, "ü" * 65, "\ud800"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    assert not is_database_name(name)


@given(st.text())
def test_a_name_is_what_the_rule_says(name: str) -> None:
    wrong = any(unicodedata.category(letter) == "Cc" or letter == "/" for letter in name)
    is_long = len(name.encode("utf-8", "surrogatepass")) > MAX_DATABASE_BYTES
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in name)
    assert is_database_name(name) == (not wrong and not is_long and is_text and name not in ("", ".", ".."))
