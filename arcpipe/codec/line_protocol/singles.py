"""Lines of shapes that few other lines have -> columnar maps: numbers are cast all at once, the rest is done by line.

A line is taken only if it is certain to be good: its delimiters have a layout, its names are plain and there once, its
values look like those of their types, and their numbers can be cast. Other lines stay odd.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from arcpipe.codec.columns import (
    MAX_NAME_BYTES,
    TIME,
    array_header,
    map_header,
    pack_str,
    str_header,
)
from arcpipe.codec.effort import FREE_SHAPES, Effort
from arcpipe.codec.line_protocol.blocks import LineTable
from arcpipe.codec.line_protocol.encoding import NUMBER_BYTES, BadNumbers, cast_numbers, pack_numbers
from arcpipe.codec.line_protocol.grammar import Unit
from arcpipe.codec.line_protocol.looks import look_at
from arcpipe.codec.line_protocol.shapes import BOOL, FLOAT, INTEGER, NONE, TEXT, UNSIGNED, find_layout

MIN_SINGLES: Final = 24
"""Lines from which on this pays."""
_LEAST_SHARE: Final = 16  # one line in 16 of a piece: the search looks at all of its values

_LINES_BETWEEN_CHECKS: Final = 63  # a mask: `check` is called once per 64 lines, or 0.5 ms
_MOST_SINGLES: Final = (
    FREE_SHAPES  # lines of a piece; others stay odd: Python's garbage collector would visit all of them
)
_MOST_KEYS: Final = 256  # tags and fields of a line; others are odd
_EQUALS: Final = ord("=")
_TAG: Final = bytes([TEXT])
_HEADERS: Final = [str_header(size) for size in range(256)]
_HEADS: Final = [map_header(2 + more) + b"\xa1m" for more in range(3)]
_MAP_HEADERS: Final = [map_header(count) for count in range(_MOST_KEYS + 2)]
_TIME: Final = pack_str(TIME)
_TRUE: Final = frozenset((b"t", b"T", b"true", b"True", b"TRUE"))
_BOOLS: Final = {**dict.fromkeys(_TRUE, b"\xc3"), **dict.fromkeys((b"f", b"F", b"false", b"False", b"FALSE"), b"\xc2")}
_NUMBERS: Final = (FLOAT, INTEGER, UNSIGNED)


class _Line(NamedTuple):
    number: int
    cell: int  # the number of its first value


class _Group(NamedTuple):
    """Lines with the same delimiters, keys and types."""

    names: list[bytes]  # measurement, tags, fields; in MessagePack
    tags: int
    types: bytes
    timed: bool
    lines: list[_Line]


class _Cells(NamedTuple):
    """All values with a key of a piece, in their order."""

    starts: list[int]
    ends: list[int]
    looks: bytes
    empty: bytes


def are_many(table: LineTable) -> bool:
    """Tell whether there are as many lines in no block as pay for this."""
    count = int(np.count_nonzero(table.single))
    return count >= MIN_SINGLES and count * _LEAST_SHARE >= len(table.single)


class Singles:
    """The lines of a table that are in no block."""

    def __init__(self, table: LineTable, unit: Unit | None, effort: Effort) -> None:
        """Take the lines that are certain to be good: they are no longer odd."""
        self._table = table
        self._text = table.text.tobytes()
        self._groups: dict[tuple[bytes, ...], _Group | None] = {}
        lines = np.flatnonzero(table.single)[:_MOST_SINGLES]
        places = table.places
        kinds = table.kinds
        equals = np.flatnonzero(kinds == _EQUALS)
        starts, ends = places[equals] + 1, places[np.minimum(equals + 1, len(places) - 1)]
        looks = look_at(table.text, starts, ends)
        self._cells = _Cells(starts.tolist(), ends.tolist(), looks.tobytes(), (starts == ends).tobytes())
        self._starts, self._ends = starts, ends
        effort.check()
        self._types = bytearray(len(equals))  # of values of the lines that are taken
        first, last = table.first[lines], table.last[lines]
        self._times = np.stack((places[last - 1] + 1, places[last]))
        time_looks = look_at(table.text, *self._times).tolist()
        cells = np.searchsorted(equals, first).tolist()
        kinds_of = kinds.tobytes()
        begins = table.begins[lines].tolist()
        rows = zip(lines.tolist(), first.tolist(), last.tolist(), cells, time_looks, strict=True)
        self._at: dict[int, int] = {}  # by line: its number among `lines`
        for number, (line, begin, end, cell, time_look) in enumerate(rows):
            if not number & _LINES_BETWEEN_CHECKS:
                effort.check()
            separators, at = kinds_of[begin : end + 1], places[begin : end + 1].tolist()
            if self._take(line, begins[number], at, cell, separators, time_look, effort):
                self._at[line] = number
        self._cast(unit, effort)
        table.odd[list(self._at)] = False

    def _take(
        self,
        line: int,
        begin: int,
        places: list[int],
        cell: int,
        separators: bytes,
        time_look: int,
        effort: Effort,
    ) -> bool:
        """Take a line that begins at `begin`, if it is certain to be good."""
        table, text = self._table, self._text
        layout = find_layout(separators)
        if layout is None or (layout.timed and time_look != FLOAT):
            return False
        tags = layout.fields - layout.timed
        stop = cell + len(layout.slots)
        types = _TAG * tags + self._cells.looks[cell + tags : stop]
        if NONE in types or 1 in self._cells.empty[cell : cell + tags] or len(types) > _MOST_KEYS:
            return False
        if table.quotes is not None and table.quotes[line] != 2 * types.count(TEXT, tags):
            return False
        keys = [text[begin : places[0]]]
        keys += [text[places[slot - 1] + 1 : places[slot]] for slot in layout.slots]
        identity = (separators, types, *keys)
        if identity in self._groups:
            group = self._groups[identity]
        else:
            effort.add_shape()
            group = self._groups[identity] = _make_group(keys, tags, types, layout.timed)
        if group is None:
            return False
        if BOOL in types and not self._are_bools(cell, types):
            return False
        self._types[cell:stop] = types
        group.lines.append(_Line(line, cell))
        return True

    def _are_bools(self, cell: int, types: bytes) -> bool:
        return all(self._value(cell + at) in _BOOLS for at, type_ in enumerate(types) if type_ == BOOL)

    def _value(self, cell: int) -> bytes:
        return self._text[self._cells.starts[cell] : self._cells.ends[cell]]

    def _cast(self, unit: Unit | None, effort: Effort) -> None:
        """Cast all numbers; take back lines whose numbers cannot be cast."""
        types = np.frombuffer(self._types, np.uint8)
        packed = np.empty((len(types), NUMBER_BYTES), np.uint8)
        try:
            for type_ in _NUMBERS:
                at = np.flatnonzero(types == type_)
                if len(at):
                    ends = self._ends[at] - (type_ != FLOAT)
                    packed[at] = pack_numbers(cast_numbers(self._table, self._starts[at], ends, type_), type_).reshape(
                        -1, NUMBER_BYTES
                    )
            timed = [
                self._at[line.number]
                for group in self._groups.values()
                if group is not None and group.timed
                for line in group.lines
            ]
            self._packed_times = b""
            if timed:
                times = cast_numbers(self._table, self._times[0, timed], self._times[1, timed], INTEGER)
                if unit is not None and (int(times.max()) > unit.high or int(times.min()) < unit.low):
                    raise BadNumbers
                all_times = np.empty((self._times.shape[1], NUMBER_BYTES), np.uint8)
                all_times[timed] = pack_numbers(times, INTEGER).reshape(-1, NUMBER_BYTES)
                self._packed_times = all_times.tobytes()
        except BadNumbers:
            effort.take_back(len(self._groups))
            self._groups.clear()
            self._at.clear()
        self._packed = packed.tobytes()

    def encode(self, swallowed: npt.NDArray[np.bool_] | None, effort: Effort) -> list[tuple[bytes, int]]:
        """Make columnar maps, each with the number of its rows, of lines that are not `swallowed` by strings."""
        maps = []
        for number, group in enumerate(self._groups.values()):
            if not number & _LINES_BETWEEN_CHECKS:
                effort.check()
            if group is None:
                continue
            lines = group.lines if swallowed is None else [line for line in group.lines if not swallowed[line.number]]
            if lines:
                maps.append((self._encode_group(group, lines), len(lines)))
        return maps

    def _encode_group(self, group: _Group, lines: list[_Line]) -> bytes:
        names, types, tags = group.names, group.types, group.tags
        header = array_header(len(lines))
        is_unsigned = UNSIGNED in types
        parts = [_HEADS[(tags > 0) + is_unsigned], names[0], b"\xa7columns", _MAP_HEADERS[len(types) + group.timed]]
        if group.timed:
            parts += (_TIME, header)
            for line in lines:
                at = NUMBER_BYTES * self._at[line.number]
                parts.append(self._packed_times[at : at + NUMBER_BYTES])
        for column, type_ in enumerate(types):
            parts += (names[column + 1], header)
            for line in lines:
                cell = line.cell + column
                if type_ <= UNSIGNED:
                    parts.append(self._packed[NUMBER_BYTES * cell : NUMBER_BYTES * (cell + 1)])
                elif type_ == BOOL:
                    parts.append(_BOOLS[self._value(cell)])
                else:
                    value = self._value(cell)
                    value = value[1:-1] if column >= tags else value
                    parts += (_HEADERS[len(value)] if len(value) < 256 else str_header(len(value)), value)
        if tags:
            parts += (b"\xa4tags", array_header(tags), *names[1 : tags + 1])
        if is_unsigned:
            unsigned = [name for name, type_ in zip(names[1:], types, strict=True) if type_ == UNSIGNED]
            parts += (b"\xa5types", map_header(len(unsigned)))
            for name in unsigned:
                parts += (name, b"\xa3u64")
        return b"".join(parts)


def _make_group(keys: list[bytes], tags: int, types: bytes, timed: bool) -> _Group | None:
    """Make a group of lines with these keys; None if a name is not plain, or there twice."""
    text = b"".join(keys)
    columns = set(keys[1:])
    sizes = list(map(len, keys))
    if (
        not text.isascii()
        or not text.decode().isprintable()
        or max(sizes) >= MAX_NAME_BYTES
        or 0 in sizes
        or len(columns) < len(types)
        or TIME.encode() in columns
    ):
        return None
    return _Group([_HEADERS[size] + key for size, key in zip(sizes, keys, strict=True)], tags, types, timed, [])
