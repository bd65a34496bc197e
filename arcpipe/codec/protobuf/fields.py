"""The values of fields by message: the last one of a singular field, and packed varints."""

from __future__ import annotations

from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from arcpipe.codec.protobuf.buffer import Buffer, Ints, Words
from arcpipe.codec.protobuf.scan import FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, Fields, Spans
from arcpipe.codec.protobuf.varints import read_varints, zigzag
from arcpipe.errors import BadPayload
from arcpipe.units import MB

# Bytes of packed numbers that are read in one call: as many as a piece has, and more than any useful message.
MAX_PACKED_BYTES: Final = MB

Mask: TypeAlias = npt.NDArray[np.bool_]
Column = TypeVar("Column", bound=npt.NDArray[Any])


class Level:
    """The messages of one level, and readers of their singular fields.

    Where a message has a field several times, the last one counts; where it has none, the default does.
    """

    __slots__ = ("buffer", "count", "fields")

    def __init__(self, buffer: Buffer, fields: Fields, count: int) -> None:
        self.buffer = buffer
        self.fields = fields
        self.count = count

    def unsigned(self, number: int) -> Words:
        """Read uint32, uint64 or an enum; 0 by default."""
        found = self.fields.of(number, VARINT)
        return self._place(np.zeros(self.count, np.uint64), found, read_varints(self.buffer, found.start, found.end))

    def integers(self, number: int) -> Ints:
        """Read int32 or int64; 0 by default."""
        return self.unsigned(number).view(np.int64)

    def booleans(self, number: int) -> Mask:
        """Read bool; False by default."""
        values: Mask = self.unsigned(number) != 0
        return values

    def zigzag(self, number: int) -> Ints:
        """Read sint32 or sint64; 0 by default."""
        return zigzag(self.unsigned(number))

    def fixed64(self, number: int) -> Words:
        """Read fixed64; 0 by default."""
        found = self.fields.of(number, FIXED64)
        return self._place(np.zeros(self.count, np.uint64), found, self.buffer.fixed64(found.start))

    def fixed32(self, number: int) -> Ints:
        """Read fixed32; 0 by default."""
        found = self.fields.of(number, FIXED32)
        return self._place(np.zeros(self.count, np.int64), found, self.buffer.fixed32(found.start))

    def doubles(self, number: int, default: float = 0.0) -> npt.NDArray[np.float64]:
        """Read double, bit by bit."""
        found = self.fields.of(number, FIXED64)
        return self._place(np.full(self.count, default), found, self.buffer.doubles(found.start))

    def has(self, number: int, wire: int) -> Mask:
        """Tell which messages have a field."""
        there = np.zeros(self.count, np.bool_)
        there[self.fields.of(number, wire).owner] = True
        return there

    def spans(self, number: int) -> tuple[Ints, Ints]:
        """Find the place of a string or of bytes in each message; an empty one by default."""
        found = self.fields.of(number, LENGTH_DELIMITED)
        starts, ends = self.nowhere()
        starts[found.owner] = found.start
        ends[found.owner] = found.end
        return starts, ends

    def nowhere(self) -> tuple[Ints, Ints]:
        """Make an empty place for each message."""
        starts = np.full(self.count, self.buffer.start, np.int64)
        return starts, starts.copy()

    def message(self, number: int, what: str) -> Spans:
        """Find the singular message of a field.

        Raises:
            BadPayload: a message has it twice. Nobody sends that, and merging them would cost much.
        """
        found = self.fields.of(number, LENGTH_DELIMITED)
        if len(found.owner) > 1:
            twice = np.flatnonzero(found.owner[1:] == found.owner[:-1])
            if len(twice):
                place = self.buffer.offset(int(found.start[twice[0] + 1]))
                raise BadPayload(f"malformed protobuf at byte {place}: {what} is there twice")
        return found

    @staticmethod
    def _place(values: Column, found: Spans, read: Column) -> Column:
        values[found.owner] = read
        return values


def packed_varints(buffer: Buffer, fields: Fields, number: int) -> tuple[Ints, Words]:
    """Read a repeated varint field, packed or not: (owner, value) of each, in order.

    Raises:
        BadPayload: a packed field ends within a varint.
    """
    single = fields.of(number, VARINT)
    packed = fields.of(number, LENGTH_DELIMITED)
    if not len(packed.owner):
        return single.owner, read_varints(buffer, single.start, single.end)
    sizes = packed.end - packed.start
    _check_packed(sizes)
    stops = np.cumsum(sizes)
    places = np.repeat(packed.end - stops, sizes) + np.arange(int(stops[-1]))
    last = buffer.text[places] < 0x80
    if not last[stops[sizes > 0] - 1].all():
        raise BadPayload("malformed protobuf: a packed field ends within a varint")
    ends = places[last] + 1
    counted = np.concatenate(([0], np.cumsum(last)))
    counts = counted[stops] - counted[stops - sizes]
    starts = np.empty_like(ends)
    if len(ends):
        starts[1:] = ends[:-1]
        firsts = np.cumsum(counts) - counts
        has = counts > 0
        starts[firsts[has]] = packed.start[has]
        if (ends - starts > 10).any():
            place = int(starts[np.flatnonzero(ends - starts > 10)[0]])
            raise BadPayload(f"malformed protobuf at byte {buffer.offset(place)}: a varint has more than ten bytes")
    owner, values = np.repeat(packed.owner, counts), read_varints(buffer, starts, ends)
    if not len(single.owner):
        return owner, values
    begins = np.concatenate((single.start, starts))
    order = np.argsort(begins, kind="stable")
    singles = read_varints(buffer, single.start, single.end)
    return np.concatenate((single.owner, owner))[order], np.concatenate((singles, values))[order]


def packed_fixed64(buffer: Buffer, fields: Fields, number: int) -> tuple[Ints, Ints]:
    """Find the numbers of a repeated field of eight bytes each, packed or not: (owner, place), in order.

    Raises:
        BadPayload: a packed field ends within a number.
    """
    single = fields.of(number, FIXED64)
    packed = fields.of(number, LENGTH_DELIMITED)
    sizes = packed.end - packed.start
    _check_packed(sizes)
    if (sizes & 7).any():
        place = buffer.offset(int(packed.start[np.flatnonzero(sizes & 7)[0]]))
        raise BadPayload(f"malformed protobuf at byte {place}: a packed field ends within a number")
    counts = sizes >> 3
    stops = np.cumsum(counts)
    total = int(stops[-1]) if len(stops) else 0
    places = np.repeat(packed.end - 8 * stops, counts) + 8 * np.arange(total)
    owner = np.repeat(packed.owner, counts)
    if not len(single.owner):
        return owner, places
    begins = np.concatenate((single.start, places))
    order = np.argsort(begins, kind="stable")
    return np.concatenate((single.owner, owner))[order], begins[order]


def _check_packed(sizes: Ints) -> None:
    if int(sizes.sum()) > MAX_PACKED_BYTES:
        raise BadPayload(f"the protobuf body has more than {MAX_PACKED_BYTES} bytes of packed numbers in one place")
