"""Find the fields of all messages of a level.

Many messages are read in step: the first field of each, then the second of each that has one, and so on. The cost is a
few numpy calls for each step, whatever the number of messages. Once few messages go on, the rest of each is read alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from arcpipe.codec.protobuf.buffer import Buffer, Bytes, Ints
from arcpipe.codec.protobuf.chain import chain
from arcpipe.codec.protobuf.varints import MAX_VARINT_BYTES, read_varints, varint_sizes
from arcpipe.errors import BadPayload

Numbers: TypeAlias = "array[int]"

VARINT: Final = 0
FIXED64: Final = 1
LENGTH_DELIMITED: Final = 2
FIXED32: Final = 5

# Messages that go on, below which each is read alone: a step costs as much as the fields of this many.
_FEW: Final = 64
# Fields of a message that is read alone between two calls of `check`: half a millisecond.
_FIELDS_BETWEEN_CHECKS: Final = 2048
# Bytes of a message from which on fields that are alike are found by a loop of their own.
_MANY_BYTES: Final = 4096
# Bytes of the value by wire type; 0 for those that say it themselves, 255 for wire types that are refused.
_FIXED: Final = np.array([0, 8, 0, 255, 255, 4, 255, 255], np.uint8)
# Fields that are found in one call, at most: each takes some 80 bytes meanwhile, and no useful body has more of them.
MAX_FIELDS: Final = 1 << 20


class Spans(NamedTuple):
    """Values of one field number: the index of the message of each, and its place."""

    owner: Ints
    start: Ints
    end: Ints


class Fields(NamedTuple):
    """All fields of some messages, message after message, in their order.

    `start` and `end` are the place of the value: of a varint its bytes, of a length-delimited one its content.
    """

    owner: Ints
    number: npt.NDArray[np.integer[Any]]
    wire: Bytes
    start: Ints
    end: Ints

    def of(self, number: int, wire: int) -> Spans:
        """Return the values of a number with the right wire type; others of that number count as unknown."""
        found = np.flatnonzero(self.number == number)
        right = self.wire[found] == wire
        if not right.all():
            found = found[right]
        return Spans(self.owner[found], self.start[found], self.end[found])


def scan(buffer: Buffer, starts: Ints, ends: Ints, check: Callable[[], None]) -> Fields:
    """Find the fields of the messages between `starts` and `ends`.

    Raises:
        BadPayload: a message is malformed; the text says at which byte of the body.
    """
    counts = np.zeros(len(starts), np.int64)
    steps: list[tuple[Ints, Fields]] = []
    live = np.flatnonzero(starts < ends)
    places, stops = starts[live], ends[live]
    while len(live) >= _FEW:
        step = _step(buffer, places, stops)
        steps.append((live, step))
        counts[live] += 1
        going = step.end < stops
        if going.all():
            places = step.end
        else:
            live, places, stops = live[going], step.end[going], stops[going]
        check()
    alone = [_walk(buffer, place, stop, check) for place, stop in zip(places.tolist(), stops.tolist(), strict=True)]
    first = counts[live]
    counts[live] += np.array([len(tags) for tags, _, _ in alone], np.int64)
    total = int(counts.sum())
    if total > MAX_FIELDS:
        raise BadPayload(f"the protobuf body has more than {MAX_FIELDS} fields in messages of one kind")
    begins = np.cumsum(counts) - counts
    found = Fields(
        np.repeat(np.arange(len(starts)), counts),
        np.empty(total, np.int32),
        np.empty(total, np.uint8),
        np.empty(total, np.int64),
        np.empty(total, np.int64),
    )
    for number, (owners, step) in enumerate(steps):
        at = begins[owners] + number
        found.number[at], found.wire[at] = step.number, step.wire
        found.start[at], found.end[at] = step.start, step.end
    for owner, done, (tags, own_starts, own_ends) in zip(live.tolist(), first.tolist(), alone, strict=True):
        begin = int(begins[owner]) + done
        own = slice(begin, begin + len(tags))
        table = np.frombuffer(tags, np.int64)
        found.number[own], found.wire[own] = table >> 3, table & 7
        found.start[own], found.end[own] = np.frombuffer(own_starts, np.int64), np.frombuffer(own_ends, np.int64)
    return found


def scan_one(buffer: Buffer, start: int, end: int, check: Callable[[], None]) -> Fields:
    """Find the fields of one message."""
    return scan(buffer, np.array([start]), np.array([end]), check)


def _step(buffer: Buffer, places: Ints, stops: Ints) -> Fields:
    """Find the field that begins at each place. The column `owner` is empty."""
    text = buffer.text
    tags: npt.NDArray[np.int64] | Bytes = text[places]
    wire = text[places] & np.uint8(7)
    at = places + 1
    long = np.flatnonzero(tags >= 0x80)
    number = (tags >> np.uint8(3)).astype(np.int64)
    if len(long):
        sizes = varint_sizes(buffer, places[long])
        at[long] += sizes - 1
        number[long] = (read_varints(buffer, places[long], at[long]) >> np.uint64(3)).astype(np.int64)
        bad = np.flatnonzero((sizes > 5) | (number[long] >= 1 << 29))
        if len(bad):
            raise _malformed(buffer, int(places[long[bad[0]]]), "no tag is that long")
    if not number.all():
        raise _malformed(buffer, int(places[np.flatnonzero(number == 0)[0]]), "a field has the number 0")
    if (wire == LENGTH_DELIMITED).all():
        start, end = _delimited(buffer, at)
    else:
        fixed = _FIXED[wire]
        if (fixed == 255).any():
            where = int(places[np.flatnonzero(fixed == 255)[0]])
            raise _malformed(buffer, where, "a field is a group, or of no wire type")
        start, end = at, at + fixed
        delimited = np.flatnonzero(wire == LENGTH_DELIMITED)
        if len(delimited):
            start = start.copy()
            start[delimited], end[delimited] = _delimited(buffer, at[delimited])
        varying = np.flatnonzero(wire == VARINT)
        if len(varying):
            sizes = varint_sizes(buffer, at[varying])
            if (sizes > MAX_VARINT_BYTES).any():
                where = int(at[varying[np.flatnonzero(sizes > MAX_VARINT_BYTES)[0]]])
                raise _malformed(buffer, where, "a varint has more than ten bytes")
            end[varying] += sizes
    beyond = end > stops
    if beyond.any():
        where = int(places[np.flatnonzero(beyond)[0]])
        raise _malformed(buffer, where, "a field goes on after the end of its message")
    return Fields(places[:0], number, wire, start, end)


def _delimited(buffer: Buffer, at: Ints) -> tuple[Ints, Ints]:
    """Read the lengths at these places; return where the content of each begins and ends."""
    sizes = buffer.text[at].astype(np.int64)
    start = at + 1
    long = np.flatnonzero(sizes >= 0x80)
    if len(long):
        widths = varint_sizes(buffer, at[long])
        start[long] += widths - 1
        values = read_varints(buffer, at[long], start[long])
        # A greater length ends beyond any body.
        sizes[long] = np.minimum(values, np.uint64(1 << 40)).astype(np.int64)
        sizes[long[widths > MAX_VARINT_BYTES]] = 1 << 40
    return start, start + sizes


def scan_alone(buffer: Buffer, at: int, stop: int, check: Callable[[], None]) -> list[tuple[int, int, int, int]]:
    """Return number, wire type, start and end of each field of a message from `at` on."""
    tags, starts, ends = _walk(buffer, at, stop, check)
    return [(tag >> 3, tag & 7, start, end) for tag, start, end in zip(tags, starts, ends, strict=True)]


def _walk(buffer: Buffer, at: int, stop: int, check: Callable[[], None]) -> tuple[Numbers, Numbers, Numbers]:
    """Return tag, start and end of each field of a message from `at` on."""
    data = buffer.raw()
    tags, starts, ends = array("q"), array("q"), array("q")
    rest = _FIELDS_BETWEEN_CHECKS
    while at < stop:
        field = at
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(buffer, field)
            if at - field > 5 or tag >= 1 << 32:
                raise _malformed(buffer, field, "no tag is that long")
        if tag < 8:
            raise _malformed(buffer, field, "a field has the number 0")
        wire = tag & 7
        if wire == LENGTH_DELIMITED:
            size = data[at]
            at += 1
            if size >= 0x80:
                more = data[at]
                if more < 0x80:
                    size += (more << 7) - 0x80
                    at += 1
                else:
                    size, at = _varint(buffer, at - 1)
            end = at + size
        elif wire == VARINT:
            end = _varint(buffer, at)[1] if data[at] >= 0x80 else at + 1
        elif wire in (FIXED64, FIXED32):
            end = at + (8 if wire == FIXED64 else 4)
        else:
            raise _malformed(buffer, field, "a field is a group, or of no wire type")
        if end > stop:
            raise _malformed(buffer, field, "a field goes on after the end of its message")
        tags.append(tag)
        starts.append(at)
        ends.append(end)
        at = end
        if wire == LENGTH_DELIMITED and tag < 0x80 and stop - at > _MANY_BYTES and data[at] == tag:
            at = _walk_alike(buffer, at, stop, tags, starts, ends)
            rest = 1
        rest -= 1
        if not rest:
            rest = _FIELDS_BETWEEN_CHECKS
            check()
            if len(tags) > MAX_FIELDS:
                raise BadPayload(f"the protobuf body has more than {MAX_FIELDS} fields in messages of one kind")
    return tags, starts, ends


def _walk_alike(buffer: Buffer, at: int, stop: int, tags: Numbers, starts: Numbers, ends: Numbers) -> int:
    """Add the fields from `at` on that have the same tag and a length of one or two bytes; return where they end.

    A field that goes beyond `stop` is left to the caller, as are those close to it.
    """
    begins = chain(buffer, at, stop)
    if begins is None:
        begins = _loop_alike(buffer, at, stop)
    text = buffer.text
    low = text[begins + 1]
    contents = begins + 2 + (low >= 0x80)
    sizes = np.where(low < 0x80, low, (low & np.uint8(0x7F)) + (text[begins + 2].astype(np.int64) << 7))
    stops = contents + sizes
    if len(stops) and stops[-1] > stop:
        contents, stops = contents[:-1], stops[:-1]
    tags.frombytes(np.full(len(stops), text[at], np.int64).tobytes())
    starts.frombytes(contents.tobytes())
    ends.frombytes(stops.tobytes())
    return int(stops[-1]) if len(stops) else at


def _loop_alike(buffer: Buffer, at: int, stop: int) -> Ints:
    """Find where these fields begin, one after the other; the last one may go beyond `stop`."""
    data = buffer.body
    room = buffer.start
    at -= room
    stop -= room + 3  # up to here, a tag and two bytes can be read
    tag = data[at]
    fields: list[int] = []
    append = fields.append
    for _ in range(_FIELDS_BETWEEN_CHECKS):
        if at >= stop or data[at] != tag:
            break
        append(at)
        size = data[at + 1]
        if size >= 0x80:
            more = data[at + 2]
            if more >= 0x80:
                fields.pop()
                break
            size += (more << 7) - (0x80 - 1)
        at += size + 2
    return np.array(fields, np.int64) + room


def _varint(buffer: Buffer, at: int) -> tuple[int, int]:
    """Read the varint at a place: its value, and the place after it."""
    data = buffer.raw()
    value = shift = 0
    for place in range(at, at + MAX_VARINT_BYTES):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
        shift += 7
    raise _malformed(buffer, at, "a varint has more than ten bytes")


def _malformed(buffer: Buffer, place: int, what: str) -> BadPayload:
    return BadPayload(f"malformed protobuf at byte {buffer.offset(place)}: {what}")
