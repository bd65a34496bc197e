"""The scanner, held against protobuf's own parser: the same values, and the same bytes refused."""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.scan import FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, scan, scan_one
from arcpipe.codec.protobuf.varints import read_varints, zigzag
from arcpipe.errors import BadPayload
from tests.support.sets import IS_LONG

# Bodies of the differential test.
BODIES: Final = 1_000_000 if IS_LONG else 3_000

FIELDS: Final = ("TYPE_UINT64", "TYPE_FIXED64", "TYPE_BYTES", "TYPE_SINT64", "TYPE_FIXED32")


def message_class() -> Any:
    """`Top {repeated M m = 1}`, with a field of each kind in M."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="scan.proto", package="scan", syntax="proto2")
    inner = file.message_type.add(name="M")
    for number, kind in enumerate(FIELDS, 1):
        label = kinds.LABEL_REPEATED if kind == "TYPE_BYTES" else kinds.LABEL_OPTIONAL
        inner.field.add(name=f"f{number}", number=number, type=getattr(kinds, kind), label=label)
    file.message_type.add(name="Top").field.add(
        name="m", number=1, type=kinds.TYPE_MESSAGE, type_name=".scan.M", label=kinds.LABEL_REPEATED
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("scan.Top"))


TOP: Final = message_class()
Rows = list[list[Any]]


def by_protobuf(data: bytes) -> Rows:
    top = TOP()
    top.ParseFromString(data)
    return [[one.f1, one.f2, list(one.f3), one.f4, one.f5] for one in top.m]


def by_scanner(data: bytes) -> Rows:
    buffer = Buffer(data)
    messages = scan_one(buffer, buffer.start, buffer.end, lambda: None).of(1, LENGTH_DELIMITED)
    fields = scan(buffer, messages.start, messages.end, lambda: None)
    rows: Rows = [[0, 0, [], 0, 0] for _ in messages.start]
    texts = fields.of(3, LENGTH_DELIMITED)
    for owner, text in zip(texts.owner.tolist(), buffer.gather(texts.start, texts.end).to_pylist(), strict=True):
        rows[owner][2].append(text)
    for column, number, wire in ((0, 1, VARINT), (1, 2, FIXED64), (3, 4, VARINT), (4, 5, FIXED32)):
        found = fields.of(number, wire)
        if wire == VARINT:
            raw = read_varints(buffer, found.start, found.end)
            values = (raw if column == 0 else zigzag(raw)).tolist()
        else:
            values = (buffer.fixed64 if wire == FIXED64 else buffer.fixed32)(found.start).tolist()
        for owner, value in zip(found.owner.tolist(), values, strict=True):
            rows[owner][column] = value  # the last one counts
    return rows


def some_number(chance: random.Random) -> int:
    return chance.choice(
        [0, 1, 127, 128, 1 << 32, (1 << 56) - 1, 1 << 56, 1 << 63, (1 << 64) - 1, chance.getrandbits(50)]
    )


def some_body(chance: random.Random) -> bytes:
    """A valid body, in most cases with a few bytes changed."""
    top = TOP()
    for _ in range(chance.choice([0, 1, 3, 70, 130])):
        one = top.m.add()
        for field in chance.choices(range(5), k=chance.choice([0, 1, 2, 5])):
            if field == 0:
                one.f1 = some_number(chance)
            elif field == 1:
                one.f2 = some_number(chance)
            elif field == 2:
                one.f3.append(chance.randbytes(chance.choice([0, 1, 5, 12, 13, 127, 128, 200])))
            elif field == 3:
                one.f4 = some_number(chance) - (1 << 63)
            else:
                one.f5 = chance.getrandbits(32)
    data = bytearray(top.SerializeToString())
    for _ in range(chance.choice([0, 1, 2, 3])):
        if data:
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(2)] = chance.randbytes(chance.randrange(3))
    return bytes(data)


def is_refused_by_both(data: bytes) -> bool:
    """Assert that the scanner finds what protobuf finds, and tell whether both refuse it."""
    try:
        expected: Rows | None = by_protobuf(data)
    except DecodeError:
        expected = None
    try:
        found: Rows | None = by_scanner(data)
    except BadPayload as error:
        found = None
        if "is a group" in str(error):  # the one thing that protobuf still takes
            return False
    assert found == expected, data.hex()
    return expected is None


@pytest.mark.slow
@pytest.mark.timeout(7200)  # seconds: of the long set
def test_it_finds_what_protobuf_finds() -> None:
    chance = random.Random(22)
    refused = 0
    for _ in range(BODIES):
        refused += is_refused_by_both(some_body(chance))
    assert BODIES // 10 < refused < BODIES


@pytest.mark.parametrize("count", [1, 200])
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x02\x01", "number 0"),
        (b"\x0b\x0c", "is a group"),
        (b"\x0f", "of no wire type"),
        (b"\x0a\x05abc", "after the end of its message"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "after the end of its message"),
        (b"\x08" + b"\xff" * 11, "more than ten bytes"),
        (b"\x08\xff", "after the end of its message"),
        (b"\x09" + bytes(7), "after the end of its message"),
        (b"\xff\xff\xff\xff\xff\xff\x01", "tag is that long"),
        (b"\x88\x80\x80\x80\x80\x01\x00", "tag is that long"),
    ],
)
def test_malformed_bytes_are_refused_with_their_place(message: bytes, reason: str, count: int) -> None:
    """Alone, and as the last of many that are read in step."""
    data = b"\x08\x01" * (count - 1)
    buffer = Buffer(data + message)
    starts = np.arange(count) * 2 + buffer.start
    ends = np.append(starts[:-1] + 2, buffer.end)
    with pytest.raises(BadPayload, match=reason) as caught:
        scan(buffer, starts, ends, lambda: None)
    where = int(str(caught.value).partition("at byte ")[2].partition(":")[0])
    assert len(data) <= where <= len(data) + 1


def test_a_message_of_many_fields_lets_others_run() -> None:
    calls = []
    buffer = Buffer(b"\x08\x01" * 10_000)
    scan_one(buffer, buffer.start, buffer.end, lambda: calls.append(1))
    assert len(calls) >= 4


def test_a_string_that_is_no_utf8_is_not_gathered() -> None:
    buffer = Buffer(b"ab\xff")
    with pytest.raises(BadPayload, match="a name is not UTF-8"):
        buffer.gather_texts(np.array([buffer.start]), np.array([buffer.end]), "a name")
