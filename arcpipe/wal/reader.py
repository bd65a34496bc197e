"""Reads segments: scans, verifies, steps over damage, and stops where the present life of a file ends.

The file is read in windows with `pread`, never mapped: a disk that cannot read a sector gives an error here instead
of a signal. Memory is one window (or one entry, if that is larger), whatever the file's size.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from arcpipe.errors import BadPayload, NotAWAL
from arcpipe.wal.directory import parse_filename
from arcpipe.wal.format import (
    ENTRY_HEADER,
    ENTRY_HEADER_SIZE,
    ENVELOPE_END,
    ENVELOPE_MARK,
    ENVELOPE_START,
    FILE_HEADER_SIZE,
    MAX_PAYLOAD_BYTES,
    EndMeta,
    StartMeta,
    crc32,
    file_header_error,
    unpack_end,
    unpack_start,
)

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 8 << 20
_BLOCK_BYTES: Final = 4096
# A disk that reads 1 GB/s is busy with this for a quarter of a millisecond.
_PIECE_BYTES: Final = 256 << 10
# The second bytes of envelopes that mark a segment's start or end.
_MARKER_KINDS: Final = (ENVELOPE_START[1], ENVELOPE_END[1])
_LEAST_ENTRY_BYTES: Final = ENTRY_HEADER_SIZE + 2
# Looking for entries behind damage ends after checksumming this many times the file's size: only bytes made to look
# like entries could need more.
_SEARCH_EFFORT: Final = 64
# So many entries of a former life, and none of this one among them: the rest of the file is former life.
_FORMER_ENTRIES: Final = 256
# The search reads this much first, then more and more: the next entry is mostly near.
_FIRST_SEARCH_BYTES: Final = 64 << 10
# Timestamps (µs): those of neighbours that are further apart are looked at twice …
_JUMP_US: Final = 86_400_000_000
# … and none is above the last second that a date can tell, or below 1996.
_LATEST_US: Final = 253_402_300_799_000_000
_EARLIEST_US: Final = 3 << 48


class Entry(NamedTuple):
    """One verified entry. `payload` stays valid as long as it is referenced."""

    offset: int
    timestamp: int  # µs since the epoch
    payload: memoryview


class Damage(NamedTuple):
    """Bytes of a segment that hold no intact entry although intact ones follow."""

    offset: int
    length: int
    reason: str


class ScanReport:
    """What a scan found. Complete once the scan has been read to its end."""

    __slots__ = (
        "damage",
        "end",
        "end_offset",
        "entries",
        "last_timestamp",
        "size",
        "start",
        "torn_bytes",
        "torn_reason",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.start: StartMeta | None = None
        self.end: EndMeta | None = None
        self.entries = 0  # data entries
        self.last_timestamp = 0  # µs, of the last intact entry of any kind
        self.end_offset = 0  # where the next entry would go: behind the last intact one
        self.damage: list[Damage] = []
        self.torn_bytes = 0  # behind `end_offset`, neither zeros nor a former life
        self.torn_reason = ""


class SegmentScan:
    """Iterates over the data entries of one segment file; `report` tells the rest afterwards. May be iterated again.

    Raises:
        NotAWAL: from the constructor, if the file does not begin as a log.
        OSError: from the constructor, if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, salvage: bool = False, gently: bool = False) -> None:
        """
        Args:
            salvage: read on behind a damaged file header, and count it as damage.
            gently: read in small pieces and nothing ahead, so that no sync of a writer waits for long behind a read.
        """
        self.path = os.fspath(path)
        self._source = _Source(self.path, gently)
        self._header_problem = file_header_error(self._source.read(0, FILE_HEADER_SIZE))
        if self._header_problem is not None and not salvage:
            raise NotAWAL(f"{self.path}: {self._header_problem}")
        self.report = ScanReport(self._source.size)

    def __iter__(self) -> Iterator[Entry]:
        report = self.report = ScanReport(self._source.size)
        source = self._source
        read, unpack, checksum, whole = source.read, ENTRY_HEADER.unpack_from, crc32, source.crc32
        make = Entry._make
        size = source.size
        self._effort = _SEARCH_EFFORT * size
        if self._header_problem is not None:
            report.damage.append(Damage(0, min(FILE_HEADER_SIZE, size), self._header_problem))
        offset = report.end_offset = self._take_start()
        border = self._border
        while offset + ENTRY_HEADER_SIZE <= size:
            # The usual entries, as far as the window goes. Whatever is unusual about one is judged below.
            window, position = source.window, offset - source.start
            last, first_position, entries = report.last_timestamp, position, 0
            while 0 <= position <= len(window) - _LEAST_ENTRY_BYTES:
                length, timestamp, crc = unpack(window, position)
                begin = position + ENTRY_HEADER_SIZE
                payload = window[begin : begin + length]
                if (
                    len(payload) != length
                    or length < 2
                    or (window[begin] == ENVELOPE_MARK and window[begin + 1] in _MARKER_KINDS)
                    or not border <= timestamp <= last + _JUMP_US
                    or checksum(payload) != crc
                ):
                    break
                if timestamp > last:
                    last = timestamp
                entries += 1
                yield make((offset + position - first_position, timestamp, payload))
                position = begin + length
            report.entries += entries
            report.last_timestamp = last
            if entries:
                offset = report.end_offset = offset + position - first_position
            window = payload = memoryview(b"")  # the next one is read into memory of its own, if it is large
            if offset + ENTRY_HEADER_SIZE > size:
                break
            length, timestamp, crc = unpack(read(offset, ENTRY_HEADER_SIZE))
            begin = offset + ENTRY_HEADER_SIZE
            following = begin + length
            if not 0 < length <= MAX_PAYLOAD_BYTES or following > size:
                reason = f"impossible payload length {length}"
            elif (found := checksum(read(begin, length)) if length <= WINDOW_BYTES else whole(begin, length)) != crc:
                reason = f"checksum mismatch: expected {crc:08x}, got {found:08x}"
            elif timestamp < border:
                reason = f"timestamp {timestamp} is below the segment's start"
            else:
                payload = read(begin, length)
                if timestamp > report.last_timestamp + _JUMP_US:
                    timestamp = self._plausible(timestamp, offset, following)
                if timestamp > report.last_timestamp:
                    report.last_timestamp = timestamp
                report.end_offset = following
                if payload[0] == ENVELOPE_MARK and length > 1 and payload[1] in _MARKER_KINDS:
                    report.end = unpack_end(payload)
                    if report.end is not None:
                        return
                report.entries += 1
                yield Entry(offset, timestamp, payload)
                del payload  # as above
                offset = following
                continue
            intact = self._find_next(offset)
            if intact is None:
                self._note_tail(offset, reason)
                return
            report.damage.append(Damage(offset, intact - offset, reason))
            offset = intact
        if offset < size:
            self._note_tail(offset, f"only {size - offset} bytes, an entry header alone has {ENTRY_HEADER_SIZE}")

    def _take_start(self) -> int:
        """Settles where a former life's timestamps end. Returns the offset behind the start entry, if that is intact.

        The start entry says it exactly; where it is damaged, the name's second is a border too, because a segment that
        is written over never begins in a second in which its former life ended. Files of other programs have none.
        """
        name = parse_filename(os.path.basename(self.path))
        ours = name is not None and name[0].seq > 0
        self._border = name[0].created_us if name is not None and ours else 0
        self._former_life = self._source.size
        found = self._entry_at(FILE_HEADER_SIZE)
        if found is None:
            return FILE_HEADER_SIZE
        start = unpack_start(self._source.read(FILE_HEADER_SIZE + ENTRY_HEADER_SIZE, found[0]))
        if start is None:
            return FILE_HEADER_SIZE
        if name is not None and ours and name[0][::2] != (start.slot, start.seq) and start.created < self._border:
            # Another segment's, older than this name: a disk that says "synced" and is not kept the name alone.
            return FILE_HEADER_SIZE
        self._border = self.report.last_timestamp = start.created
        self.report.start = start
        return FILE_HEADER_SIZE + ENTRY_HEADER_SIZE + found[0]

    def _plausible(self, timestamp: int, offset: int, following: int) -> int:
        """A timestamp that is far above the one before, or a likelier one: no checksum covers it.

        It is damaged if it is far above the one that follows as well, or above the clock where one of both is missing.
        """
        previous = max(self.report.last_timestamp, self._border)
        after = self._entry_at(following)
        likely = after[1] if after is not None else self._source.newest(self._border)
        highest = max(previous, likely) if previous else max(likely, self._source.newest(0))
        if timestamp <= min(highest + _JUMP_US, _LATEST_US):
            return timestamp
        self.report.damage.append(Damage(offset, 0, f"timestamp {timestamp} is damaged; the entry itself is intact"))
        return previous + 1 if previous else min(likely, _LATEST_US)

    def _entry_at(self, offset: int) -> tuple[int, int] | None:
        """Payload length and timestamp of the intact entry at an offset, or None if there is none."""
        source = self._source
        if offset + ENTRY_HEADER_SIZE > source.size or self._effort < 0:
            return None
        length, timestamp, crc = ENTRY_HEADER.unpack_from(source.read(offset, ENTRY_HEADER_SIZE))
        begin = offset + ENTRY_HEADER_SIZE
        if not 0 < length <= MAX_PAYLOAD_BYTES or begin + length > source.size:
            return None
        self._effort -= length
        if self._effort < 0:
            log.warning("%s: gave up the search for entries at offset %d", self.path, offset)
            return None
        return (length, timestamp) if source.crc32(begin, length) == crc else None

    def _find_next(self, offset: int) -> int | None:
        """The offset of the first intact entry of this life behind `offset`, or None.

        A damaged header's length is not believed, so nothing that is intact is stepped over. Entries of a former life
        are, if they are few: after a torn write they may stand among those of this life.
        """
        self._former_life = self._source.size
        entry = self._entry_at(offset)
        for _ in range(_FORMER_ENTRIES):
            if entry is None:
                for candidate in self._source.find_headers(offset + 1, self._border):
                    entry = self._entry_at(candidate)
                    if entry is not None:
                        offset = candidate
                        break
                else:
                    return None
            length, timestamp = entry
            if timestamp >= self._border:
                return offset
            self._former_life = min(self._former_life, offset)
            offset += ENTRY_HEADER_SIZE + length
            entry = self._entry_at(offset)
        return None

    def _note_tail(self, offset: int, reason: str) -> None:
        torn = min(self._source.last_nonzero(offset), self._former_life) - offset
        if torn > 0:
            self.report.torn_bytes = torn
            self.report.torn_reason = reason


