"""With the native kernel, columns and rows in MessagePack are taken, refused and patched as without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.columns import array_header
from arcpipe.codec.effort import go_on
from arcpipe.codec.messagepack import column_walk, rows_by_kernel
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.messagepack.walk import MAX_VALUE_BYTES
from arcpipe.errors import BadPayload
from tests.support.kernel import kernel_of_checkout
from tests.unit.codec.messagepack.test_body import bodies, columnar_maps, damage, long_value, pack, telemetry

RULES = [TimeRule(precision, as_arc) for precision in (None, "ns", "s") for as_arc in (False, True)]
Walk = Callable[[bytes, int, int], tuple[tuple[bytes, ...], int, int, int, int, int] | None]


def walk() -> Walk:
    found: Walk = kernel_of_checkout().walk_columns
    return found


def outcome(body: bytes | memoryview, rule: TimeRule) -> object:
    try:
        encoded = encode(body, go_on, rule)
        return encoded.batch, bytes(encoded.body), encoded.records
    except BadPayload as error:
        return str(error)


def same_with_both(body: bytes | memoryview, rule: TimeRule = RULES[0]) -> bool:
    """Encode by Python, and with the kernel: the outcome is the same. Tells whether the body is good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_walk, "_WALK", None)
        patch.setattr(rows_by_kernel, "_GATHER", None)
        by_python = outcome(body, rule)
        patch.setattr(column_walk, "_WALK", walk())
        patch.setattr(rows_by_kernel, "_GATHER", kernel_of_checkout().gather_rows)
        assert outcome(body, rule) == by_python
    return not isinstance(by_python, str)


def columns_body(*columns: bytes, count: int | None = None) -> bytes:
    return b"\x82\xa1m\xa3cpu\xa7columns" + bytes([0x80 | (count or len(columns))]) + b"".join(columns)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(bodies | columnar_maps(), st.booleans(), st.sampled_from(RULES), st.data())
def test_a_body_good_or_damaged_has_one_outcome(body: Any, wide: bool, rule: TimeRule, data: st.DataObject) -> None:
    packed = bytearray(pack(body, wide))
    assert same_with_both(bytes(packed))
    same_with_both(bytes(packed), rule)
    for _ in range(data.draw(st.integers(1, 3))):
        damage(packed, data)
        same_with_both(bytes(packed), rule)
        same_with_both(memoryview(bytes(packed)), rule)


VALUES = [
    *(b"\x00", b"\x7f", b"\xe0", b"\xff", b"\xc0", b"\xc2", b"\xc3", b"\xcc\x80", b"\xcd\x01\x00", b"\xce\0\x01\0\0"),
    *(b"\xcf" + bytes(8), b"\xd0\x80", b"\xd1\x80\0", b"\xd2\x80\0\0\0", b"\xd3\xff" + bytes(7), b"\xca" + bytes(4)),
    *(b"\xcb" + bytes(8), b"\xa0", b"\xa3abc", b"\xbf" + b"x" * 31, b"\xd9\x02ab", b"\xda\0\x01a", b"\xdb\0\0\0\x01a"),
    *(b"\xc4\x01a", b"\xc5\0\x01a", b"\xc6\0\0\0\x01a", b"\xd4\x05a", b"\xd5\x05ab", b"\xd6\xff" + bytes(4)),
    *(b"\xd7\xff" + bytes(8), b"\xd8\x05" + bytes(16), b"\xc7\x01\x05a", b"\xc8\0\x01\x05a", b"\xc9\0\0\0\x01\x05a"),
]
ODD = [b"\x90", b"\x91\x01", b"\x80", b"\x81\xa1a\x01", b"\xc1", b"\xdc\0\x01\x01", b"\xdd\0\0\0\0", b"\xde\0\0", b""]


