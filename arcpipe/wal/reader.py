"""Reads segments: scans, verifies, steps over damage, and stops where the present life of a file ends.

The file is read in windows with `pread`, never mapped: a disk that cannot read a sector gives an error here instead
of a signal. Memory is one window (or one entry, if that is larger), whatever the file's size.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from arcpipe.errors import NotAWAL
from arcpipe.wal.directory import parse_filename
from arcpipe.wal.format import (
    ENTRY_HEADER,
    ENTRY_HEADER_SIZE,
    ENVELOPE_MARK,
    FILE_HEADER_SIZE,
    KIND_BATCH,
    KIND_COLUMNAR,
    MAX_PAYLOAD_BYTES,
    EndMeta,
    StartMeta,
    crc32,
    file_header_error,
    unpack_end,
    unpack_envelope,
    unpack_start,
)

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 8 << 20
_BLOCK_BYTES: Final = 4096
# A search for the next entry behind damage gives up after checksumming this many times the file's size: only bytes
# made to look like entries could need more.
_SEARCH_EFFORT: Final = 64


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
    """Iterates over the data entries of one segment file; `report` tells the rest afterwards.

    Raises:
        NotAWAL: from the constructor, if the file does not begin as a log.
        OSError: from the constructor, if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, salvage: bool = False) -> None:
        """Args: salvage: read on behind a damaged file header, and count it as damage."""
        self.path = os.fspath(path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._source = _Source(self._fd)
            problem = file_header_error(self._source.read(0, FILE_HEADER_SIZE))
        except BaseException:
            os.close(self._fd)
            raise
        self.report = ScanReport(self._source.size)
        if problem is not None and not salvage:
            os.close(self._fd)
            raise NotAWAL(f"{self.path}: {problem}")
        if problem is not None:
            self.report.damage.append(Damage(0, min(FILE_HEADER_SIZE, self.report.size), problem))
        parsed = parse_filename(os.path.basename(self.path))
        # Border to a former life until the start entry tells it exactly. Files of other programs have none.
        self._ours = parsed is not None and parsed[0].seq > 0
        self._created = parsed[0].created_us if parsed is not None and self._ours else 0
        self._former_life = self.report.size  # where one was seen to begin

    def __iter__(self) -> Iterator[Entry]:
        try:
            yield from self._scan()
        finally:
            os.close(self._fd)

    def _scan(self) -> Iterator[Entry]:
        report, source = self.report, self._source
        read, unpack, checksum = source.read, ENTRY_HEADER.unpack_from, crc32
        size = source.size
        offset = report.end_offset = FILE_HEADER_SIZE
        while offset + ENTRY_HEADER_SIZE <= size:
            length, timestamp, crc = unpack(read(offset, ENTRY_HEADER_SIZE))
            following = offset + ENTRY_HEADER_SIZE + length
            if 0 < length <= MAX_PAYLOAD_BYTES and following <= size:
                payload = read(offset + ENTRY_HEADER_SIZE, length)
                if checksum(payload) == crc:
                    if timestamp < self._created and not self._is_misdated(following):
                        return  # a former life begins
                    report.end_offset = offset = following
                    if timestamp > report.last_timestamp:
                        report.last_timestamp = timestamp
                    if payload[0] == ENVELOPE_MARK and length > 1 and payload[1] in (0x00, 0xCC):
                        if self._take_marker(payload):
                            return
                        if payload[1] == 0x00:
                            continue
                    if self._ours and report.start is None:
                        # The start entry is damaged: the first intact entry is the best border there is.
                        report.start = StartMeta(created=timestamp)
                        self._created = max(self._created, timestamp)
                    report.entries += 1
                    yield Entry(following - length - ENTRY_HEADER_SIZE, timestamp, payload)
                    continue
                reason = f"checksum mismatch: expected {crc:08x}, got {checksum(payload):08x}"
            else:
                reason = f"impossible payload length {length}"
            found = self._find_next(offset, following)
            if found is None:
                self._note_tail(offset, reason)
                return
            report.damage.append(Damage(offset, found - offset, reason))
            offset = found
        if offset < size:
            self._note_tail(offset, f"only {size - offset} bytes, an entry header alone has {ENTRY_HEADER_SIZE}")

    def _take_marker(self, payload: memoryview) -> bool:
        """Notes a start or end entry; True if it is the segment's end."""
        start = unpack_start(payload)
        if start is not None:
            self.report.start = start
            # Exact where the name tells the second. Only a start entry that never was this file's would differ in
            # slot or number, and then the name's word holds.
            self._created = start.created if self._is_named(start) else max(self._created, start.created)
            self._ours = True
            return False
        end = unpack_end(payload)
        if end is not None:
            self.report.end = end
            return True
        return False

    def _is_named(self, start: StartMeta) -> bool:
        parsed = parse_filename(os.path.basename(self.path))
        return parsed is None or (parsed[0].slot, parsed[0].seq) == (start.slot, start.seq)

    def _header_at(self, offset: int) -> tuple[int, int] | None:
        """Length and timestamp of the intact entry at an offset, or None if there is none."""
        if offset + ENTRY_HEADER_SIZE > self._source.size:
            return None
        length, timestamp, crc = ENTRY_HEADER.unpack_from(self._source.read(offset, ENTRY_HEADER_SIZE))
        end = offset + ENTRY_HEADER_SIZE + length
        if not 0 < length <= MAX_PAYLOAD_BYTES or end > self._source.size:
            return None
        return (length, timestamp) if crc32(self._source.read(offset + ENTRY_HEADER_SIZE, length)) == crc else None

    def _is_misdated(self, following: int) -> bool:
        """Whether an intact entry below the border is one of this life whose timestamp was damaged.

        The checksum does not cover timestamps; but in a former life's tail no entry of this life can follow.
        """
        after = self._header_at(following)
        if after is None or after[1] < self._created:
            return False
        self.report.damage.append(Damage(following, 0, "the timestamp of the entry before is damaged"))
        return True

    def _find_next(self, damaged: int, following: int) -> int | None:
        """The offset of the first intact entry of this life behind a damaged one, or None."""
        if damaged < following < self._source.size:
            after = self._header_at(following)
            if after is not None and after[1] >= self._created:
                return following
        effort = _SEARCH_EFFORT * self._source.size
        for candidate in self._source.find_headers(damaged + 1, self._created, self._ours):
            length, timestamp, crc = ENTRY_HEADER.unpack_from(self._source.read(candidate, ENTRY_HEADER_SIZE))
            if not 0 < length <= MAX_PAYLOAD_BYTES or candidate + ENTRY_HEADER_SIZE + length > self._source.size:
                continue
            effort -= length
            if effort < 0:
                log.warning("%s: gave up the search for entries behind offset %d", self.path, damaged)
                return None
            if crc32(self._source.read(candidate + ENTRY_HEADER_SIZE, length)) == crc:
                if timestamp >= self._created:
                    return candidate
                self._former_life = candidate
                return None
        return None

    def _note_tail(self, offset: int, reason: str) -> None:
        torn = min(self._source.last_nonzero(offset), self._former_life) - offset
        if torn > 0:
            self.report.torn_bytes = torn
            self.report.torn_reason = reason


class _Source:
    """Random access to a file's bytes through one window."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self._start = 0
        self._window = memoryview(b"")

    def read(self, offset: int, length: int) -> memoryview:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._window):
            self._load(offset, max(length, WINDOW_BYTES))
            begin = 0
        return self._window[begin : begin + length]

    def find_headers(self, offset: int, created: int, envelopes: bool) -> Iterator[int]:
        """Offsets at or behind `offset` where an entry header could be, by its timestamp and first payload bytes.

        The upper three bytes of a timestamp change every 12.7 days: entries of this life, and of the former life
        that ends the search, have those of `created` or their neighbours.
        """
        import numpy as np  # only damage needs it, and workers that never see any stay small

        first = np.zeros(256, bool)
        first[[ENVELOPE_MARK] if envelopes else [0x01, *range(0x80, 0xA0), *range(0xDC, 0xE0)]] = True
        second = np.zeros(256, bool)
        second[[0x00, 0x01, 0x02, 0xCC] if envelopes else slice(None)] = True
        epoch = created >> 40
        reach = ENTRY_HEADER_SIZE + 2
        while offset + reach <= self.size:
            chunk = np.frombuffer(self.read(offset, min(WINDOW_BYTES, self.size - offset)), np.uint8)
            count = len(chunk) - reach + 1
            likely = first[chunk[16 : 16 + count]] & second[chunk[17 : 17 + count]]
            for position in np.flatnonzero(likely).tolist():
                date = int.from_bytes(chunk[position + 4 : position + 7].tobytes(), "big")
                if not created or epoch - 1 <= date <= epoch + 1:
                    yield offset + position
            offset += count

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
        try:
            data = self._pread(offset, length)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = self._read_around_bad_blocks(offset, length)
        self._start = offset
        self._window = memoryview(data)

    def _pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length:
            return data
        parts = [data]
        done = len(data)
        while data and done < length:
            data = os.pread(self._fd, length - done, offset + done)
            parts.append(data)
            done += len(data)
        return b"".join(parts)

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


class WALReader:
    """Reads one log file into records, for people who recover by hand.

    for batch in WALReader("data/wal/worker-1-20251008_143000-000001.wal").read_all():
        for record in batch:
            print(record["measurement"], record["time"], record["_database"])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._scan = SegmentScan(path)
        self.report = self._scan.report

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for entry in self._scan:
            yield records_of(entry)

    def read_all(self) -> list[list[dict[str, Any]]]:
        """A batch (list of record dicts) per entry: `measurement`, `time`, `_database` and the fields.

        `time` is as it was sent, or the entry's timestamp (µs) where none was. Damage is skipped; see `report`.
        """
        return list(self)


class _Columnar(msgspec.Struct):
    m: str
    columns: dict[str, list[Any]]


_decode_columnar = msgspec.msgpack.Decoder(_Columnar).decode
_decode_columnars = msgspec.msgpack.Decoder(list[_Columnar]).decode


def records_of(entry: Entry) -> list[dict[str, Any]]:
    """The records of an entry as dicts; of Arc's own two payloads, too.

    Raises:
        msgspec.DecodeError: the payload is intact, but holds no records.
    """
    if entry.payload[0] == ENVELOPE_MARK:
        return _records_of_envelope(entry)
    database = "default"
    payload = entry.payload
    if payload[0] == 0x01 and len(payload) > 3:
        # Arc's columnar entries: 0x01, uint16 length, database name, MessagePack.
        length = int.from_bytes(payload[1:3], "big")
        database = bytes(payload[3 : 3 + length]).decode("utf-8", "replace")
        payload = payload[3 + length :]
    value = msgspec.msgpack.decode(payload)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise msgspec.DecodeError("the payload is neither an envelope nor an array of maps")
    records = []
    for item in value:
        if isinstance(item.get("columns"), dict):
            records += _records_of_columns(msgspec.convert(item, _Columnar), database, entry.timestamp)
        else:
            records.append({"_database": database, "time": entry.timestamp, **item})
    return records


def _records_of_envelope(entry: Entry) -> list[dict[str, Any]]:
    envelope = unpack_envelope(entry.payload)
    if envelope.kind == KIND_COLUMNAR:
        maps = [_decode_columnar(envelope.body)]
    elif envelope.kind == KIND_BATCH:
        maps = _decode_columnars(envelope.body)
    else:
        raise msgspec.DecodeError(f"envelope kind {envelope.kind} holds no records")
    return [record for columnar in maps for record in _records_of_columns(columnar, envelope.database, entry.timestamp)]


def _records_of_columns(columnar: _Columnar, database: str, timestamp: int) -> list[dict[str, Any]]:
    names = list(columnar.columns)
    records = []
    for values in zip(*columnar.columns.values(), strict=True):
        record = {"measurement": columnar.m, "_database": database, "time": timestamp}
        record.update(
            (name, value) for name, value in zip(names, values, strict=True) if not (name == "time" and value is None)
        )
        records.append(record)
    return records


class _ColumnSizes(msgspec.Struct):
    columns: dict[str, msgspec.Raw]


_decode_sizes = msgspec.msgpack.Decoder(_ColumnSizes).decode
_decode_all_sizes = msgspec.msgpack.Decoder(list[_ColumnSizes]).decode


def count_records(payload: memoryview) -> int | None:
    """How many records a payload holds, without building them; None if it is no envelope."""
    try:
        envelope = unpack_envelope(payload)
        maps = [_decode_sizes(envelope.body)] if envelope.kind == KIND_COLUMNAR else _decode_all_sizes(envelope.body)
    except msgspec.DecodeError:
        return None
    return sum(_array_length(next(iter(columnar.columns.values()), b"\x90")) for columnar in maps)


def _array_length(array: msgspec.Raw | bytes) -> int:
    view = memoryview(array)
    if view[0] & 0xF0 == 0x90:
        return view[0] & 0x0F
    return int.from_bytes(view[1 : 3 if view[0] == 0xDC else 5], "big")
