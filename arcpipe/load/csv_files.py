"""CSV -> chunks of columns. The first line names the columns.

The whole file is read once to find the types of its columns, and once more to make chunks: a column that is `1, 2, 2.5`
is a column of floats from its first row on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple

from arcpipe.client.encoding import Stream
from arcpipe.load import texts
from arcpipe.load.chunks import BadInput, Chunk, ColumnChunk, Row, RowChunk, within
from arcpipe.load.plan import DEFAULT_DATABASE, TIME, BadPlan, Kind, Plan
from arcpipe.units import MB

MAX_FIELD_BYTES: Final = 16 * MB
"""Of one value: what a row of MessagePack may hold."""


class _Rows(NamedTuple):
    lines: list[int]
    columns: list[tuple[str, ...]]


def text_of(file: IO[bytes]) -> IO[str]:
    """Read bytes as text, for the reader of CSV: with its line ends, without a byte order mark."""
    return io.TextIOWrapper(io.BufferedReader(_Unclosed(file)), encoding="utf-8-sig", newline="")


class _Unclosed(io.RawIOBase):
    """A file that stays open when its text wrapper goes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def rows_of(file: IO[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """Read rows of CSV, each with the line that it begins in.

    Raises:
        BadInput: it is no CSV, or no UTF-8.
    """
    csv.field_size_limit(MAX_FIELD_BYTES)
    reader = csv.reader(text_of(file), strict=True)
    line = 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{name}: line {line}: no CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: after line {line - 1}: not UTF-8: {error.reason}") from None


def _header(rows: Iterator[tuple[int, list[str]]], name: str) -> list[str]:
    _, names = next(rows, (1, []))
    if not names or "" in names:
        raise BadInput(f"{name}: line 1: the first line has to name every column")
    if len(set(names)) != len(names):
        twice = next(column for column in names if names.count(column) > 1)
        raise BadInput(f"{name}: line 1: column {twice!r} is there twice: rename one of them")
    return names


def _groups(rows: Iterator[tuple[int, list[str]]], width: int, most: int, name: str) -> Iterator[_Rows]:
    """Gather rows, `most` at a time; blank lines are none."""
    lines: list[int] = []
    gathered: list[list[str]] = []
    for line, row in rows:
        if not row:
            continue
        if len(row) != width:
            raise BadInput(f"{name}: line {line}: it has {len(row)} values, the first line has {width} names: mend it")
        lines.append(line)
        gathered.append(row)
        if len(gathered) == most:
            yield _Rows(lines, list(zip(*gathered, strict=True)))
            lines, gathered = [], []
    if gathered:
        yield _Rows(lines, list(zip(*gathered, strict=True)))


class CSVTypes(NamedTuple):
    """The columns of a file, and their types."""

    names: list[str]
    kinds: list[Kind | None]


def survey(file: IO[bytes], plan: Plan, name: str) -> CSVTypes:
    """Find the types of all columns. Raises BadInput and BadPlan."""
    rows = rows_of(file, name)
    names = _header(rows, name)
    plan.needs_measurement()
    plan.time_of(names)
    for option, wanted in (
        *(("--tags", tag) for tag in plan.tags),
        *(("--types", column) for column in plan.types),
        *([("--measurement-column", plan.measurement_column)] if plan.measurement_column else []),
    ):
        if wanted not in names:
            raise BadPlan(f"{name}: {option}: there is no column {wanted!r}; there are: {', '.join(names[:20])}")
    kinds: list[Kind | None] = [None] * len(names)
    for group in _groups(rows, len(names), plan.batch_records, name):
        _check(group, names, plan, name)
        kinds = [texts.kind_of(values, kind) for values, kind in zip(group.columns, kinds, strict=True)]
    fixed: dict[str, Kind] = {**dict.fromkeys((*plan.tags, plan.measurement_column), "text"), **plan.types}
    return CSVTypes(names, [fixed.get(column, kind) for column, kind in zip(names, kinds, strict=True)])


def _check(group: _Rows, names: list[str], plan: Plan, name: str) -> None:
    """Find what would end the load in the middle, while nothing is written: a mended file is another one.

    Raises:
        BadInput: a value is not of the type that the plan says, or there is no measurement where it says.
    """
    time = plan.time_of(names)
    for column, kind in plan.types.items():
        if column != time:
            _typed(group.columns[names.index(column)], kind, f"column {column!r}", group.lines, name, found=False)
    if plan.measurement_column and not plan.measurement:
        values = group.columns[names.index(plan.measurement_column)]
        empty = next((line for line, value in zip(group.lines, values, strict=True) if not value), None)
        if empty is not None:
            raise BadInput(
                f"{name}: line {empty}: column {plan.measurement_column!r} names no measurement: write one there"
            )


def _typed(
    values: tuple[str, ...], kind: Kind | None, column: str, lines: list[int], name: str, *, found: bool
) -> list[Any]:
    try:
        return texts.typed(values, kind, found=found)
    except ValueError as error:
        index, text = error.args
        raise BadInput(f"{name}: line {lines[index]}: {column}: {text!r} is not of the type {kind}") from None


def read(file: IO[bytes], plan: Plan, name: str, types: CSVTypes) -> Iterator[Chunk]:
    """Make chunks. Raises BadInput."""
    stream = Stream("msgpack", plan.database or DEFAULT_DATABASE, plan.precision)
    rows = rows_of(file, name)
    _header(rows, name)
    time = plan.time_of(types.names)
    first = 0
    for group in _groups(rows, len(types.names), plan.batch_records, name):
        columns: dict[str, list[Any]] = {}
        for column, kind, values in zip(types.names, types.kinds, group.columns, strict=True):
            if column == time:
                columns[TIME] = texts.times(values)
            else:
                is_found = column not in plan.types
                columns[column] = _typed(values, kind, f"column {column!r}", group.lines, name, found=is_found)
        yield from within(_chunk(stream, plan, columns, first, group.lines), plan.batch_bytes)
        first += len(group.lines)


def _chunk(
    stream: Stream, plan: Plan, columns: dict[str, list[Any]], first: int, lines: list[int]
) -> RowChunk | ColumnChunk:
    if not plan.measurement_column:
        return ColumnChunk(stream, plan.measurement, plan.tags, columns, first, lines)
    names = list(columns)
    rows = []
    for line, values in zip(lines, zip(*columns.values(), strict=True), strict=True):
        record = {column: value for column, value in zip(names, values, strict=True) if value is not None}
        measurement = record.pop(plan.measurement_column, plan.measurement)
        rows.append(Row(measurement, plan.tags, record, line))
    return RowChunk(stream, first, rows)
