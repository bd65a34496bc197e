"""Find the columns of many small entries at once, by the outline of one of them.

Entries of one shape differ in their values alone. The bytes before, between and after these are the outline. An entry
has it if it is those bytes and, between them, as many values as the outline has rows: then msgspec would find the same
columns in it. All entries are walked in lockstep, one vector step per value, so an entry costs a fraction of its
decoding. The proof covers every byte; an entry that does not pass it is left to others.

This module must not know tables, files or threads.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from arcpipe.codec.arrow.find import HAS_8, SIZE_OR_8
from arcpipe.codec.arrow.values import VALUE_SIZE, Bytes, Ints, Mask
from arcpipe.codec.entries import array_length
from arcpipe.codec.envelope import ColumnMap, decode_envelope
from arcpipe.codec.literals import Literal, Words, words_of

PADDING: Final = 8_192
"""Bytes of zeros after the payloads: more than an outline and a value may reach beyond the end of an entry."""
_MOST_ROWS: Final = 64  # of an entry: each value is a step

_NO_RAW: Final = msgspec.Raw(b"")


class Block:
    """The payloads of small entries."""

    __slots__ = ("data", "ends", "sizes", "starts", "words")

    def __init__(self, data: bytes, starts: Ints, sizes: Ints) -> None:
        """Take payloads that follow one another in `data`, before `PADDING` zeros. There may be bytes between them."""
        self.data: Bytes = np.frombuffer(data, np.uint8)
        self.words = words_of(data)
        self.starts = starts
        self.sizes = sizes
        self.ends: Ints = starts + sizes

    def payload(self, number: int) -> bytes:
        return self.data[self.starts[number] : self.ends[number]].tobytes()


class Places(NamedTuple):
    """The values of entries: for each column, where they begin and end in the block."""

    numbers: Ints  # of the entries in the block, ascending
    starts: list[Ints]
    ends: list[Ints]

    def chosen(self, which: Mask) -> Places:
        """Return those of some of the entries."""
        return Places(self.numbers[which], [each[which] for each in self.starts], [each[which] for each in self.ends])


class Outline:
    """The bodies of entries that have the same columns, and as many rows."""

    __slots__ = ("_hint", "_hint_at", "_literals", "columns", "least", "rows")

    def __init__(self, columns: ColumnMap, rows: int, literals: list[bytes]) -> None:
        """Take an example, its rows, and the bytes before, between and after its columns' values."""
        self.columns = columns
        self.rows = rows
        self.least = (len(literals) - 1) * (_STEPS_PER_COLUMN + rows)
        """Entries from which on a walk costs less than their decoding."""
        self._literals = list(map(Literal, literals))
        # The end of the measurement's name differs most among the outlines of a block.
        name = columns.m.encode()
        first = literals[0]
        self._hint_at = min(max(first.find(name) + len(name) - 8, 0), max(len(first) - 8, 0))
        self._hint = Literal(first[self._hint_at : self._hint_at + 8])

    def may_be_at(self, words: Words, bodies: Ints) -> Mask:
        """Tell quickly which of these bodies may have the outline."""
        return self._hint.are_at(words, bodies + self._hint_at)

    def find(self, block: Block, numbers: Ints, bodies: Ints) -> Places:
        """Find the values of those entries that have the outline.

        Args:
            numbers: those of the entries in the block.
            bodies: where their bodies begin.
        """
        ends = block.ends[numbers]
        at = bodies
        right = self._literals[0].are_at(block.words, at)
        places = Places(numbers, [], [])
        for before, after in zip(self._literals[:-1], self._literals[1:], strict=True):
            at = at + before.size
            places.starts.append(at)
            at, known = _skip(block.data, at, self.rows)
            if known is not None:
                right &= known
            over = at > ends
            if over.any():
                right &= ~over
                at = np.minimum(at, ends)
            places.ends.append(at)
            right &= after.are_at(block.words, at)
        right &= at + self._literals[-1].size == ends
        return places if right.all() else places.chosen(right)


# The fixed steps for a column, as many times as long as the step for a value.
_STEPS_PER_COLUMN: Final = 8


def outline_of(payload: bytes, body: int) -> Outline | None:
    """Make the outline of a columnar entry whose body begins at `body`; None if it would not pay."""
    try:
        columns = decode_envelope(payload).body
    except Exception:  # whoever decodes it next finds out the reason
        return None
    if columns.__class__ is not ColumnMap or not columns.columns:
        return None
    base = address_of(payload)
    rows = 0
    literals = []
    at = body
    for raw in columns.columns.values():
        column = bytes(memoryview(raw))
        if column[0] & 0xF0 != 0x90 and column[0] != 0xDC:
            return None
        count, header = array_length(column)
        rows = rows or count
        start = address_of(raw) - base
        if count != rows or not 0 < count <= _MOST_ROWS or start < at:
            return None
        literals.append(payload[at : start + header])
        at = start + len(column)
    literals.append(payload[at:])
    # Own copies, because those of msgspec are views into the payload.
    names = dict.fromkeys(columns.columns, _NO_RAW)
    return Outline(ColumnMap(columns.m, names, columns.tags, columns.types), rows, literals)


def address_of(data: Any) -> int:
    """Return where bytes are in memory."""
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


def _skip(data: Bytes, at: Ints, rows: int) -> tuple[Ints, Mask | None]:
    """Step over `rows` values at each of these places.

    Returns:
        The places after them, and where all sizes are known; None if they are everywhere.
    """
    markers = data.take(at, mode="clip")
    first = markers[0]
    size = int(VALUE_SIZE[first])
    if size and (markers == first).all():
        if rows == 1:
            return at + size, None
        if all((data.take(at + size * row, mode="clip") == first).all() for row in range(1, rows)):
            return at + size * rows, None
    known: Mask | None = None
    for row in range(rows):
        if row:
            markers = data.take(at, mode="clip")
        sizes = VALUE_SIZE.take(markers)
        if not sizes.all():
            sizes = SIZE_OR_8.take(markers)
            if not sizes.all():
                known = sizes > 0 if known is None else known & (sizes > 0)
            sizes += HAS_8.take(markers) * data.take(at + 1, mode="clip")
        at = at + sizes
    return at, known
