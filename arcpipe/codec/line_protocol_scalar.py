"""Line protocol, line by line: the reference path, which takes every line and knows what is wrong with a bad one.

The grammar is that of `arcpipe.codec.line_protocol`. This module must not know the other path.
"""

from __future__ import annotations

import re
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
    array_header,
    check_column_name,
    check_measurement,
    field_column_names,
    pack_float64,
    pack_int64,
    pack_uint64,
    pack_values,
    quote,
)
from arcpipe.codec.effort import Effort
from arcpipe.errors import BadPayload

MAX_ERRORS: Final = 100
"""Bad lines that are reported one by one; the others are counted."""

MAX_TEXT: Final = 256
"""Characters of a bad line that are reported."""


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
        self._line += self._body.count(b"\n", self._at, start)
        self._at = start
        reason, at = error.args
        if at is not None:
            later_lines = self._body.count(b"\n", start, at)
            line_start = (
                self._body.rfind(b"\n", start, at) + 1 if later_lines else self._body.rfind(b"\n", 0, start) + 1
            )
            column = len(self._body[line_start:at].decode("utf-8", "replace")) + 1
            reason = f"{reason} at column {column}"
            if later_lines:
                reason = f"{reason} of line {self._line + later_lines}"
        self.errors.append(LineError(self._line, reason, printable(self._body[start:end])))


