"""MessagePack values of every kind, in every width that holds them, for property tests; and how values compare."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgpack
from hypothesis import strategies as st

from arcpipe.codec.arrow.arrays import Column, build
from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.natural import natural_type
from arcpipe.codec.rescued import Timestamp


def same(left: Any, right: Any) -> bool:
    """Equal in type and value; NaN is NaN, and -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def decode_values(data: bytes | memoryview, count: int, hint: str | None = None) -> Column:
    """Make `count` encoded values a column of type `hint` (a word of COLUMN_TYPES), or else of their natural type."""
    values = find_values(data, count)
    return build(values, hint or natural_type(values))


def as_sent(value: Any) -> Any:
    """Turn what Python has for an Arrow value into what was sent; the digits of a timestamp below µs are cut."""
    if isinstance(value, datetime):
        return Timestamp((value - _EPOCH) // timedelta(microseconds=1) * 1_000)
    if isinstance(value, Timestamp):
        return Timestamp(value.ns // 1_000 * 1_000)
    return int(value) if isinstance(value, Decimal) else value


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def wide(marker: int, packed: bytes) -> bytes:
    return bytes([marker]) + packed


# Every integer in every width that holds it, not only in the shortest.
integers = st.one_of(
    st.integers(-32, 127).map(lambda n: struct.pack(">b", n)),
    st.integers(0, 2**8 - 1).map(lambda n: wide(0xCC, struct.pack(">B", n))),
    st.integers(0, 2**16 - 1).map(lambda n: wide(0xCD, struct.pack(">H", n))),
    st.integers(0, 2**32 - 1).map(lambda n: wide(0xCE, struct.pack(">I", n))),
    st.integers(0, 2**64 - 1).map(lambda n: wide(0xCF, struct.pack(">Q", n))),
    st.integers(-(2**7), 2**7 - 1).map(lambda n: wide(0xD0, struct.pack(">b", n))),
    st.integers(-(2**15), 2**15 - 1).map(lambda n: wide(0xD1, struct.pack(">h", n))),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: wide(0xD2, struct.pack(">i", n))),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: wide(0xD3, struct.pack(">q", n))),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]).map(lambda n: wide(0xCF, struct.pack(">Q", n))),
    st.sampled_from([-(2**63), -(2**53), -(2**53) - 1]).map(lambda n: wide(0xD3, struct.pack(">q", n))),
)
floats = st.one_of(
    st.floats().map(lambda x: wide(0xCB, struct.pack(">d", x))),
    st.floats(width=32).map(lambda x: wide(0xCA, struct.pack(">f", x))),
)
short_text = st.text("abcxyz-019", max_size=40).map(msgpack.packb)
texts = st.one_of(
    short_text,
    st.text(max_size=12).map(msgpack.packb),
    st.sampled_from([31, 32, 255, 256, 65_536]).map(lambda size: msgpack.packb("x" * size)),
    st.text(max_size=3).map(lambda text: wide(0xDB, struct.pack(">I", len(text.encode())) + text.encode())),
)
invalid_text = st.sampled_from([b"\xff", b"\xc3", b"ab\xed\xa0\x80"]).map(lambda raw: bytes([0xA0 | len(raw)]) + raw)
binary = st.one_of(st.binary(max_size=5), st.sampled_from([b"x" * 256, b"x" * 65_536])).map(msgpack.packb)
booleans = st.sampled_from([b"\xc2", b"\xc3"])
nil = st.just(b"\xc0")


def _arrays_and_maps_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.one_of(st.text(max_size=3), st.just("$base64"), st.integers(0, 9))
    return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3)


def _nested(leaves: st.SearchStrategy[Any], depth: int) -> st.SearchStrategy[Any]:
    """Values of every depth up to this: `st.recursive` draws again and again what has too many leaves."""
    found = leaves
    for _ in range(depth):
        found |= _arrays_and_maps_of(found)
    return found


nested = _nested(
    st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=5), st.none(), st.binary(max_size=3)),
    4,
).map(msgpack.packb)
extensions = st.one_of(
    st.builds(
        lambda code, data: msgpack.packb(msgpack.ExtType(code, data)), st.integers(0, 127), st.binary(max_size=20)
    ),
    st.builds(
        lambda size, raw: wide(0xC7, bytes([size, 0xFF]) + raw[:size]), st.integers(0, 12), st.binary(min_size=12)
    ),
    st.integers(0, 2**32 - 1).map(lambda n: b"\xd6\xff" + struct.pack(">I", n)),
    st.integers(0, 2**64 - 1).map(lambda n: b"\xd7\xff" + struct.pack(">Q", n)),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(-(2**40), 2**40)).map(
        lambda pair: b"\xc7\x0c\xff" + struct.pack(">Iq", *pair)
    ),
)
any_value = st.one_of(integers, floats, texts, invalid_text, binary, booleans, nil, nested, extensions)
