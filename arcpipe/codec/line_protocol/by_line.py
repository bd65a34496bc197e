"""Line protocol, line by line: the reference path, which takes every line and knows what is wrong with a bad one.

The grammar is that of `arcpipe.codec.line_protocol`. This module must not know the other path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from struct import Struct
from typing import Any, Final, NamedTuple

import numpy as np

from arcpipe.codec.columns import (
    MAX_COLUMNS,
    TIME,
    ColumnBatch,
    Maps,
    array_header,
    check_column_name,
    check_measurement,
    field_column_names,
    pack_float64,
    pack_int64,
    pack_str,
    pack_uint64,
    pack_values,
    quote,
)
from arcpipe.codec.effort import FREE_SHAPES, Effort
from arcpipe.codec.line_protocol.grammar import (
    BETWEEN,
    BLANKS,
    FALSE,
    FIELD,
    FLOAT,
    GAP,
    INFINITE,
    INTEGER,
    MEASUREMENT,
    OPEN_FIELD,
    SPACES,
    TAG,
    TAIL,
    TEXT,
    TRUE,
    UNSIGNED,
    WINDOW,
    BadLine,
    BadText,
    bad_field,
    bad_series,
    bad_tail,
    count_characters,
    count_newlines,
    end_of,
    find_bad_utf8,
    infinite,
    pass_spaces,
    skip_line,
    to_integer,
    to_time,
    unescaped_key,
    unescaped_measurement,
    unescaped_text,
)
from arcpipe.codec.line_protocol.long_lines import TOO_MANY, LongLine
from arcpipe.errors import BadPayload

MAX_ERRORS: Final = 100
"""Bad lines that are reported one by one; the others are counted."""

MAX_TEXT: Final = 256
"""Characters of a bad line that are reported."""

_PRINTED_BYTES: Final = 4 * MAX_TEXT + 4


class LineError(NamedTuple):
    """A line of which nothing was written.

    `line` counts physical lines from 1; that of a point with a newline in a string is the one it begins in. `reason`
    says what is wrong; columns in it count characters from 1. `text` is the line, printable, at most `MAX_TEXT`
    characters.
    """

    line: int
    reason: str
    text: str


class Report:
    """Collects the bad lines of a body, which must come in order."""

    __slots__ = ("_at", "_body", "_line", "errors", "more_errors")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._line = 1
        self.errors: list[LineError] = []
        self.more_errors = 0

    def add(self, start: int, end: int, error: BadLine) -> None:
        """The line from `start` to `end` is bad."""
        if len(self.errors) == MAX_ERRORS:
            self.more_errors += 1
            return
        self._line += count_newlines(self._body, self._at, start)
        self._at = start
        reason, at = error.args
        if at is not None:
            later_lines = count_newlines(self._body, start, at)
            line_start = (
                self._body.rfind(b"\n", start, at) + 1 if later_lines else self._body.rfind(b"\n", 0, start) + 1
            )
            column = count_characters(self._body, line_start, at) + 1
            reason = f"{reason} at column {column}"
            if later_lines:
                reason = f"{reason} of line {self._line + later_lines}"
        self.errors.append(
            LineError(self._line, reason, printable(self._body[start : min(end, start + _PRINTED_BYTES)]))
        )


def printable(line: bytes) -> str:
    """A line for an error: at most `MAX_TEXT` characters of it, none of which does anything to a terminal."""
    text = line[:_PRINTED_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")
    if not text.isprintable():
        text = "".join([char if char.isprintable() else _escape_char(char) for char in text[: MAX_TEXT + 1]])
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _escape_char(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


_INTEGERS: Final = (INTEGER, UNSIGNED)
# Lines, less one, after which others are given way to: of the usual length they take 0.2 ms.
_LINES_BETWEEN_CHECKS: Final = 31


class _Group:
    """Rows of one shape, whose values are in the order of the columns of `names`."""

    __slots__ = ("has_long", "names", "rows")

    def __init__(self, names: _Names) -> None:
        self.names = names
        self.rows: list[Sequence[Any]] = []
        self.has_long = False
        """Whether there are texts among them that are `bytes` in MessagePack."""

    def batch(self) -> ColumnBatch:
        columns: dict[str, bytes] = {}
        types: dict[str, str] = {}
        for (name, type_), values in zip(self.names.columns, zip(*self.rows, strict=True), strict=True):
            if self.has_long and type_ == TEXT:
                columns[name] = _pack_long(values)
            else:
                columns[name] = _pack(type_, values)
            if type_ == UNSIGNED:
                types[name] = "u64"
        return ColumnBatch(self.names.measurement, columns, len(self.rows), list(self.names.tags), types)


_FEW_ROWS: Final = 24
"""So few numbers are packed one by one: an array of them costs more."""

_PACK_ONE: Final[dict[int, Callable[[Any], bytes]]] = {
    FLOAT: partial(Struct(">Bd").pack, 0xCB),
    INTEGER: partial(Struct(">Bq").pack, 0xD3),
    UNSIGNED: partial(Struct(">BQ").pack, 0xCF),
}
_PACK: Final[dict[int, Callable[[Any], bytes]]] = {
    FLOAT: lambda values: pack_float64(np.array(values, np.float64)),
    INTEGER: lambda values: pack_int64(np.array(values, np.int64)),
    UNSIGNED: lambda values: pack_uint64(np.array(values, np.uint64)),
    TEXT: pack_values,
    TRUE: pack_values,
}


def _pack(type_: int, values: Sequence[Any]) -> bytes:
    """Values of a column as a MessagePack array; those of a number type all have 9 bytes."""
    if len(values) <= _FEW_ROWS and type_ in _PACK_ONE:
        return b"".join((array_header(len(values)), *map(_PACK_ONE[type_], values)))
    return _PACK[type_](values)


def _pack_long(values: Sequence[str | bytes]) -> bytes:
    """Texts as a MessagePack array; those that are `bytes` are in MessagePack already."""
    packed = [pack_str(value) if isinstance(value, str) else value for value in values]
    return b"".join((array_header(len(values)), *packed))


class _Shape(NamedTuple):
    """How the values of a line with these very keys, as they are read, become a row of a group; or why they do not."""

    group: _Group | None
    take: Callable[[Sequence[Any]], Sequence[Any]]
    bad: str = ""


class LineReader:
    """Reads lines of a body and gathers their rows by shape, for `maps`; bad lines go to `report`."""

    def __init__(self, body: bytes, report: Report, effort: Effort, maps: Maps) -> None:
        self._body = body
        self._maps = maps
        self._report = report
        self._effort = effort
        self._lines = 0
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._groups: dict[tuple[Any, ...], _Group] = {}

    def flush(self) -> None:
        """Make columnar maps of the rows that were read since the last call, by shape."""
        for group in self._groups.values():
            if group.rows:
                self._effort.check()
                self._maps.add(group.batch().encode(), len(group.rows))
        self._groups.clear()
        self._shapes.clear()

    def _add_shape(self, key: tuple[Any, ...]) -> _Shape:
        self._effort.add_shape()
        if len(self._shapes) >= FREE_SHAPES:  # the collector of Python would look at all of them again and again
            self.flush()
        shape = self._shapes[key] = _make_shape(key, self._groups)
        return shape

    def read(self, pos: int, stop: int) -> int:
        """Read the points that begin from `pos` on and before `stop`: the offset behind the last of them.

        A line must begin at `pos`, and one must end in front of `stop`. One begins at the offset that is given, which
        is behind `stop` if the last point has a newline there.

        Raises:
            PayloadTooLarge, BadPayload: there are too many shapes or bad lines.
        """
        if stop - pos <= WINDOW:
            return min(self._read_window(pos, stop), len(self._body))
        body = self._body
        while stop - pos > WINDOW:
            end = body.rfind(b"\n", pos, pos + WINDOW) + 1
            pos = self._read_window(pos, end) if end else self._read_long(pos)
        return min(self._read_window(pos, stop), len(body))

    def _read_window(self, pos: int, stop: int) -> int:
        """As `read`, of at most `WINDOW` bytes. Their strings may go on behind `stop`."""
        body = self._body
        shapes = self._shapes
        size = len(body)
        # Up to where strings are looked for in the usual way: behind a newline, or the end of the body.
        limit = size if size - stop <= WINDOW else body.rfind(b"\n", stop, stop + WINDOW) + 1 or stop
        while pos < stop:
            self._lines += 1
            if not self._lines & _LINES_BETWEEN_CHECKS:
                self._effort.check()
            pos = start = end_of(BETWEEN(body, pos, stop))
            if pos == stop:
                break
            try:
                found = MEASUREMENT(body, pos)
                if found is None:
                    raise BadLine("measurement is missing", pos)
                key: list[Any] = [found[0]]
                row: list[Any] = []
                pos = found.end()
                while (found := TAG(body, pos)) is not None:
                    tag, value = found.groups()
                    key.append(tag)
                    if b"\\" in value:
                        value = unescaped_key(value)
                    row.append(value.decode())
                    pos = found.end()
                    if len(row) >= MAX_COLUMNS:
                        raise BadLine(TOO_MANY, None)
                found = GAP(body, pos)
                if found is None:
                    raise bad_series(body, pos)
                pos = found.end()
                key.append(None)
                comma = True
                while comma:
                    found = FIELD(body, pos, limit)
                    if found is None:
                        if limit < size and OPEN_FIELD(body, pos, limit):
                            raise _Cut
                        raise bad_field(body, pos)
                    type_ = found.lastindex
                    key += (found[1], type_ if type_ != FALSE else TRUE)
                    if type_ == FLOAT:
                        row.append(number := float(found[type_]))
                        if number in INFINITE:
                            raise infinite(found)
                    elif type_ in _INTEGERS:
                        row.append(to_integer(found, type_))
                    elif type_ == TEXT:
                        text = found[type_]
                        row.append((unescaped_text(text) if b"\\" in text else text).decode())
                    else:
                        row.append(type_ == TRUE)
                    pos = found.end()
                    comma = body[pos : pos + 1] == b","
                    pos += comma
                    if len(row) >= MAX_COLUMNS:
                        raise BadLine(TOO_MANY, None)
                found = TAIL(body, pos)
                if found is None:
                    raise bad_tail(body, pos)
                time = found[1]
                if time is not None:
                    row.append(to_time(found, 1))
                    key.append(None)
                shape = shapes.get(shape_key := tuple(key))
                if shape is None:
                    shape = self._add_shape(shape_key)
                if shape.group is None:
                    raise BadLine(shape.bad, None)
                shape.group.rows.append(shape.take(row))
                pos = found.end()
            except (BadLine, BadText, UnicodeDecodeError) as error:
                pos = self._refuse(start, pos, error)
            except _Cut:
                pos = self._read_long(start)
        return pos

    def _read_long(self, pos: int) -> int:
        """Read the point that begins in the line at `pos`, which is longer than a window, or has such a string."""
        body = self._body
        self._effort.check()
        end = pass_spaces(body, pos, SPACES)
        if body[end : end + 1] in (b"\n", b"#", b""):
            return body.find(b"\n", end) + 1 or len(body)
        start = pass_spaces(body, pos, BLANKS)
        line = LongLine(body, start, self._effort.check)
        try:
            line.read()
            self._add(line.key, line.row, is_long=True)
        except (BadLine, BadText, UnicodeDecodeError) as error:
            return self._refuse(start, line.pos, error)
        return line.end

    def _add(self, key: list[Any], row: list[Any], *, is_long: bool) -> None:
        shape = self._shapes.get(shape_key := tuple(key))
        if shape is None:
            shape = self._add_shape(shape_key)
        if shape.group is None:
            raise BadLine(shape.bad, None)
        shape.group.rows.append(shape.take(row))
        shape.group.has_long |= is_long

    def _refuse(self, start: int, pos: int, error: BadLine | BadText | UnicodeDecodeError) -> int:
        """Report the line that begins at `start` and is bad at `pos`, or behind: the offset behind it."""
        check = self._effort.check
        end = skip_line(self._body, start, pos, check)
        self._effort.add_bad_line()
        if not isinstance(error, BadLine):
            error = BadLine("invalid UTF-8", find_bad_utf8(self._body, start, end, check))
        self._report.add(start, end, error)
        return end + 1


class _Cut(Exception):
    """A string goes on behind where strings are looked for."""


class _Names(NamedTuple):
    """What the keys of a line say: where in a row, as it is read, the value of each tag and field is, and the time.

    `identity` is the same for all lines with the same ones in any order.
    """

    measurement: str
    tags: dict[str, int]
    fields: dict[str, int]
    time: int | None
    columns: list[tuple[str, int]]
    identity: tuple[Any, ...]

    def take_as(self, other: _Names) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """Takes a row as it is read into the order of the columns of `other`, which has the same identity."""
        places = [] if self.time is None else [self.time]
        places += [self.tags[tag] for tag in other.tags]
        places += [self.fields[field] for field in other.fields]
        return itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)


def _make_shape(key: tuple[Any, ...], groups: dict[tuple[Any, ...], _Group]) -> _Shape:
    """The shape of lines with these raw keys: the group of all lines with the same ones in any order, or why not."""
    try:
        names = _remember_names(key) if len(key) <= _USUAL_KEYS else _read_names(key)
    except BadPayload as error:
        return _Shape(None, tuple, str(error))
    group = groups.get(names.identity)
    if group is None:
        group = groups[names.identity] = _Group(names)
    return _Shape(group, names.take_as(group.names))


def _read_names(key: tuple[Any, ...]) -> _Names:
    """Raises BadPayload if a name is not allowed, or a tag is there twice."""
    between = key.index(None)
    timed = key[-1] is None
    pairs = key[between + 1 : len(key) - timed]
    measurement = _decoded("measurement", unescaped_measurement(key[0]))
    check_measurement(measurement)
    tags = {_column_name("tag", raw): at for at, raw in enumerate(key[1:between])}
    fields = {_column_name("field", raw): between - 1 + at for at, raw in enumerate(pairs[::2])}
    if len(tags) < between - 1:
        raise BadPayload(f"tag {_repeated(key[1:between])} is there twice")
    types = {field: pairs[2 * (at - between + 1) + 1] for field, at in fields.items()}
    columns = [(TIME, INTEGER)] if timed else []
    columns += [(tag, TEXT) for tag in tags]
    columns += zip(field_column_names(tags, types), types.values(), strict=True)
    identity = (measurement, timed, frozenset(tags), frozenset(types.items()))
    return _Names(measurement, tags, fields, between - 1 + len(pairs) // 2 if timed else None, columns, identity)


# Clients send the same shapes over and over. Of 32 keys, 256 take 4 MB at most.
_USUAL_KEYS: Final = 64
_remember_names: Final = lru_cache(maxsize=256)(_read_names)


def _repeated(raws: Sequence[bytes]) -> str:
    counts = Counter(_column_name("tag", raw) for raw in raws)
    return quote(counts.most_common(1)[0][0])


def _column_name(what: str, raw: bytes) -> str:
    name = _decoded(f"{what} name", unescaped_key(raw) if b"\\" in raw else raw)
    check_column_name(name, what)
    if name == TIME:
        raise BadPayload(f"a {what} cannot be called 'time', which is the timestamp")
    return name


def _decoded(what: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{what} {quote(raw)} is not valid UTF-8") from None
