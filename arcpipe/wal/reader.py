"""Read segments: scan and verify them, step over damage, and judge the result in one verdict.

    scan = SegmentScan(path)
    for entry in scan: ...          # raises OSError when a read fails; nothing unreadable is taken for the end
    scan.report.verdict             # `arcpipe.wal.verdict` says what follows from it

Modules: `source` reads the file, `life` tells the segment's entries from stale ones, `walk` goes from entry to entry,
`stretch` takes many small ones at once, `salvage` finds the next one after damage, `timestamps` and `verdict` judge.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from arcpipe.disk import Disk
from arcpipe.errors import BadPayload, NotAWAL
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, parse_filename
from arcpipe.wal.format import (
    ENTRY_HEADER,
    ENTRY_HEADER_SIZE,
    FILE_HEADER_SIZE,
    file_header_error,
    is_of_another_version,
)
from arcpipe.wal.life import has_entries, settle
from arcpipe.wal.records import IDEMPOTENCY_KEY
from arcpipe.wal.report import Damage, Entry, ScanReport, judge
from arcpipe.wal.source import SegmentSource
from arcpipe.wal.walk import walk, walk_by_stretches

__all__ = [
    "Damage",
    "Entry",
    "ScanReport",
    "SegmentScan",
    "WALReader",
    "count_records",
    "first_timestamp",
    "records_of",
]

if TYPE_CHECKING:
    from arcpipe.wal.stretch import Stretch

log = logging.getLogger(__name__)

# Bytes. More than the start entry of any segment and the header of the entry after it.
_HEAD_BYTES = 4096


class SegmentScan:
    """Iterates over the data entries of one segment file. `report` has the result afterwards. May be iterated again.

    Raises:
        NotAWAL: by the constructor: neither the header nor any entry is that of a WAL file.
        OSError: the file cannot be opened, or a read failed. The verdict is `UNREADABLE` then.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        disk: Disk | None = None,
        salvage: bool = False,
        gently: bool = False,
        state: str | None = None,
    ) -> None:
        """Open a segment file.

        Args:
            disk: reads the file.
            salvage: read on after a damaged file header, and around unreadable blocks; both count as damage.
            gently: read in small pieces and nothing ahead, so that no sync of a writer waits long for a read.
            state: ACTIVE, SEALED or RECOVERED; by default the state in the file's name.
        """
        self.path = os.fspath(path)
        self.was_active = (state or _state_of(self.path)) == ACTIVE
        self._source = SegmentSource(self.path, disk or Disk(), gently=gently, around_bad_blocks=salvage)
        self.report = ScanReport(self._source.size)
        header = self._source.read(0, FILE_HEADER_SIZE)
        self._header_problem = file_header_error(header)
        if (
            self._header_problem is not None
            and not salvage
            and (is_of_another_version(header) or not has_entries(self._source, settle(self._source)))
        ):
            raise NotAWAL(f"{self.path}: {self._header_problem}")

    def __iter__(self) -> Iterator[Entry]:
        return walk(self._source, settle(self._source), self._begin(), self._finish)

    def by_stretches(self) -> Iterator[Entry | Stretch]:
        """Yield what iterating does, in the same order; small entries as stretches where it can."""
        return walk_by_stretches(self._source, settle(self._source), self._begin(), self._finish)

    def _begin(self) -> ScanReport:
        report = self.report = ScanReport(self._source.size)
        if self._header_problem is not None:
            report.damage.append(Damage(0, min(FILE_HEADER_SIZE, report.size), self._header_problem))
        return report

    def _finish(self) -> None:
        report = self.report
        needed = report.end_offset if report.end is not None else report.size
        report.damage += [Damage(*skipped) for skipped in self._source.skipped if skipped.offset < needed]
        report.damage.sort(key=lambda damage: damage.offset)
        report.verdict = judge(report, self.was_active)


def _state_of(path: str) -> str:
    """Read the state in a file's name. A file without one counts as active, and so may end anywhere."""
    parsed = parse_filename(os.path.basename(path))
    if parsed is not None:
        return parsed[1]
    return next((state for state in (SEALED, RECOVERED) if path.endswith(state)), ACTIVE)


