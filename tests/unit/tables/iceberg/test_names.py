"""Names in catalogues come back, and different ones stay different."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.tables.iceberg.names import encode

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
NEAR_TO_ENCODED = st.text("_x04afgA.~-", min_size=1, max_size=12)


def decode(encoded: str) -> str:
    """Return the name again, as docs/tables.md says how it was written."""
    return re.sub(rb"_x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), encoded.encode()).decode()


@given(TEXT | NEAR_TO_ENCODED, st.booleans())
def test_every_name_comes_back(name: str, narrow: bool) -> None:
    encoded = encode(name, narrow=narrow)
    assert re.fullmatch("[a-z0-9_]+" if narrow else "[A-Za-z0-9_-]+", encoded)
    if len(encoded) <= 200 and not re.search(r"_x7e[0-9a-f]{32}\Z", encoded):
        assert decode(encoded) == name


@given(st.lists(TEXT | NEAR_TO_ENCODED, min_size=2, max_size=2, unique=True), st.booleans())
def test_different_names_stay_different(names: list[str], narrow: bool) -> None:
    assert encode(names[0], narrow=narrow) != encode(names[1], narrow=narrow)


@pytest.mark.parametrize(
    ("name", "wide", "narrow"),
    [
        ("cpu", "cpu", "cpu"),
        ("http.requests", "http_x2erequests", "http_x2erequests"),
        ("Prod-EU", "Prod-EU", "_x50rod_x2d_x45_x55"),
        ("a_x41", "a_x5fx41", "a_x5fx41"),
        ("é", "_xc3_xa9", "_xc3_xa9"),
    ],
)
def test_names_are_as_documented(name: str, wide: str, narrow: str) -> None:
    assert encode(name, narrow=False) == wide
    assert encode(name, narrow=True) == narrow


def test_long_names_are_cut_and_stay_different() -> None:
    one, other = "m" * 256, "m" * 255 + "n"
    assert len(encode(one, narrow=False)) <= 200
    assert encode(one, narrow=False) != encode(other, narrow=False)
