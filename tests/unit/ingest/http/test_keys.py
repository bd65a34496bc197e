"""Idempotency keys as requests spell them: in quotes, bare, and in the query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.errors import BadPayload
from arcpipe.ingest.http.keys import in_header, in_query, plain

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"8e03978e-40d5-43e8-bc93-6894a57f9324", b"8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b'"8e03978e-40d5-43e8-bc93-6894a57f9324"', b"8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b"a/b+c=:~!", b"a/b+c=:~!"),
        (b'"a,b;c"', b"a,b;c"),
        (rb'"a\"b\\c"', rb"a\"b\\c".replace(b"\\", b"", 1).replace(b"\\\\", b"\\")),
        (b"x" * 128, b"x" * 128),
        (b'"' + b"x" * 128 + b'"', b"x" * 128),
        (b'"' + rb"\"" * 128 + b'"', b'"' * 128),
    ],
)
def test_keys_come_in_quotes_or_bare(value: bytes, key: bytes) -> None:
    assert in_header(value) == key


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b'""', b"a b", b'"a b"', b"a, b", b"a,b", b"a;b", b'"a";p=1', b'a"b', b'"a', b'a"', b"a\\b"),
        *(rb'"a\b"', b"\xc3\xa4", b'"\xc3\xa4"', b"a\x7f", b"a\x00", b"a\n", b'"a"\n', b"x" * 129, b'"a", "b"'),
        b'"' + b"x" * 129 + b'"',
    ],
)
def test_other_headers_are_refused_with_the_reason(value: bytes) -> None:
    with pytest.raises(BadPayload, match=r"header 'idempotency-key': .*(is no key|1 to 128)"):
        in_header(value)


@given(st.binary(max_size=140) | VISIBLE.map(str.encode) | VISIBLE.map(lambda text: f'"{text}"'.encode()))
def test_keys_that_are_read_the_fast_way_are_read_the_same(value: bytes) -> None:
    try:
        expected = in_header(value)
    except BadPayload:
        expected = b""
    assert plain(value) in ((expected,) if b"\\" not in value else (expected, b""))


@given(VISIBLE)
def test_every_visible_key_can_be_sent_in_quotes_and_in_a_query(key: str) -> None:
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    assert in_header(f'"{quoted}"'.encode()) == in_query(key) == key.encode()


@pytest.mark.parametrize("value", ["", "a b", "ä", "a\n", "x" * 129, "\u2028"])
def test_other_parameters_are_refused_with_the_reason(value: str) -> None:
    with pytest.raises(BadPayload, match=r"query parameter 'idempotency_key': .*(is no key|1 to 128)"):
        in_query(value)
