"""Line protocol, by column: many lines of few shapes at the cost of a few numpy calls per column, not per value.

One pass finds every delimiter of a piece of the body, and drops those within quoted strings. Then lines are sorted into
blocks. The first line of a block is its template. Every other line is proven to have the same delimiters, and values
that look like those of the same types. Comparing words of eight bytes proves that measurement and keys are the same.
So a block is a matrix of places in the text. Arrow casts the numbers from there, all of one type in all blocks at once.
The MessagePack header of a text is written over the delimiter before it; then texts are gathered, header and all.

A shape is known by the look of its lines, once a block of them was made; its proof is the same. Lines of shapes that
few others have are read by line, apart from their numbers (`singles`).

Unusual lines (escapes in strings, control characters, quotes elsewhere, numbers that do not cast) are left to the line
reader, which alone knows errors. So this path takes less than the grammar, and never decides that a line is bad.

Layouts and shapes are in `shapes`, the table of a piece and its blocks in `blocks`, casting and MessagePack in
`encoding`. What is hidden while delimiters are searched is in `hidden`. All of them must not know errors, or how the
line reader works.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from arcpipe.codec.columns import Maps
from arcpipe.codec.effort import Effort
from arcpipe.codec.line_protocol.blocks import LineTable, Mask
from arcpipe.codec.line_protocol.encoding import UnusualLines, encode_blocks
from arcpipe.codec.line_protocol.grammar import Escapes, Unit
from arcpipe.codec.line_protocol.singles import Singles, are_many


class LeftoverReader(Protocol):
    """Reader of the lines that are left over, in order."""

    def read(self, pos: int, stop: int) -> int:
        """Read the line that begins at `pos` in the body and ends before `stop`; return the offset after it."""


def read_piece(
    body: bytes,
    start: int,
    end: int,
    reader: LeftoverReader,
    effort: Effort,
    maps: Maps,
    escapes: Escapes,
    unit: Unit | None,
) -> int:
    """Read the lines from `start` to `end`, which is after a newline or at the end of the body.

    Adds the columnar maps of those that are not left to `reader` to `maps`. Returns the offset after what was read,
    which is after `end` if the reader found that a string goes on there.
    """
    piece = body[start:end]
    if not piece.isascii():
        try:
            piece.decode()
        except UnicodeDecodeError:
            return reader.read(start, end)
    table = LineTable(piece, escapes, effort)
    effort.check()
    blocks = table.blocks(effort)
    singles = None
    if are_many(table):
        effort.check()
        singles = Singles(table, unit, effort)
    while True:
        effort.check()
        try:
            encoded = encode_blocks(table, blocks, unit)
            break
        except UnusualLines as odd:
            table.odd[odd.args[0]] = True
            blocks = [block.without(table.odd) for block in blocks]
    pos, swallowed = _read_odd(table, start, end, reader)
    if swallowed is not None:
        blocks = [block.without(swallowed) for block in blocks]
        encoded = encode_blocks(table, blocks, unit)
    if singles is not None:
        encoded += singles.encode(swallowed, effort)
    for columnar, records in encoded:
        maps.add(columnar, records)
    return pos


def _read_odd(table: LineTable, start: int, end: int, reader: LeftoverReader) -> tuple[int, Mask | None]:
    """Have the odd lines read; return the offset after what was read, and which other lines are part of them."""
    lines = np.flatnonzero(table.odd)
    if not len(lines):
        return end, None
    swallowed: Mask | None = None
    pos = start
    ends = table.find_line_ends()
    ends += start
    for line in lines.tolist():
        line_start = int(ends[line - 1]) if line else start
        if line_start < pos:
            continue
        line_end = int(ends[line])
        pos = reader.read(line_start, line_end)
        if pos > line_end:
            if swallowed is None:
                swallowed = np.zeros(len(table.odd), np.bool_)
            swallowed[line + 1 : int(np.searchsorted(ends, pos, side="right"))] = True
    return max(pos, end), swallowed
