"""Line protocol -> chunks of whole lines, and what exports of InfluxDB have besides lines.

`influx_inspect export` writes `CREATE DATABASE` in a part `# DDL`, and `# CONTEXT-DATABASE:name` ahead of the lines of
a database. The statements are left out. Lines go into the database of their context, unless the plan names one.

A chunk ends at the last line that is within `batch_bytes` and `batch_records`. A newline within a string ends no line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Final, NamedTuple

from arcpipe.client.encoding import Stream
from arcpipe.codec.effort import go_on
from arcpipe.codec.line_protocol.grammar import ESCAPINGS, skip_line
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.load.chunks import BadInput, BadRecord, Chunk
from arcpipe.load.plan import DEFAULT_DATABASE, Plan
from arcpipe.units import MB

MAX_LINE_BYTES: Final = 1 * MB
"""A longer line is refused, unless it is within a chunk of `batch_bytes`."""

_CONTEXT: Final = b"# CONTEXT-DATABASE:"
_DDL: Final = b"# DDL"
_DML: Final = b"# DML"
_STATEMENT: Final = b"CREATE DATABASE "
_MARKS: Final = (_CONTEXT, _DDL, _STATEMENT)
_ESCAPING: Final = ESCAPINGS["v1"]


class LineChunk:
    """Whole lines of a file."""

    def __init__(self, stream: Stream, data: bytes, offset: int, first_line: int, records: int) -> None:
        self.stream = stream
        self.records = records
        self._data = data
        self._offset = offset
        self._first_line = first_line

    @property
    def label(self) -> str:
        return str(self._offset)

    @property
    def place(self) -> str:
        return f"lines from {self._first_line} on"

    def body(self) -> bytes:
        return self._data

    def halves(self) -> Sequence[Chunk]:
        return ()  # its good lines are written, and `bad_records` finds the others

    def bad_records(self, reason: str) -> tuple[list[BadRecord], int]:
        bad, number = self.check()
        return (bad, number) if bad else ([BadRecord(self.place, reason, records=self.records)], self.records)

    def check(self) -> tuple[list[BadRecord], int]:
        """Return the bad lines as the server will find them, and their number."""
        try:
            found, more = bad_lines(self._data, self.stream.precision)
        except (BadPayload, PayloadTooLarge) as error:  # too many bad lines to tell, or too many shapes
            return [BadRecord(self.place, str(error), records=self.records)], self.records
        bad = [BadRecord(f"line {self._first_line + line - 1}", why, text) for line, why, text in found]
        if more:
            bad.append(BadRecord(self.place, f"{more} more bad lines", records=more))
        return bad, len(found) + more


def bad_lines(data: bytes, precision: str) -> tuple[list[tuple[int, str, str]], int]:
    """Find the bad lines as the server does: number from 1, reason, text; those above 100 are only counted."""
    from arcpipe.codec.line_protocol.body import encode
    from arcpipe.codec.line_protocol.grammar import UNITS

    found = encode(data, unit=UNITS.get(precision))
    return [(error.line, error.reason, error.text) for error in found.errors], found.more_errors


class _Cut(NamedTuple):
    end: int  # of the chunk within the buffer
    records: int
    dropped: list[tuple[int, int]]  # slices of lines that are no records
    database: str | None  # the context from `end` on


def read(file: IO[bytes], plan: Plan, name: str) -> Iterator[Chunk]:
    """Cut a file into chunks.

    Raises:
        BadInput: a line is too long.
    """
    precision = "ns" if plan.precision == "auto" else plan.precision
    database = plan.database or DEFAULT_DATABASE
    buffer = b""
    offset, line = 0, 1
    is_at_end = False
    while True:
        # As much at every chunk, whatever a read gives: so the cuts follow from the content alone.
        wanted = plan.batch_bytes + MAX_LINE_BYTES
        while len(buffer) < wanted and not is_at_end:
            piece = file.read(wanted - len(buffer))
            is_at_end = not piece
            buffer += piece
        if not buffer:
            return
        cut = _cut(buffer, plan, is_at_end)
        if not cut.end:
            raise BadInput(f"{name}: line {line}: it has more than {MAX_LINE_BYTES // MB} MB: remove it")
        data = buffer[: cut.end]
        if cut.records:
            yield LineChunk(
                Stream("lines", database, precision), _without(data, cut.dropped), offset, line, cut.records
            )
        if cut.database is not None and not plan.database:
            database = cut.database or DEFAULT_DATABASE
        offset += cut.end
        line += data.count(b"\n")
        buffer = buffer[cut.end :]


def _cut(buffer: bytes, plan: Plan, is_at_end: bool) -> _Cut:
    """Find the end of the first chunk in a buffer; 0 if not one line ends in it."""
    window = buffer[: plan.batch_bytes]
    is_whole = is_at_end and len(window) == len(buffer)
    end = len(window) if is_whole else window.rfind(b"\n") + 1
    if end and b'"' not in window and not any(mark in window for mark in _MARKS):
        lines = window[:end].split(b"\n", plan.batch_records)
        if len(lines) > plan.batch_records:
            end -= len(lines.pop())
        return _Cut(end, _count_records(window[:end]), [], None)
    return _cut_by_line(buffer, plan, is_at_end)


def _cut_by_line(buffer: bytes, plan: Plan, is_at_end: bool) -> _Cut:
    pos = records = 0
    dropped: list[tuple[int, int]] = []
    while pos < len(buffer):
        end = _line_end(buffer, pos)
        if end == len(buffer) and not is_at_end:
            break
        end = min(end + 1, len(buffer))
        if pos and (end > plan.batch_bytes or records == plan.batch_records):
            break
        line = buffer[pos:end].strip()
        if line.startswith(_CONTEXT):
            return _Cut(end, records, dropped, line.removeprefix(_CONTEXT).decode("utf-8", "replace").strip())
        if line.startswith(_STATEMENT):
            dropped.append((pos, end))
        else:
            records += _is_record(line)
        pos = end
    return _Cut(pos, records, dropped, None)


def _line_end(buffer: bytes, start: int) -> int:
    """Find the newline that ends a line, or the end of the buffer."""
    end = buffer.find(b"\n", start)
    end = len(buffer) if end < 0 else end
    if buffer.find(b'"', start, end) < 0:
        return end
    while buffer[start : start + 1] in (b" ", b"\t", b"\r"):
        start += 1
    if buffer[start : start + 1] == b"#":
        return end
    return skip_line(buffer, start, start, _ESCAPING, go_on)


def _count_records(data: bytes) -> int:
    """Count the lines that are neither blank nor comments."""
    if any(odd in data for odd in (b"#", b"\n\n", b"\n ", b"\n\t", b"\n\r")) or data[:1].isspace():
        return sum(map(_is_record, data.split(b"\n")))
    return data.count(b"\n") + (not data.endswith(b"\n"))


def _is_record(line: bytes) -> bool:
    line = line.strip()
    return bool(line) and not line.startswith(b"#")


def _without(data: bytes, dropped: list[tuple[int, int]]) -> bytes:
    """Blank lines out, so that the numbers of the others stay."""
    for start, end in reversed(dropped):
        data = data[:start] + b"\n" + data[end:]
    return data