def first_timestamp(path: str, disk: Disk | None = None, *, may_wait: bool = True) -> int:
    """Read the timestamp of a segment's first data entry from that entry's header alone.

    Args:
        may_wait: whether the disk is waited for, which may take minutes where it fails.

    Returns:
        µs since the epoch; 0 without a data entry.

    Raises:
        BlockingIOError: the disk would have to be waited for.
        OSError: the file cannot be read.
    """
    disk = disk or Disk()
    fd = disk.open_for_reading(path)
    try:
        head = (disk.read if may_wait else disk.read_cached)(fd, _HEAD_BYTES, 0)
    finally:
        disk.close(fd)
    if len(head) < FILE_HEADER_SIZE + ENTRY_HEADER_SIZE:
        return 0
    offset = FILE_HEADER_SIZE + ENTRY_HEADER_SIZE + ENTRY_HEADER.unpack_from(head, FILE_HEADER_SIZE)[0]
    if offset + ENTRY_HEADER_SIZE > len(head):
        return 0
    timestamp: int = ENTRY_HEADER.unpack_from(head, offset)[1]
    return timestamp


class WALReader:
    """Reads one WAL file into records, for people who recover by hand.

    for batch in WALReader("data/wal/worker-1-20251008_143000-000001.wal").read_all():
        for record in batch:
            print(record["measurement"], record["time"], record["_database"])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._scan = SegmentScan(path)

    @property
    def report(self) -> ScanReport:
        """Return the report of the scan, with its damage; complete once the file was read."""
        return self._scan.report

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for entry in self._scan:
            try:
                yield records_of(entry)
            except BadPayload as error:
                log.error("%s: entry at offset %d holds no records: %s", self._scan.path, entry.offset, error)

    def read_all(self) -> list[list[dict[str, Any]]]:
        """Read all records: a batch per entry, a dict per record with `measurement`, `time`, `_database` and fields.

        `time` is the value that was sent; without one, the time at which the entry was written, in µs. Damage is
        skipped and is in `report`. An intact entry without records is skipped and logged.
        """
        return list(self)


def time_of(entry: Entry) -> int:
    """Return the time of day at which an entry was written, in µs since the epoch.

    It is the entry's timestamp, unless the clock was set back before.
    """
    from arcpipe.codec.entries import entry_meta

    try:
        return entry_meta(entry.payload).time_of(entry.timestamp)
    except BadPayload:
        return entry.timestamp


def records_of(entry: Entry) -> list[dict[str, Any]]:
    """Decode the records of an entry into dicts; reads Arc's two payloads, too.

    Each has `measurement`, `_database`, `time` and its fields, and `_idempotency_key` if its request had one.

    Raises:
        BadPayload: the payload is intact, but holds no records.
    """
    from arcpipe.codec.entries import decode_entry

    records = []
    decoded = decode_entry(entry.payload)
    time_us = decoded.meta.time_of(entry.timestamp)
    key = {} if decoded.meta.key is None else {IDEMPOTENCY_KEY: decoded.meta.key}
    for database, columnar in decoded.maps:
        columns = {name: _values(column) for name, column in columnar.columns.items()}
        if len(set(map(len, columns.values()))) > 1:
            raise BadPayload(f"the columns of measurement {columnar.m!r} differ in length")
        for values in zip(*columns.values(), strict=True):
            record = {"measurement": columnar.m, "_database": database, "time": time_us, **key}
            record.update(
                (name, value)
                for name, value in zip(columns, values, strict=True)
                if not (name == "time" and value is None)
            )
            records.append(record)
    return records


def count_records(payload: memoryview) -> int | None:
    """Count the records of a payload without decoding them; None if they cannot be counted."""
    from arcpipe.codec.entries import entry_records

    try:
        return entry_records(payload)
    except BadPayload:
        return None


def _values(column: msgspec.Raw) -> list[Any]:
    """Decode a column's values. Those that msgspec cannot decode become the objects of `codec.rescued`."""
    from arcpipe.codec.rescued import unpack_value

    try:
        return msgspec.msgpack.decode(column, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = unpack_value(bytes(column))
    if not isinstance(values, list):
        raise BadPayload("a column is no array, or nested too deep")
    return values