def printable(line: bytes) -> str:
    """A line for an error: at most `MAX_TEXT` characters of it, none of which does anything to a terminal."""
    text = line[: 4 * MAX_TEXT + 4].decode("utf-8", "backslashreplace").rstrip("\r\n")
    if not text.isprintable():
        text = "".join([char if char.isprintable() else _escape_char(char) for char in text[: MAX_TEXT + 1]])
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _escape_char(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class BadLine(Exception):
    """`args` are the reason and the offset in the body of what is wrong, or None where that says nothing."""


# The grammar. Everything is possessive: no expression ever goes back, so each is linear in what it passes, and none
# but that of strings passes a newline. A string ends at the next quote without a backslash, and no quote after `=` has
# one; so no two strings that are tried reach over one another, and all of them together are linear in the body.

_ESCAPED = rb"\\[^\n]?+"
_MEASUREMENT = re.compile(rb"(?:[^\\, \n]++|" + _ESCAPED + rb")++").match
_KEY = rb"(?:[^\\,= \n]++|" + _ESCAPED + rb")++"
_NAME = re.compile(_KEY).match
_TAG = re.compile(rb",(" + _KEY + rb")=(" + _KEY + rb")(?=[, ])").match
_STRING = rb'"((?:[^"\\]++|\\(?s:.))*+)"'
_AFTER = rb"(?=[, \t\r\n]|\Z)"
_FLOAT, _INTEGER, _UNSIGNED, _TEXT, _TRUE, _FALSE = range(2, 8)  # groups of a field, by which its type is known
_FIELD = re.compile(
    rb"(" + _KEY + rb")="
    rb"(?:(-?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+)"
    rb"|(-?+[0-9]++)i|([0-9]++)u|" + _STRING + rb"|(t(?:rue)?+|T(?:rue|RUE)?+)|(f(?:alse)?+|F(?:alse|ALSE)?+))" + _AFTER
).match
_GAP = re.compile(rb" [ \t]*+").match
_TAIL = re.compile(rb"(?: [ \t]*+(-?+[0-9]++))?+[ \t\r]*+(?:\n|\Z)").match

# What is no point: blank lines, comments, and the whitespace before a point.
_BETWEEN = re.compile(rb"(?:[ \t\r]*+(?:#[^\n]*+)?+\n)*+[ \t]*+(?:[ \t\r]*+(?:#[^\n]*+)?+\Z)?+").match

# The rest of a bad line: to the end of its measurement and tags; and from there to the newline outside of strings.
_SERIES = re.compile(rb"(?:[^\\ \n]++|" + _ESCAPED + rb")*+").match
_REST = re.compile(rb'(?:[^"\n]++|(?<==)' + _STRING + _AFTER + rb'|")*+').match
_SPACES = re.compile(rb"[ \t\r]*+").match
_IS_INTEGER = re.compile(rb"-?[0-9]++\Z").match
_TOKEN = re.compile(rb"[^, \t\r\n]*+").match
_OPEN_STRING = re.compile(rb'"(?:[^"\\]++|\\(?s:.))*+("?+)').match


_MAX_DIGITS = 18  # any integer of so many digits has 64 bits
_TOO_MANY = f"more than {MAX_COLUMNS - 1} tags and fields"
_INFINITE = (float("inf"), float("-inf"))


# Lines, less one, after which others are given way to: of the usual length they take 0.2 ms.
_LINES_BETWEEN_CHECKS: Final = 31


class _Group:
    """Rows of one shape, whose values are in the order of the columns of `names`."""

    __slots__ = ("names", "rows")

    def __init__(self, names: _Names) -> None:
        self.names = names
        self.rows: list[Sequence[Any]] = []

    def batch(self) -> ColumnBatch:
        columns: dict[str, bytes] = {}
        types: dict[str, str] = {}
        for (name, type_), values in zip(self.names.columns, zip(*self.rows, strict=True), strict=True):
            columns[name] = _pack(type_, values)
            if type_ == _UNSIGNED:
                types[name] = "u64"
        return ColumnBatch(self.names.measurement, columns, len(self.rows), list(self.names.tags), types)


_FEW_ROWS: Final = 24
"""So few numbers are packed one by one: an array of them costs more."""

_PACK_ONE: Final[dict[int, Callable[[Any], bytes]]] = {
    _FLOAT: partial(Struct(">Bd").pack, 0xCB),
    _INTEGER: partial(Struct(">Bq").pack, 0xD3),
    _UNSIGNED: partial(Struct(">BQ").pack, 0xCF),
}
_PACK: Final[dict[int, Callable[[Any], bytes]]] = {
    _FLOAT: lambda values: pack_float64(np.array(values, np.float64)),
    _INTEGER: lambda values: pack_int64(np.array(values, np.int64)),
    _UNSIGNED: lambda values: pack_uint64(np.array(values, np.uint64)),
    _TEXT: pack_values,
    _TRUE: pack_values,
}


def _pack(type_: int, values: Sequence[Any]) -> bytes:
    """Values of a column as a MessagePack array; those of a number type all have 9 bytes."""
    if len(values) <= _FEW_ROWS and type_ in _PACK_ONE:
        return b"".join((array_header(len(values)), *map(_PACK_ONE[type_], values)))
    return _PACK[type_](values)


class _Shape(NamedTuple):
    """How the values of a line with these very keys, as they are read, become a row of a group; or why they do not."""

    group: _Group | None
    take: Callable[[Sequence[Any]], Sequence[Any]]
    bad: str = ""


class LineReader:
    """Reads lines of a body and gathers their rows by shape; bad lines go to `report`."""

    def __init__(self, body: bytes, report: Report, effort: Effort) -> None:
        self._body = body
        self._report = report
        self._effort = effort
        self._lines = 0
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._groups: dict[tuple[Any, ...], _Group] = {}

    def take(self) -> list[ColumnBatch]:
        """The rows that were read since the last call, by shape."""
        batches = [group.batch() for group in self._groups.values() if group.rows]
        self._groups.clear()
        self._shapes.clear()
        return batches

    def read(self, pos: int, stop: int) -> int:
        """Read the points that begin from `pos` on and before `stop`: the offset behind the last of them.

        A line must begin at `pos`, and one must end in front of `stop`. One begins at the offset that is given, which
        is behind `stop` if the last point has a newline there.

        Raises:
            PayloadTooLarge, BadPayload: there are too many shapes or bad lines.
        """
        body = self._body
        shapes = self._shapes
        while pos < stop:
            self._lines += 1
            if not self._lines & _LINES_BETWEEN_CHECKS:
                self._effort.check()
            pos = start = _end(_BETWEEN(body, pos, stop))
            if pos == stop:
                break
            try:
                found = _MEASUREMENT(body, pos)
                if found is None:
                    raise BadLine("measurement is missing", pos)
                key: list[Any] = [found[0]]
                row: list[Any] = []
                pos = found.end()
                while (found := _TAG(body, pos)) is not None:
                    tag, value = found.groups()
                    key.append(tag)
                    if b"\\" in value:
                        value = _unescaped_key(value)
                    row.append(value.decode())
                    pos = found.end()
                    if len(row) >= MAX_COLUMNS:
                        raise BadLine(_TOO_MANY, None)
                found = _GAP(body, pos)
                if found is None:
                    raise _bad_series(body, pos)
                pos = found.end()
                key.append(None)
                comma = True
                while comma:
                    found = _FIELD(body, pos)
                    if found is None:
                        raise _bad_field(body, pos)
                    type_ = found.lastindex
                    key += (found[1], type_ if type_ != _FALSE else _TRUE)
                    if type_ == _FLOAT:
                        row.append(number := float(found[type_]))
                        if number in _INFINITE:
                            raise BadLine(f"{_of(found)} is too large for a float", found.start(type_))
                    elif type_ == _INTEGER:
                        row.append(_integer(found, type_, -(1 << 63), (1 << 63) - 1))
                    elif type_ == _UNSIGNED:
                        row.append(_integer(found, type_, 0, (1 << 64) - 1))
                    elif type_ == _TEXT:
                        text = found[type_]
                        row.append((_unescaped_text(text) if b"\\" in text else text).decode())
                    else:
                        row.append(type_ == _TRUE)
                    pos = found.end()
                    comma = body[pos : pos + 1] == b","
                    pos += comma
                    if len(row) >= MAX_COLUMNS:
                        raise BadLine(_TOO_MANY, None)
                found = _TAIL(body, pos)
                if found is None:
                    raise _bad_tail(body, pos)
                time = found[1]
                if time is not None:
                    row.append(_timestamp(found))
                    key.append(None)
                shape = shapes.get(shape_key := tuple(key))
                if shape is None:
                    self._effort.add_shape()
                    shape = shapes[shape_key] = _make_shape(shape_key, self._groups)
                if shape.group is None:
                    raise BadLine(shape.bad, None)
                shape.group.rows.append(shape.take(row))
                pos = found.end()
            except BadLine as error:
                pos = _skip(body, start, pos)
                self._effort.add_bad_line()
                self._report.add(start, pos, error)
                pos += 1
            except UnicodeDecodeError:
                pos = _skip(body, start, pos)
                self._effort.add_bad_line()
                self._report.add(start, pos, _bad_utf8(body, start, pos))
                pos += 1
        return min(pos, len(body))


def _end(found: re.Match[bytes] | None) -> int:
    """Where an expression that also matches nothing ends."""
    assert found is not None
    return found.end()


def _unescaped_text(text: bytes) -> bytes:
    return b"\\".join([part.replace(b'\\"', b'"') for part in text.split(b"\\\\")])


def _unescaped_key(text: bytes) -> bytes:
    """Of a tag key, a tag value or a field key."""
    return b"\\".join(
        [part.replace(b"\\,", b",").replace(b"\\=", b"=").replace(b"\\ ", b" ") for part in text.split(b"\\\\")]
    )


def _unescaped_measurement(text: bytes) -> bytes:
    return b"\\".join([part.replace(b"\\,", b",").replace(b"\\ ", b" ") for part in text.split(b"\\\\")])


def _integer(found: re.Match[bytes], group: int, low: int, high: int) -> int:
    digits = found[group]
    if len(digits) > _MAX_DIGITS:
        digits = _without_zeros(digits)
        if len(digits) > 20 or not low <= int(digits) <= high:
            raise BadLine(f"{_of(found)} is out of the range of 64 bits", found.start(group))
    return int(digits)


def _timestamp(found: re.Match[bytes]) -> int:
    digits = _without_zeros(found[1])
    if len(digits) <= 20:
        time = int(digits)
        if -(1 << 63) <= time < 1 << 63:
            return time
    raise BadLine(f"timestamp {quote(found[1])} is out of the range of 64 bits", found.start(1))


def _without_zeros(digits: bytes) -> bytes:
    """The same integer; Python takes long ones in quadratic time, or not at all."""
    if len(digits) <= _MAX_DIGITS:
        return digits
    sign = digits[:1] if digits.startswith(b"-") else b""
    return sign + (digits.lstrip(b"-0") or b"0")


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
    measurement = _decoded("measurement", _unescaped_measurement(key[0]))
    check_measurement(measurement)
    tags = {_column_name("tag", raw): at for at, raw in enumerate(key[1:between])}
    fields = {_column_name("field", raw): between - 1 + at for at, raw in enumerate(pairs[::2])}
    if len(tags) < between - 1:
        raise BadPayload(f"tag {_repeated(key[1:between])} is there twice")
    types = {field: pairs[2 * (at - between + 1) + 1] for field, at in fields.items()}
    columns = [(TIME, _INTEGER)] if timed else []
    columns += [(tag, _TEXT) for tag in tags]
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
    name = _decoded(f"{what} name", _unescaped_key(raw) if b"\\" in raw else raw)
    check_column_name(name, what)
    if name == TIME:
        raise BadPayload(f"a {what} cannot be called 'time', which is the timestamp")
    return name


def _decoded(what: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{what} {quote(raw)} is not valid UTF-8") from None


# What to say of a bad line, and where the next one begins


def _skip(body: bytes, start: int, pos: int) -> int:
    """Where the line ends that begins at `start` and is bad at `pos`: at a newline, or at the end of the body."""
    return _end(_REST(body, max(pos, _end(_SERIES(body, start)))))


def _token(body: bytes, pos: int) -> bytes:
    return body[pos : _end(_TOKEN(body, pos))]


def _of(found: re.Match[bytes]) -> str:
    """Field and value, for an error text."""
    assert found.lastindex is not None
    return f"value {quote(found[found.lastindex])} of field {quote(found[1])}"


def _bad_series(body: bytes, pos: int) -> BadLine:
    """Why there is neither another tag nor a space at `pos`, behind the measurement or a tag."""
    char = body[pos : pos + 1]
    if char == b"=":  # can only be behind a value
        return BadLine("'=' in a tag value is not escaped", pos)
    if char != b",":
        return BadLine("fields are missing", pos)
    name = _NAME(body, pos + 1)
    if name is None:
        return BadLine("tag key is missing", pos + 1)
    end = name.end()
    if body[end : end + 1] != b"=":
        return BadLine(f"tag {quote(name[0])} has no value", end)
    value = _NAME(body, end + 1)
    if value is None:
        return BadLine(f"value of tag {quote(name[0])} is missing", end + 1)
    if body[value.end() : value.end() + 1] == b"=":
        return BadLine(f"'=' in the value of tag {quote(name[0])} is not escaped", value.end())
    return BadLine("fields are missing", value.end())


def _bad_field(body: bytes, pos: int) -> BadLine:
    """Why there is no field at `pos`."""
    name = _NAME(body, pos)
    if name is None or not name[0].strip(b"\t\r"):
        if body[pos : pos + 1] in (b"=", b",") or body[pos - 1 : pos] == b",":
            return BadLine("field key is missing", pos)
        return BadLine("fields are missing", pos)
    field, at = quote(name[0]), name.end()
    if body[at : at + 1] != b"=":
        return BadLine(f"field {field} has no value", at)
    at += 1
    if body[at : at + 1] == b'"':
        string = _OPEN_STRING(body, at)
        if string is None or not string[1]:
            return BadLine(f"the string of field {field} is not closed: it begins", at)
        return BadLine(f"the string of field {field} is followed by neither comma, space nor line end", string.end())
    value = _token(body, at)
    if not value:
        return BadLine(f"value of field {field} is missing", at)
    return BadLine(f"value {quote(value)} of field {field} is no number, boolean or quoted string", at)


def _bad_tail(body: bytes, pos: int) -> BadLine:
    """Why neither a timestamp nor the end of the line is at `pos`, behind the fields."""
    pos = _end(_SPACES(body, pos))
    token = _token(body, pos)
    if _IS_INTEGER(token):
        pos = _end(_SPACES(body, pos + len(token)))
        return BadLine(f"unexpected {quote(_token(body, pos) or b',')} after the timestamp", pos)
    if not token:
        return BadLine("unexpected ','", pos)
    return BadLine(f"timestamp {quote(token)} is no integer", pos)


def _bad_utf8(body: bytes, start: int, end: int) -> BadLine:
    try:
        body[start:end].decode()
    except UnicodeDecodeError as error:
        return BadLine("invalid UTF-8", start + error.start)
    raise AssertionError("the line is valid UTF-8")