@pytest.mark.parametrize("seed", range(4))
def test_columns_of_all_kinds_of_values_and_lengths(seed: int) -> None:
    """Runs of one kind and of several, short and long headers, a nested or missing value, an end within a value."""
    choose = random.Random(seed)
    left = 0
    for _ in range(300):
        rows = choose.choice([1, 2, 7, 8, 9, 15, 16, 17, 40, 300])
        columns = []
        for number in range(choose.randrange(1, 5)):
            kinds = choose.sample(VALUES, choose.choice([1, 1, 2, 30]))
            values = [choose.choice(kinds) for _ in range(rows)]
            if choose.random() < 0.1:
                values[choose.randrange(rows)] = choose.choice(ODD)
            header = array_header(rows)
            if choose.random() < 0.1:
                header = b"\xdd" + (rows + choose.choice([0, 0, 1])).to_bytes(4, "big")
            name = choose.choice([b"time", b"host", b"h\xc3\xa9", b"a\n", b"", b"n" * 31, b"c%d" % number])
            packed_name = msgpack.packb(name.decode())
            columns.append(packed_name + header + b"".join(values))
        body = columns_body(*columns)
        left += walk()(body, body.index(b"columns") + 8, len(columns)) is None
        is_good = same_with_both(body)
        if is_good and choose.random() < 0.3:
            same_with_both(body[: choose.randrange(len(body))])
            same_with_both(body + b"\x00")
    assert 20 < left < 280


def test_what_is_found() -> None:
    body = telemetry(1000)
    start = body.index(b"columns") + 8
    names, rows, end, times, times_end, width = walk()(body, start, 6) or ((), 0, 0, 0, 0, 0)
    assert names == (b"time", b"host", b"region", b"user", b"system", b"count")
    assert (rows, end, width) == (1000, len(body), 9)
    assert (times, times_end) == (start + 5 + 3, start + 5 + 3 + 9000)
    assert walk()(body, start, 5) is not None  # whoever asks knows how many there are
    assert walk()(body, start, 7) is None
    assert walk()(body[:-1], start, 6) is None
    mixed = columns_body(b"\xa4time\x92\x01\xcf" + bytes(8))
    assert walk()(mixed, mixed.index(b"columns") + 8, 1) == ((b"time",), 2, len(mixed), 22, 32, 0)


def test_a_body_with_a_value_of_more_than_16_mb_is_left_to_python() -> None:
    long = MAX_VALUE_BYTES + 1
    few = columns_body(b"\xa1a" + array_header(2) + b"\x01" + long_value(long))
    many = columns_body(b"\xa1a" + array_header(65_537) + b"\x01" * 65_536 + long_value(long))
    assert same_with_both(few)
    assert not same_with_both(many)


def test_as_many_columns_as_are_found_at_once() -> None:
    for count in (255, 256, 257, 300):
        columns = b"".join(msgpack.packb(f"c{number}") + b"\x91\x01" for number in range(count))
        body = b"\x82\xa1m\xa3cpu\xa7columns\xde" + count.to_bytes(2, "big") + columns
        assert (walk()(body, body.index(b"columns") + 10, count) is None) == (count > 256)
        assert same_with_both(body)


def test_what_is_more_than_1_mb_is_left_to_python() -> None:
    assert same_with_both(telemetry(20_000))
    for count in ((1 << 20) - 7, (1 << 20) - 6):
        body = columns_body(b"\xa1a" + array_header(count) + b"\x01" * count)
        start = body.index(b"columns") + 8
        assert (walk()(body, start, 1) is None) == (len(body) - start > 1 << 20)
        assert same_with_both(body)
    small = telemetry(10)
    maps = array_header(40_000) + small * 40_000  # each is walked by itself
    assert walk()(maps, maps.index(b"columns") + 8, 6) is not None
    assert same_with_both(maps)


@pytest.mark.parametrize("arguments", [(), (b"",), ("text", 0, 1), (b"ab", 3, 1), (b"ab", -1, 1), (b"ab", 0, 0)])
def test_what_is_no_question_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="walk_columns takes bytes"):
        walk()(*arguments)
