"""Line protocol, line by line: the reference path, which takes every line and knows what is wrong with a bad one.

The grammar is that of `arcpipe.codec.line_protocol`. This module must not know the other path.
"""

from __future__ import annotations

from typing import Any, Final

from arcpipe.codec.columns import MAX_COLUMNS, Maps
from arcpipe.codec.effort import FREE_SHAPES, Check, Effort, go_on
from arcpipe.codec.line_protocol.bad_lines import BadLineReport
from arcpipe.codec.line_protocol.grammar import (
    BETWEEN,
    BLANKS,
    ESCAPINGS,
    FALSE,
    FLOAT,
    INFINITE,
    INTEGER,
    SPACES,
    TAIL,
    TEXT,
    TRUE,
    UNSIGNED,
    WINDOW,
    BadLine,
    BadText,
    Escapes,
    Unit,
    bad_field,
    bad_line_start,
    bad_tail,
    end_of,
    find_bad_utf8,
    infinite,
    pass_spaces,
    skip_line,
    to_integer,
    to_time,
    unescaped_text,
)
from arcpipe.codec.line_protocol.long_lines import FIELDS_BETWEEN_CHECKS, TOO_MANY, LongLine
from arcpipe.codec.line_protocol.rows import RowGroup, RowPlan, plan_rows

_INTEGERS: Final = (INTEGER, UNSIGNED)
_LINES_BETWEEN_CHECKS: Final = 31  # a mask: `check` is called once per 32 lines, which usually take 0.2 ms
# Seconds of a wide line's next step: for each byte of its tags, which are read in one, and for each of its names, which
# are planned in one and packed in one.
_TAG_BYTE_SECONDS: Final = 3e-7
_NAME_SECONDS: Final = 1.5e-6
_WIDE: Final = 256  # names, or bytes of tags, below which such a step is short


