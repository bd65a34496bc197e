"""The messages of a stream before pyarrow sees them: fields of a schema are counted as often as it would make them."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest

from arcpipe.codec.arrow_ipc.framing import MAX_FIELDS, messages
from arcpipe.errors import BadPayload
from tests.unit.codec.arrow_ipc.streams import stream

_STRUCT, _INT = 13, 2  # of the union Type in Schema.fbs


class _Builder:
    """Writes FlatBuffers tables whose parts come after them. Each field of a table has eight bytes here."""

    def __init__(self) -> None:
        self.data = bytearray(4)

    def table(self, fields: dict[int, bytes]) -> int:
        """Write a table, and return its place; an offset is any one byte until `lead` sets it."""
        self._align()
        count = max(fields, default=-1) + 1
        vtable = len(self.data)
        places = [8 + 8 * at if at in fields else 0 for at in range(count)]
        self.data += struct.pack(f"<{2 + count}H", 4 + 2 * count, 8 + 8 * count, *places)
        self._align()
        place = len(self.data)
        self.data += struct.pack("<ii", place - vtable, 0)
        for at in range(count):
            self.data += fields.get(at, b"").ljust(8, b"\0")
        return place

    def vector(self, items: bytes, count: int) -> int:
        self._align()
        self.data += bytes(4)  # so that what follows the count is aligned
        self.data += struct.pack("<I", count) + items
        return len(self.data) - len(items) - 4

    def lead(self, table: int, field: int, to: int) -> None:
        self.point(table + 8 + 8 * field, to)

    def point(self, place: int, to: int) -> None:
        self.data[place : place + 4] = struct.pack("<I", to - place)

    def _align(self) -> None:
        self.data += bytes(-len(self.data) % 8)


def _shared(width: int, padding: int) -> bytes:
    """Make a stream of no batch whose columns are one struct, and its children one integer, `width` times each."""
    made = _Builder()
    message = made.table({0: struct.pack("<h", 4), 1: b"\x01", 2: b"x", 3: b"\0"})
    made.point(0, message)
    parent, slot = made.table({1: b"x"}), 1
    made.lead(message, 2, parent)
    for type_ in (_STRUCT, _INT):
        vector = made.vector(bytes(4 * width), width)
        made.lead(parent, slot, vector)
        field = made.table({0: b"x", 1: b"\x01", 2: bytes([type_]), 3: b"x", 5: b"x"})
        for at in range(width):
            made.point(vector + 4 + 4 * at, field)
        made.lead(field, 0, made.vector(b"a\0\0\0", 1))
        made.lead(field, 3, made.table({0: struct.pack("<i", 32), 1: b"\x01"} if type_ == _INT else {}))
        parent, slot = field, 5
    made.lead(parent, slot, made.vector(b"", 0))
    made.data += bytes(padding + -len(made.data) % 8)
    return b"\xff" * 4 + struct.pack("<i", len(made.data)) + bytes(made.data) + b"\xff" * 4 + bytes(4)


def test_a_schema_may_not_be_more_than_its_bytes_hold() -> None:
    """Tables may be shared: 3 kB of metadata and zeros are 90,300 fields, 8 MB were 25 million and 5 GB of memory."""
    few = _shared(20, 0)
    assert len(list(messages(memoryview(few)))) == 1
    assert pa.ipc.open_stream(few).schema.field(19).type.num_fields == 20  # so the builder's schemas are valid
    many = _shared(300, 24_000)
    assert pa.ipc.open_stream(many).schema.field(299).type.num_fields == 300
    with pytest.raises(BadPayload, match="more than 16384 columns, with those of nested types"):
        list(messages(memoryview(many)))


@pytest.mark.parametrize("nested", [False, True])
def test_columns_have_a_limit_and_nested_ones_count(nested: bool) -> None:
    for count, is_taken in ((MAX_FIELDS - 1, True), (MAX_FIELDS + 1, False)):
        columns = {f"{at:x}": np.zeros(1) for at in range(count)}
        table = pa.table({"s": pa.StructArray.from_arrays(list(map(pa.array, columns.values())), list(columns))})
        body = stream(table if nested else pa.table(columns))
        if is_taken:
            assert [message.rows for message in messages(memoryview(body))] == [0, 1]
        else:
            with pytest.raises(BadPayload, match="more than 16384 columns"):
                list(messages(memoryview(body)))


def test_a_cut_vector_of_fields_is_damage() -> None:
    body = bytearray(_shared(300, 24_000))
    vector = body.index(struct.pack("<I", 300))
    body[vector : vector + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(BadPayload, match=r"damaged or cut|more than 16384 columns"):
        list(messages(memoryview(bytes(body))))
