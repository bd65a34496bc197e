"""Line protocol: one line that is longer than a window, of which only strings and whitespace may be long.

`LongLine` takes the same lines as `LineReader`, but passes strings in slices. It refuses any other part of a line that
is as long as a window: no client needs it, and no other thread runs while an expression passes it.

This module must not know shapes or reports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from arcpipe.codec.columns import MAX_COLUMNS, quote, str_header
from arcpipe.codec.line_protocol.grammar import (
    AFTER_STRING,
    BLANKS,
    DIGITS,
    FALSE,
    FLOAT,
    INFINITE,
    INTEGER,
    SPACES,
    TEXT,
    TRUE,
    UNSIGNED,
    WINDOW,
    BadLine,
    BadText,
    Escaping,
    Unit,
    after_token,
    after_value,
    bad_field,
    bad_series,
    bad_tail,
    find_bad_utf8,
    infinite,
    pass_spaces,
    slices_of_text,
    to_integer,
    to_time,
    unescaped_text,
)

# Tags or fields of a line that are read between two calls of `check`: a millisecond.
FIELDS_BETWEEN_CHECKS: Final = 512
TOO_MANY: Final = f"more than {MAX_COLUMNS - 1} tags and fields"


class LongLine:
    """Read the line that begins at `pos`, which is no whitespace.

    `key` and `row` become those of any line, except that strings are `bytes`, in MessagePack already.
    """

    __slots__ = ("_body", "_check", "_escaping", "_unit", "end", "key", "pos", "row")

    def __init__(self, body: bytes, pos: int, escaping: Escaping, unit: Unit | None, check: Callable[[], None]) -> None:
        self._body = body
        self._escaping = escaping
        self._unit = unit
        self._check = check
        self.pos = pos
        """The end of the part that was read, without the tail."""
        self.end = pos
        """The offset after the line, once it is read."""
        self.key: list[Any] = []
        self.row: list[Any] = []

    def read(self) -> None:
        """Read the whole line.

        Raises:
            BadLine, BadText, UnicodeDecodeError: it is bad, at `pos` or shortly after.
        """
        self._read_series()
        self.key.append(None)
        self._read_field()
        while self._body[self.pos : self.pos + 1] == b",":
            self.pos += 1
            self._read_field()
        self._read_tail()

    def _is_cut(self, start: int, end: int) -> bool:
        """Tell whether the part from `start` to `end`, where a window cut it off or not, is too long."""
        return end >= start + WINDOW

    def _read_series(self) -> None:
        body = self._body
        found = self._escaping.measurement(body, self.pos, self.pos + WINDOW)
        if found is None:
            raise BadLine("measurement is missing", self.pos)
        if self._is_cut(self.pos, found.end()):
            raise _too_long("the measurement", self.pos)
        self.key.append(found[0])
        self.pos = found.end()
        while (found := self._escaping.tag(body, self.pos, self.pos + WINDOW)) is not None:
            tag, value = found.groups()
            self.key.append(tag)
            if b"\\" in value:
                value = self._escaping.unescaped_tag(value)
            self.row.append(value.decode())
            self.pos = found.end()
            self._count()
        if body[self.pos : self.pos + 1] != b" ":
            if self._is_cut(self.pos, after_token(body, self.pos + 1, self.pos + WINDOW, self._escaping)):
                raise _too_long("a tag", self.pos)
            raise bad_series(body, self.pos, self._escaping)
        self.pos = pass_spaces(body, self.pos, BLANKS)

    def _read_field(self) -> None:
        body, pos = self._body, self.pos
        name = self._escaping.name(body, pos, pos + WINDOW)
        if name is None:
            raise bad_field(body, pos, self._escaping)
        if self._is_cut(pos, name.end()):
            raise _too_long("a field key", pos)
        at = name.end() + 1
        found = self._escaping.field(body, pos, pos + WINDOW)
        if found is not None and not (self._is_cut(pos, found.end()) and found.end() < len(body)):
            type_ = found.lastindex
            assert type_ is not None
            self._add_value(found, type_)
            self.pos = found.end()
        elif body[at - 1 : at + 1] == b'="':
            self._read_text(name[0], at + 1)
        elif body[at - 1 : at] == b"=" and self._is_cut(pos, after_value(body, at, pos + WINDOW)):
            raise _too_long(f"field {quote(name[0])}", pos)
        else:
            raise bad_field(body, pos, self._escaping)
        self._count()

    def _add_value(self, found: Any, type_: int) -> None:
        value: Any
        if type_ == FLOAT:
            value = float(found[type_])
            if value in INFINITE:
                raise infinite(found)
        elif type_ in (INTEGER, UNSIGNED):
            value = to_integer(found, type_)
        elif type_ == TEXT:
            text = found[type_]
            value = (unescaped_text(text) if b"\\" in text else text).decode()
        else:
            value = type_ == TRUE
        self.key += (found[1], type_ if type_ != FALSE else TRUE)
        self.row.append(value)

    def _read_text(self, name: bytes, start: int) -> None:
        """Read the string whose content begins at `start`."""
        body = self._body
        parts: list[bytes] = []
        end = start
        for at, stop in slices_of_text(body, start):
            end = stop
            part = body[at:end]
            parts.append(unescaped_text(part) if b"\\" in part else part)
            self._check()
        if body[end : end + 1] != b'"':
            raise BadLine(f"the string of field {quote(name)} is not closed: it begins", start - 1)
        if body[end + 1 : end + 2] not in AFTER_STRING:
            raise BadLine(
                f"the string of field {quote(name)} is followed by neither comma, space nor line end", end + 1
            )
        if find_bad_utf8(body, start, end, self._check) >= 0:
            raise BadText
        self.key += (name, TEXT)
        self.row.append(b"".join((str_header(sum(map(len, parts))), *parts)))
        self.pos = end + 1

    def _read_tail(self) -> None:
        body, pos = self._body, self.pos
        digits = None
        if body[pos : pos + 1] == b" ":
            start = pass_spaces(body, pos, BLANKS)
            digits = DIGITS(body, start, start + WINDOW)
            if digits is not None:
                if self._is_cut(start, digits.end()):
                    raise _too_long("the timestamp", start)
                pos = digits.end()
        end = pass_spaces(body, pos, SPACES)
        if body[end : end + 1] not in (b"\n", b""):
            raise bad_tail(body, self.pos)
        if digits is not None:
            self.row.append(to_time(digits, self._unit))
            self.key.append(None)
        self.end = min(end + 1, len(body))

    def _count(self) -> None:
        if not len(self.row) % FIELDS_BETWEEN_CHECKS:
            self._check()
        if len(self.row) >= MAX_COLUMNS:
            raise BadLine(TOO_MANY, None)


def _too_long(what: str, pos: int) -> BadLine:
    return BadLine(f"{what} has {WINDOW} bytes or more, too many: it begins", pos)