class LineReader:
    """Read lines of a body and gather their rows by shape, for `maps`; bad lines go to `report`."""

    def __init__(
        self,
        body: bytes,
        report: BadLineReport,
        effort: Effort,
        maps: Maps,
        escapes: Escapes,
        unit: Unit | None,
        check: Check = go_on,
    ) -> None:
        self._body = body
        self._check = check
        self._escapes: Escapes = escapes
        self._escaping = ESCAPINGS[escapes]
        self._unit = unit
        self._maps = maps
        self._report = report
        self._effort = effort
        self._lines = 0
        self._unchecked = 0  # tags and fields since the last call of `check` for them
        self._plans: dict[tuple[Any, ...], RowPlan] = {}
        self._groups: dict[tuple[Any, ...], RowGroup] = {}

    def flush(self) -> None:
        """Make columnar maps of the rows read since the last call, by shape."""
        for group in self._groups.values():
            if group.rows:
                self._check(len(group.names.columns) * _NAME_SECONDS)
                self._maps.add(group.batch().encode(), len(group.rows))
        self._groups.clear()
        self._plans.clear()

    def _add_plan(self, key: tuple[Any, ...]) -> RowPlan:
        self._effort.add_shape()
        if len(key) > _WIDE:
            self._check(len(key) * _NAME_SECONDS)
        if len(self._plans) >= FREE_SHAPES:  # Python's garbage collector would visit all of them again and again
            self.flush()
        plan = self._plans[key] = plan_rows(key, self._escapes, self._groups)
        return plan

    def read(self, pos: int, stop: int) -> int:
        """Read the points that begin at or after `pos` and before `stop`: the offset after the last of them.

        A line must begin at `pos`, and one must end before `stop`. A line begins at the returned offset, which is
        after `stop` if the last point has a newline there.

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
        """Do as `read` for at most `WINDOW` bytes. Their strings may go on after `stop`."""
        body = self._body
        size = len(body)
        # Strings are searched up to here in the usual way: to the end of a line, or of the body.
        limit = size if size - stop <= WINDOW else body.rfind(b"\n", stop, stop + WINDOW) + 1 or stop
        while pos < stop:
            self._lines += 1
            if not self._lines & _LINES_BETWEEN_CHECKS:
                self._effort.check()
            pos = end_of(BETWEEN(body, pos, stop))
            if pos == stop:
                break
            pos = self._read_line(pos, limit)
        return pos

    def _read_line(self, start: int, limit: int) -> int:
        """Read the line that begins at `start`, whose strings are searched up to `limit`: the offset after it."""
        body = self._body
        escaping = self._escaping
        pos = start
        try:
            found = escaping.line_start(body, pos)
            if found is None:
                raise bad_line_start(body, pos, escaping)
            measurement, tags = found.groups()
            key: list[Any] = [measurement]
            row: list[Any] = []
            if tags:
                if len(tags) > _WIDE:
                    self._check(len(tags) * _TAG_BYTE_SECONDS)
                for tag, value in escaping.plain_tags(tags):
                    key.append(tag)
                    row.append((escaping.unescaped_tag(value) if b"\\" in value else value).decode())
            key.append(None)
            pos = found.end()
            rest = FIELDS_BETWEEN_CHECKS
            comma = True
            while comma:
                found = escaping.field(body, pos, limit)
                if found is None:
                    if limit < len(body) and escaping.open_field(body, pos, limit):
                        return self._read_long(start)
                    raise bad_field(body, pos, escaping)
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
                rest -= 1
                if not rest:
                    rest = self._pause(row)
            return self._read_tail(pos, key, row)
        except (BadLine, BadText, UnicodeDecodeError) as error:
            return self._refuse(start, pos, error)

    def _pause(self, row: list[Any]) -> int:
        """Call `check` within a wide line; return how many fields may be read until the next call."""
        self._check()
        if len(row) >= MAX_COLUMNS:
            raise BadLine(TOO_MANY, None)
        return FIELDS_BETWEEN_CHECKS

    def _read_tail(self, pos: int, key: list[Any], row: list[Any]) -> int:
        """Read what follows the fields of a line, and add its row: the offset after the line."""
        body = self._body
        if len(row) >= MAX_COLUMNS:
            raise BadLine(TOO_MANY, None)
        found = TAIL(body, pos)
        if found is None:
            raise bad_tail(body, pos)
        if found[1] is not None:
            row.append(to_time(found, self._unit, 1))
            key.append(None)
        self._add(key, row)
        self._unchecked += len(row)
        if self._unchecked >= FIELDS_BETWEEN_CHECKS:
            self._check()
            self._unchecked = 0
        end: int = found.end()
        return end

    def _read_long(self, pos: int) -> int:
        """Read the point in the line at `pos`, which is longer than a window, or has such a string."""
        body = self._body
        self._effort.check()
        end = pass_spaces(body, pos, SPACES)
        if body[end : end + 1] in (b"\n", b"#", b""):
            return body.find(b"\n", end) + 1 or len(body)
        start = pass_spaces(body, pos, BLANKS)
        line = LongLine(body, start, self._escaping, self._unit, self._check)
        try:
            line.read()
            self._add(line.key, line.row).has_long = True
        except (BadLine, BadText, UnicodeDecodeError) as error:
            return self._refuse(start, line.pos, error)
        return line.end

    def _add(self, key: list[Any], row: list[Any]) -> RowGroup:
        """Add a row to the group of its shape. Raises BadLine if lines with these keys are refused."""
        plan = self._plans.get(plan_key := tuple(key))
        if plan is None:
            plan = self._add_plan(plan_key)
        group = plan.group
        if group is None:
            raise BadLine(plan.bad, None)
        group.rows.append(plan.take(row))
        return group

    def _refuse(self, start: int, pos: int, error: BadLine | BadText | UnicodeDecodeError) -> int:
        """Report the line that begins at `start` and is bad at `pos` or later: the offset after it."""
        check = self._effort.check
        end = skip_line(self._body, start, pos, self._escaping, check)
        self._effort.add_bad_line()
        if not isinstance(error, BadLine):
            error = BadLine("invalid UTF-8", find_bad_utf8(self._body, start, end, check))
        self._report.add(start, end, error)
        return end + 1