class _Source:
    """Random access to a file's bytes through one window."""

    def __init__(self, path: str, gently: bool) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._gently = gently
        if gently:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        stat = os.fstat(self._fd)
        self.size = stat.st_size
        self._modified_us = stat.st_mtime_ns // 1000
        self.start = 0
        self.window = memoryview(b"")

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def newest(self, border: int) -> int:
        """µs: no entry should be much younger: the clock, or what it said when the file was written."""
        return max(time.time_ns() // 1000, self._modified_us, border)

    def read(self, offset: int, length: int) -> memoryview:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        begin = offset - self.start
        if begin < 0 or begin + length > len(self.window):
            self._load(offset, max(length, WINDOW_BYTES))
            begin = 0
        return self.window[begin : begin + length]

    def crc32(self, offset: int, length: int) -> int:
        """The checksum of some bytes; a length that is only claimed takes time, but no more memory than a window."""
        crc = 0
        end = offset + length
        while offset < end:
            part = self.read(offset, min(WINDOW_BYTES, end - offset))
            crc = crc32(part, crc)
            offset += len(part)
        return crc

    def find_headers(self, offset: int, border: int) -> Iterator[int]:
        """Offsets at or behind `offset` where an entry header could be, by its timestamp and first payload byte."""
        import numpy as np  # only damage needs it, and workers that never see any stay small

        # The upper two bytes of a timestamp change every 8.9 years.
        latest = (self.newest(border) + _JUMP_US) >> 48
        reach = ENTRY_HEADER_SIZE + 1
        window = _FIRST_SEARCH_BYTES
        while offset + reach <= self.size:
            chunk = np.frombuffer(self.read(offset, min(window, self.size - offset)), np.uint8)
            count = len(chunk) - reach + 1
            high, low = chunk[4 : 4 + count], chunk[5 : 5 + count]
            dated = (high == latest >> 8) & (low >= _EARLIEST_US >> 48) & (low <= latest & 0xFF)
            for position in np.flatnonzero(dated).tolist():
                first = chunk[position + ENTRY_HEADER_SIZE]
                if first == 0x01 or 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
                    yield offset + position
            offset += count
            window = min(2 * window, WINDOW_BYTES)

    def last_nonzero(self, offset: int) -> int:
        """The end of the last byte behind `offset` that is not zero; `offset` if all are."""
        end = self.size
        while end > offset:
            begin = max(offset, end - WINDOW_BYTES)
            chunk = bytes(self.read(begin, end - begin)).rstrip(b"\x00")
            if chunk:
                return begin + len(chunk)
            end = begin
        return offset

    def _load(self, offset: int, length: int) -> None:
        length = min(length, self.size - offset)
        self.window = memoryview(b"")  # which may be large
        data: bytes | memoryview
        try:
            data = self._read_in_pieces(offset, length) if self._gently else self._pread(offset, length)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = self._read_around_bad_blocks(offset, length)
        self.start = offset
        self.window = memoryview(data)

    def _read_in_pieces(self, offset: int, length: int) -> memoryview:
        import numpy as np  # for memory that nobody clears first; who reads gently has it anyway

        data = np.empty(length, np.uint8).data
        done = 0
        while done < length:
            count = os.preadv(self._fd, [data[done : done + _PIECE_BYTES]], offset + done)
            if not count:  # cut off since it was opened
                data[done:] = bytes(length - done)
                break
            done += count
        return data

    def _pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:  # cut off since it was opened: what is gone reads as nothing written
                return data.ljust(length, b"\x00")
            data += more
        return data

    def _read_around_bad_blocks(self, offset: int, length: int) -> bytes:
        """What can be read, with zeros where the device gives an error: damage that the checksums find."""
        parts = []
        bad = 0
        for begin in range(offset, offset + length, _BLOCK_BYTES):
            wanted = min(_BLOCK_BYTES, offset + length - begin)
            try:
                parts.append(os.pread(self._fd, wanted, begin).ljust(wanted, b"\x00"))
            except OSError:
                bad += 1
                parts.append(bytes(wanted))
        log.error("read errors on the log's device: %d blocks of %d bytes at offset %d", bad, _BLOCK_BYTES, offset)
        return b"".join(parts)


def first_timestamp(path: str) -> int:
    """µs since the epoch of the first data entry of one of our segments, from its header alone; 0 without one.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        head = file.read(_BLOCK_BYTES)
    if len(head) < FILE_HEADER_SIZE + ENTRY_HEADER_SIZE:
        return 0
    offset = FILE_HEADER_SIZE + ENTRY_HEADER_SIZE + ENTRY_HEADER.unpack_from(head, FILE_HEADER_SIZE)[0]
    if offset + ENTRY_HEADER_SIZE > len(head):
        return 0
    timestamp: int = ENTRY_HEADER.unpack_from(head, offset)[1]
    return timestamp


class WALReader:
    """Reads one log file into records, for people who recover by hand.

    for batch in WALReader("data/wal/worker-1-20251008_143000-000001.wal").read_all():
        for record in batch:
            print(record["measurement"], record["time"], record["_database"])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._scan = SegmentScan(path)

    @property
    def report(self) -> ScanReport:
        """What was found, damage too; complete once the file was read."""
        return self._scan.report

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for entry in self._scan:
            try:
                yield records_of(entry)
            except BadPayload as error:
                log.error("%s: entry at offset %d holds no records: %s", self._scan.path, entry.offset, error)

    def read_all(self) -> list[list[dict[str, Any]]]:
        """A batch (list of record dicts) per entry: `measurement`, `time`, `_database` and the fields.

        `time` is as it was sent, or the entry's timestamp (µs) where none was. Damage is skipped; see `report`. An
        intact entry that holds no records is skipped and logged.
        """
        return list(self)


def records_of(entry: Entry) -> list[dict[str, Any]]:
    """The records of an entry as dicts; of Arc's own two payloads, too.

    Raises:
        BadPayload: the payload is intact, but holds no records.
    """
    from arcpipe.codec.entries import decode_entry

    records = []
    for database, columnar in decode_entry(entry.payload).maps:
        columns = {name: _values(column) for name, column in columnar.columns.items()}
        if len(set(map(len, columns.values()))) > 1:
            raise BadPayload(f"the columns of measurement {columnar.m!r} differ in length")
        for values in zip(*columns.values(), strict=True):
            record = {"measurement": columnar.m, "_database": database, "time": entry.timestamp}
            record.update(
                (name, value)
                for name, value in zip(columns, values, strict=True)
                if not (name == "time" and value is None)
            )
            records.append(record)
    return records


def count_records(payload: memoryview) -> int | None:
    """How many records a payload holds, without building them; None if it holds none that can be told."""
    from arcpipe.codec.entries import array_length, decode_entry

    try:
        firsts = [next(iter(columnar.columns.values()), b"\x90") for _, columnar in decode_entry(payload).maps]
        return sum(array_length(memoryview(column))[0] for column in firsts)
    except BadPayload:
        return None


def _values(column: msgspec.Raw) -> list[Any]:
    """A column's values. Those that msgspec cannot tell come as the objects of `codec.odd_values`."""
    from arcpipe.codec.odd_values import unpack_value

    try:
        return msgspec.msgpack.decode(column, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = unpack_value(bytes(column))
    if not isinstance(values, list):
        raise BadPayload("a column is no array, or nested too deep")
    return values
