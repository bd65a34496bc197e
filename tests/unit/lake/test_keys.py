"""Keys of objects: whatever a client calls its database and its measurement, they are below the store's prefix."""

from __future__ import annotations

import re
import string
from typing import Final
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arcpipe.lake.keys import Hidden, Layout, Partition, decode_component, encode_database, encode_name
from arcpipe.names import is_database_name
from arcpipe.storage.base import require_key

HOSTILE: Final = (
    *("..", ".", "../x", "../../etc/passwd", "/", "//", "a/../../b", "..%2f..", "%2e%2e", "%2F", "%", "%00"),
    *(".arcpipe-staging", "_dead_letter", "_delta_log", "lost+found", ".hidden", "_hidden", "..hidden", "~", "a~b"),
    *("a\\b", "C:\\x", "\\\\nas\\share", "a\0b", "a\nb", " ", " a ", "Home Assistant", "a=b", "year=2026", "*", "?#&"),
    *("é", "e\u0301", "日本語", "💧", "\u202e", "x" * 128, "." * 128, "_" * 128, "/" * 128, "ü" * 64, "💧" * 32),
)
LEGAL_BEFORE: Final = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)
# Short ones from few characters meet each other; hostile ones meet what they stand for.
NAMES: Final = st.text() | st.text("._/%2EF~a", max_size=4) | st.sampled_from(HOSTILE)


@given(
    database=NAMES,
    measurement=NAMES,
    layout=st.sampled_from(["arc", "hive"]),
    hidden=st.sampled_from([".", "._", "._~"]),
)
def test_any_names_make_a_key_below_the_prefix(database: str, measurement: str, layout: Layout, hidden: Hidden) -> None:
    assume(not re.search("[\ud800-\udfff]", database + measurement))  # no UTF-8 has them
    key = Partition(database, measurement, 0).key(layout, 0, "batch", 0, hidden)
    require_key(key)
    parts = key.split("/")
    assert len(parts) == 7
    assert key.isascii()
    assert key.isprintable()
    assert max(map(len, parts)) <= 240
    assert not key.startswith(".")
    assert hidden != "._~" or "%" not in key
    if hidden != ".":
        assert not any(part.startswith((".", "_")) for part in parts)


@given(NAMES, NAMES)
def test_different_names_stay_different(left: str, right: str) -> None:
    assume(not re.search("[\ud800-\udfff]", left + right))
    ways: tuple[Hidden, ...] = ("._", "._~")
    for hidden in ways:
        for encode in (encode_database, encode_name):
            assert (encode(left, hidden) == encode(right, hidden)) == (left == right)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_different_from_each_other(name: str) -> None:
    assert [other for other in HOSTILE if encode_database(other) == encode_database(name)] == [name]


@given(NAMES)
def test_a_name_can_be_read_from_its_component(name: str) -> None:
    assume(is_database_name(name))
    encoded = encode_database(name)
    assert unquote(encoded) == name or "~" in encoded
    assert unquote(encoded) == name or len(name.encode()) * 3 > 240


@given(NAMES, st.sampled_from(["._", "._~"]))
def test_a_component_is_decoded_unless_it_was_cut(name: str, hidden: Hidden) -> None:
    assume(not re.search("[\ud800-\udfff]", name))
    for encode, longest in ((encode_database, 240), (encode_name, 120)):
        found = decode_component(encode(name, hidden))
        assert found == name or (found is None and len(name.encode()) * 3 > longest)


def test_a_name_that_may_have_been_cut_is_not_decoded() -> None:
    short = "x" * 100 + " 1234567890123456"[:15]
    assert decode_component(encode_name(short, "._~")) is None
    assert decode_component(encode_name("x" * 100 + "~ü", "._~")) == "x" * 100 + "~ü"
    assert decode_component(encode_name("ü" * 200, "._~")) is None
    assert encode_name("ü" * 200, "._~")[100:102] == "~~"


@given(LEGAL_BEFORE)
def test_names_that_were_legal_before_keep_their_keys(name: str) -> None:
    assert encode_database(name, ".") == name
    assert encode_database(name) == ("%5F" + name[1:] if name.startswith("_") else name)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("Home Assistant", "Home%20Assistant"),
        ("_internal", "%5Finternal"),
        (".hidden", "%2Ehidden"),
        ("a_b.c", "a_b.c"),
        ("..", "%2E."),
        ("%5Finternal", "%255Finternal"),
    ],
)
def test_readers_see_what_begins_with_a_dot_or_an_underscore(name: str, encoded: str) -> None:
    """Pyarrow, Spark and Hive take such a path for hidden, the name of a file too."""
    assert (encode_database(name), encode_name(name)) == (encoded, encoded)
    key = Partition(name, name, 0).key("arc", 0, "batch", 0)
    assert key == f"{encoded}/{encoded}/1970/01/01/00/{encoded}_19700101T000000000000_batch_0.parquet"


def test_a_long_database_is_cut_and_has_its_whole_hash() -> None:
    first, second = encode_database("ü" * 63 + "xy"), encode_database("ü" * 63 + "yx")
    assert first != second
    assert re.fullmatch(r"[%C3B]{100}~[0-9a-f]{64}", first)
