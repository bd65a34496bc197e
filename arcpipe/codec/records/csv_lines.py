"""CSV -> columnar maps. The csv module finds the cells; the cells of a column are read together."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from arcpipe.codec.columns import quote
from arcpipe.codec.effort import Effort, go_on
from arcpipe.codec.messagepack.times import RULE, TimeRule
from arcpipe.codec.records.gather import BadRows, Gatherer
from arcpipe.codec.records.json_lines import BOM
from arcpipe.codec.records.plan import Plan, make_plan
from arcpipe.codec.records.report import Place, Records, Report
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload
from arcpipe.units import KB, MB

_WINDOW_BYTES: Final = 64 * KB  # of lines that are decoded at a time
_STEP_BYTES: Final = 256 * KB  # of records that are read at a time, about; each step takes some milliseconds
_FIRST_ROWS: Final = 64  # records of the first step, which tells how long they are
_MOST_ROWS: Final = 4096
_SKIP_BYTES: Final = 256 * KB  # of blank lines that are skipped at a time
_MOST_LINE_BYTES: Final = MB  # of a line, which the csv module reads in one call
_CELLS_BETWEEN_CHECKS: Final = 1 << 16
_MOST_NAMES: Final = 4096  # in the first record: each record needs as many cells

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*+)")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+")
# Of all cells of a column, joined by newlines.
_INTEGERS: Final = re.compile(r"(?:-?(?:0|[1-9][0-9]{0,17}+)\n)*+")
_NUMBERS: Final = re.compile(r"(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+\n)*+")
_FLOATS: Final = re.compile(r"(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++(?:[eE][-+]?[0-9]++)?+|[eE][-+]?[0-9]++)\n)*+")
_TEXTS: Final = re.compile(r"(?:[^-0-9tTfF\n][^\n]*+\n)*+")
_BOOLS: Final = {**dict.fromkeys(("true", "True", "TRUE"), True), **dict.fromkeys(("false", "False", "FALSE"), False)}
_INFINITE: Final = (float("inf"), float("-inf"))
_TOO_LONG: Final = "larger than field limit"  # in the csv module's error
_MOST_DIGITS: Final = 4000  # of an integer that Python reads; longer ones stay text


def encode(body: bytes, check: Callable[[], None] = go_on, *, roles: Roles, rule: TimeRule = RULE) -> Records:
    """Make the records of a body columnar maps; as `json_lines.encode`.

    Raises:
        PayloadTooLarge: the body has too many shapes for its size.
        BadPayload: the first record has no usable names, a line or a cell is too long, or the body has too many bad
            records.
    """
    effort = Effort(len(body), check)
    report = Report(effort)
    lines = _Lines(body, check)
    reader = csv.reader(lines, strict=True)
    lines.skip_blank(0)
    names = _read_names(reader)
    if names is None:
        return Records(None, [], 0)
    gatherer = Gatherer(roles, rule, effort)
    table = _Table(names, roles, gatherer, check)
    rows_wanted = _FIRST_ROWS
    line = reader.line_num + lines.skipped + 1
    while True:
        check()
        began = lines.taken
        rows: list[list[str]] = []
        error = ""
        try:
            rows.extend(islice(reader, rows_wanted))
        except csv.Error as raised:
            error = str(raised)
            if _TOO_LONG in error:  # lines after it may be of the same cell, and are no records then
                place = f"line {reader.line_num + lines.skipped}"
                raise BadPayload(f"{place}: a cell of CSV has more than {csv.field_size_limit()} characters") from None
        bad = table.add(rows)
        if bad or error:
            line = _report(bad, rows, line, report)
        if error:
            report.add_one(f"not a CSV record: {error}", Place(line, b""))
        if rows and not any(rows):
            lines.skip_blank(reader.line_num)
        line = reader.line_num + lines.skipped + 1
        if not (rows or error):
            return Records(gatherer.maps.encoded(), report.errors, report.more_errors)
        size = (lines.taken - began) // (len(rows) or 1) or 1
        rows_wanted = min(_MOST_ROWS, max(1, _STEP_BYTES // size))


def _read_names(reader: Iterator[list[str]]) -> list[str] | None:
    """Read the first record; None for a body without any."""
    try:
        names = next((cells for cells in reader if cells), None)
    except csv.Error as error:
        raise BadPayload(f"the first CSV record, which has the names, cannot be read: {error}") from None
    if names is None:
        return None
    if len(names) > _MOST_NAMES:
        raise BadPayload(f"the first CSV record has more than {_MOST_NAMES} names")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadPayload(f"the first CSV record has the name {quote(name)} twice")
        seen.add(name)
    return names


class _Lines:
    """The lines of a body, as text. Bytes that are not UTF-8 become lone surrogates. `taken` counts characters."""

    def __init__(self, body: bytes, check: Callable[[], None]) -> None:
        self._body = body
        self._check = check
        self._pos = len(BOM) if body.startswith(BOM) else 0
        self._window: list[str] = []
        self._before = 0  # lines that were given, without those of the window
        self.taken = 0
        self.skipped = 0

    def __iter__(self) -> Iterator[str]:
        body = self._body
        while (pos := self._pos) < len(body):
            self._check()
            end = len(body) if len(body) - pos <= _WINDOW_BYTES else body.rfind(b"\n", pos, pos + _WINDOW_BYTES) + 1
            end = end or body.find(b"\n", pos) + 1 or len(body)
            if end - pos > _MOST_LINE_BYTES:
                raise BadPayload(f"a line of CSV has more than {_MOST_LINE_BYTES} bytes")
            lines = self._window = body[pos:end].decode("utf-8", "surrogateescape").split("\n")
            self._pos = end
            last = lines.pop()
            for line in lines:
                self.taken += len(line) + 1
                yield line + "\n"
            if last:
                self.taken += len(last)
                yield last
            self._before += len(lines) + bool(last)
            self._window = []

    def skip_blank(self, given: int) -> None:
        """Skip the blank lines that come next: the csv module takes 0.3 µs for each. Not within a record.

        Args:
            given: how many lines this has given, which the reader knows.
        """
        window, first = self._window, given - self._before
        end = next((number for number in range(first, len(window)) if window[number].strip("\r")), len(window))
        self.skipped += max(end - first, 0)
        del window[first:end]  # of the list that `__iter__` goes through
        body = self._body
        while first >= len(window) and self._pos < len(body):
            self._check()
            found = body[self._pos : self._pos + _SKIP_BYTES]
            blank = len(found) - len(found.lstrip(b"\r\n"))
            end = body.rfind(b"\n", self._pos, self._pos + blank) + 1
            if not end:
                return
            self.skipped += body.count(b"\n", self._pos, end)
            self._pos = end


def _report(bad: BadRows, rows: list[list[str]], line: int, report: Report) -> int:
    """Report bad rows, of which the first one begins in `line`; return the line after the last one."""
    lines = []
    for cells in rows:
        lines.append(line)
        line += 1 + sum(cell.count("\n") for cell in cells)

    def place_of(row: int) -> Place:
        return Place(lines[row], ",".join(rows[row])[: 2 * KB].encode("utf-8", "surrogateescape"))

    report.add(bad, place_of)
    return line


class _Table:
    """The columns of a body, whose records all have the same names."""

    def __init__(self, names: list[str], roles: Roles, gatherer: Gatherer, check: Callable[[], None]) -> None:
        """Take the names of the first record.

        Raises:
            BadPayload: a name is not valid.
        """
        self._names = names
        self._roles = roles
        self._gatherer = gatherer
        self._check = check
        self._plan: Plan | None = None
        if roles.measurement_field not in names:
            self._plan = make_plan(names, roles.measurement, roles)

    def add(self, rows: list[list[str]]) -> BadRows:
        """Take records; return the reasons of bad ones. Those of blank lines have no cells."""
        names = self._names
        bad: BadRows = {}
        count = len(names)
        kept = range(len(rows)) if set(map(len, rows)) == {count} else []
        if not kept:
            kept = []
            for row, cells in enumerate(rows):
                if len(cells) == count:
                    kept.append(row)
                elif cells:
                    bad[row] = f"{len(cells)} cells, but {count} names"
        if not kept:
            return bad
        rows = rows if len(kept) == len(rows) else [rows[row] for row in kept]
        unfit: BadRows = {}
        columns = []
        read = 0
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            read += len(column)
            if read > _CELLS_BETWEEN_CHECKS:
                self._check()
                read = 0
            columns.append(self._read(name, list(column), unfit))
        if unfit:
            good = [row for row in range(len(rows)) if row not in unfit]
            bad.update({kept[row]: reason for row, reason in unfit.items()})
            kept = [kept[row] for row in good]
            columns = [[values[row] for row in good] for values in columns]
            if not kept:
                return bad
        for row, reason in self._gather(columns).items():
            bad[kept[row]] = reason
        return bad

    def _gather(self, columns: list[list[Any]]) -> BadRows:
        names = self._names
        if self._plan is None:
            return self._gatherer.add([dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)])
        by_name = dict(zip(names, columns, strict=True))
        times = None if self._plan.time is None else by_name[self._plan.time]
        return self._gatherer.add_columns(self._plan, times, [by_name[field] for field in self._plan.fields])

    def _read(self, name: str, cells: list[str], bad: BadRows) -> list[Any]:
        """Make the cells of a column values, and note the rows of those that are not of its type."""
        joined = "\n".join(cells) + "\n"
        if not joined.isascii():
            for row, cell in enumerate(cells):
                if not _is_text(cell):
                    bad[row] = f"a cell of {quote(name)} is not valid UTF-8"
        roles = self._roles
        is_text = name in roles.tags or name == roles.measurement_field
        word = "str" if is_text else None if name == roles.time else roles.types.get(name)
        if word == "str":
            return [cell or None for cell in cells]
        if word is None or word in ("i64", "u64"):
            values: list[Any] | None = _read_plain(joined, cells)
            if values is not None and (word is None or _fits(word, joined)):
                return values
        if word is None:
            is_plain = joined.count("\n") == len(cells) and _TEXTS.fullmatch(joined) is not None
            return cells if is_plain else [_natural(cell) for cell in cells]
        return _typed(name, word, cells, bad)


def _fits(word: str, numbers: str) -> bool:
    """Tell whether numbers, as `_read_plain` takes them, are integers of this type."""
    return _INTEGERS.fullmatch(numbers) is not None and not (word == "u64" and "-" in numbers)


def _read_plain(joined: str, cells: list[str]) -> list[Any] | None:
    """Read cells that are all integers of at most 18 digits, or all numbers; None for others."""
    if joined.count("\n") != len(cells):
        return None
    if _INTEGERS.fullmatch(joined):
        return list(map(int, cells))
    if _FLOATS.fullmatch(joined):
        floats = list(map(float, cells))
        return floats if max(map(abs, floats)) < _INFINITE[0] else None
    if "." in joined and _NUMBERS.fullmatch(joined):
        return list(map(_number, cells))
    return None


def _number(cell: str) -> int | float | str:
    """Read a cell that is a number in JSON."""
    if "." in cell or "e" in cell or "E" in cell:
        value = float(cell)
        return cell if value in _INFINITE else value
    return int(cell) if len(cell) <= _MOST_DIGITS else cell


def _natural(cell: str) -> Any:
    if not cell:
        return None
    if _NUMBER.fullmatch(cell):
        return _number(cell)
    return _BOOLS.get(cell, cell)


def _typed(name: str, word: str, cells: list[str], bad: BadRows) -> list[Any]:
    read = _READ[word]
    values: list[Any] = []
    for row, cell in enumerate(cells):
        try:
            values.append(read(cell) if cell else None)
        except (ValueError, KeyError):
            values.append(None)
            bad[row] = f"cell {quote(cell[:80])} of {quote(name)} is not of type {word}"
    return values


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(cell: str) -> int:
        if not _INTEGER.fullmatch(cell) or not low <= int(cell) <= high:
            raise ValueError
        return int(cell)

    return read


def _float(cell: str) -> float:
    if cell != "NaN" and not _NUMBER.fullmatch(cell):
        raise ValueError
    value = float(cell)
    if value in _INFINITE:
        raise ValueError
    return value


_READ: Final[dict[str, Callable[[str], Any]]] = {
    "i64": _integer(-(1 << 63), (1 << 63) - 1),
    "u64": _integer(0, (1 << 64) - 1),
    "f64": _float,
    "bool": _BOOLS.__getitem__,
}


def _is_text(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True
