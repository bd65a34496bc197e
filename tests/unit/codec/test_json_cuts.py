"""What is cut means the same as what is decoded in one call, and is refused where that is."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.effort import go_on
from arcpipe.codec.json_cuts import LargeArray, LargeObject, decode, drain
from arcpipe.errors import BadPayload

TEXTS = st.text(st.sampled_from('a"\\,[]{}: \n\u00fc'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | TEXTS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=40,
)


PIECES = (b",", b"[", b"]", b"{", b"}", b'"', b"\\", b":", b"1", b"")


def whole(value: Any) -> Any:
    """Read all parts of a value."""
    if isinstance(value, LargeArray):
        return [whole(item) for item in value]
    if isinstance(value, LargeObject):
        return {name: whole(item) for name, item in value.items()}
    return value


@given(VALUES, st.integers(1, 40), st.sampled_from([None, 1]))
def test_a_value_that_is_cut_is_the_same(value: Any, piece_bytes: int, indent: int | None) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=False).encode()
    assert whole(decode(body, go_on, piece_bytes)) == value


@given(VALUES, st.integers(1, 40), st.integers(0, 1 << 30))
def test_a_damaged_value_is_refused_if_one_call_refuses_it(value: Any, piece_bytes: int, seed: int) -> None:
    chance = random.Random(seed)
    body = bytearray(json.dumps(value, ensure_ascii=False).encode())
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(body) + 1)
        body[at : at + chance.randrange(2)] = chance.choice(
            [b",", b"[", b"]", b"{", b"}", b'"', b"\\", b":", b"1", b""]
        )
    data = bytes(body)
    try:
        expected, is_valid = orjson.loads(data), True
    except orjson.JSONDecodeError:
        is_valid = False
    try:
        found = whole(decode(data, go_on, piece_bytes))
    except BadPayload:
        assert not is_valid, data
    else:
        assert is_valid, data
        assert found == expected


@pytest.mark.parametrize(
    "body", ["[1 2]", "[[1][2]]", '{"a":[1]"b":[2]}', "[1]]", "[[1]", '["a]', "[1}", "x[1,2]", "[1,2]x"]
)
def test_what_is_no_json_is_refused(body: str) -> None:
    with pytest.raises(BadPayload, match="no JSON"):
        drain(decode(body.encode(), go_on, 2))


def test_a_large_value_is_decoded_a_part_at_a_time() -> None:
    calls = 0

    def check(*_: float) -> None:
        nonlocal calls
        calls += 1

    body = b"[" + b",".join([b'{"a":[1,2,3]}'] * 200_000) + b"]"
    found = decode(body, check)
    assert isinstance(found, LargeArray)
    before = calls
    assert before > 20
    assert sum(1 for _ in found) == 200_000
    assert calls > before + 15


def test_large_containers_are_nested_so_deep_at_most() -> None:
    body = b"[" * 200 + b"1," * 200_000 + b"1" + b"]" * 200
    with pytest.raises(BadPayload, match="nested too deep"):
        drain(decode(body, go_on))
