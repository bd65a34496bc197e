"""Chunks: the records that go out in one request, and how they become a body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from arcpipe.client.encoding import Stream, body_of
from arcpipe.errors import ArcpipeError


class BadInput(ArcpipeError):
    """A file cannot be loaded; the text says where and why."""


class BadRecord(NamedTuple):
    """Records of a file that the server refused."""

    place: str  # such as "line 17" or "rows 1 to 40"
    reason: str
    text: str = ""  # the line, if it is one
    records: int = 1


class Chunk(Protocol):
    """What one request takes."""

    @property
    def stream(self) -> Stream: ...

    @property
    def label(self) -> str:
        """The end of its key."""

    @property
    def records(self) -> int: ...

    @property
    def place(self) -> str:
        """Where it is in its file, for a person."""

    def body(self) -> bytes: ...

    def halves(self) -> Sequence[Chunk]:
        """Return two smaller chunks; none if it cannot be divided, or if the server can tell what is wrong with it."""

    def bad_records(self, reason: str) -> tuple[list[BadRecord], int]:
        """Return what of a refused chunk is bad, and the number of its records that are not written."""


class Row(NamedTuple):
    """One record of a file, and the line that it begins in, or its number from 1."""

    measurement: str
    tags: tuple[str, ...]
    values: Mapping[str, Any]
    line: int


class RowChunk:
    """Rows of any measurements."""

    def __init__(self, stream: Stream, first: int, rows: Sequence[Row], what: str = "line") -> None:
        """Make one.

        Args:
            first: the number of the first row, from 0.
            what: `line` or `row`: what `Row.line` counts.
        """
        self.stream = stream
        self._what = what
        self.records = len(rows)
        self._first = first
        self._rows = rows

    @property
    def label(self) -> str:
        return f"{self._first}+{self.records}"

    @property
    def place(self) -> str:
        first, last = self._rows[0].line, self._rows[-1].line
        return f"{self._what} {first}" if first == last else f"{self._what}s {first} to {last}"

    def body(self) -> bytes:
        groups: dict[tuple[str, tuple[str, ...]], list[Mapping[str, Any]]] = {}
        for row in self._rows:
            groups.setdefault((row.measurement, row.tags), []).append(row.values)
        return body_of("msgpack", [_map_of(*key, _columns_of(values)) for key, values in groups.items()])

    def halves(self) -> Sequence[RowChunk]:
        middle = self.records // 2
        if not middle:
            return ()
        return (
            RowChunk(self.stream, self._first, self._rows[:middle], self._what),
            RowChunk(self.stream, self._first + middle, self._rows[middle:], self._what),
        )

    def bad_records(self, reason: str) -> tuple[list[BadRecord], int]:
        return [BadRecord(self.place, reason, records=self.records)], self.records


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


class ColumnChunk:
    """Rows of one measurement, by columns."""

    def __init__(
        self,
        stream: Stream,
        measurement: str,
        tags: Sequence[str],
        columns: Mapping[str, list[Any]],
        first: int,
        lines: Sequence[int] | None = None,
    ) -> None:
        """Make one of columns of equal length.

        Args:
            first: the number of the first row, from 0.
            lines: the line of each row, if the file has lines.
        """
        self.stream = stream
        self.records = len(next(iter(columns.values())))
        self._measurement = measurement
        self._tags = [name for name in tags if name in columns]
        self._columns = columns
        self._first = first
        self._lines = lines

    @property
    def label(self) -> str:
        return f"{self._first}+{self.records}"

    @property
    def place(self) -> str:
        what = "row" if self._lines is None else "line"
        first, last = self._first + 1, self._first + self.records
        if self._lines is not None:
            first, last = self._lines[0], self._lines[-1]
        return f"{what} {first}" if first == last else f"{what}s {first} to {last}"

    def body(self) -> bytes:
        return body_of("msgpack", [_map_of(self._measurement, self._tags, self._columns)])

    def halves(self) -> Sequence[ColumnChunk]:
        middle = self.records // 2
        if not middle:
            return ()
        return self._part(0, middle), self._part(middle, self.records)

    def _part(self, start: int, stop: int) -> ColumnChunk:
        return ColumnChunk(
            self.stream,
            self._measurement,
            self._tags,
            {name: values[start:stop] for name, values in self._columns.items()},
            self._first + start,
            None if self._lines is None else self._lines[start:stop],
        )

    def bad_records(self, reason: str) -> tuple[list[BadRecord], int]:
        return [BadRecord(self.place, reason, records=self.records)], self.records


def _map_of(measurement: str, tags: Sequence[str], columns: Mapping[str, list[Any]]) -> bytes:
    value: dict[str, Any] = {"m": measurement, "columns": columns}
    present = [name for name in tags if name in columns]
    if present:
        value["tags"] = present
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadInput(f"measurement {measurement!r}: a value cannot be encoded: {error}") from None


def within(chunk: RowChunk | ColumnChunk, most_bytes: int) -> list[RowChunk | ColumnChunk]:
    """Return the chunk, or halves of it as small as needed for a body of at most this size, or of one row."""
    halves = chunk.halves()
    if not halves or len(chunk.body()) <= most_bytes:
        return [chunk]
    return [part for half in halves for part in within(half, most_bytes)]
