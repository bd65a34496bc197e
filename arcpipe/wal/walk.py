"""Walk through a segment entry after entry: ordinary ones in a fast loop, the others one at a time.

The fast loops judge an entry by the bytes in the window. `_step` judges the others: those at the window's end, those
of a new database, and damaged ones. Each of the two loops yields by itself, because delegating to another generator
would cost as much as the loop.
"""

from __future__ import annotations

import contextlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

from arcpipe.codec.envelope import ENVELOPE_END, ENVELOPE_MARK, ENVELOPE_START
from arcpipe.wal.format import (
    ENTRY_HEADER,
    ENTRY_HEADER_SIZE,
    FILE_HEADER_SIZE,
    IDENTITY_BYTES,
    MAX_PAYLOAD_BYTES,
    crc32,
    identity_offset,
    unpack_end,
)
from arcpipe.wal.life import SegmentLife
from arcpipe.wal.report import Damage, Entry, ScanReport
from arcpipe.wal.salvage import BorderSalvager, IdentitySalvager, Salvager
from arcpipe.wal.source import WINDOW_BYTES, Header, SearchEffort, SegmentSource
from arcpipe.wal.timestamps import JUMP_US, LATEST_US, Culprit, judge

if TYPE_CHECKING:
    from arcpipe.wal.stretch import Stretch, StretchFinder

# The second bytes of envelopes that mark a segment's start or end.
_MARKER_KINDS: Final = (ENVELOPE_START[1], ENVELOPE_END[1])
_LEAST_ENTRY_BYTES: Final = ENTRY_HEADER_SIZE + 2
# Envelope fronts that are kept for the fast loop. A segment with more databases than this is read a little slower.
_KNOWN_FRONTS: Final = 1024

_BETWEEN_STRETCHES: Final = 256  # entries that are taken one by one before a stretch is looked for again
_NO_BOUND: Final = 1 << 62

_GAVE_UP: Final = "the search for entries was given up"

_Unpack = Callable[[Any, int], tuple[Any, ...]]


def walk(source: SegmentSource, life: SegmentLife, report: ScanReport, at_end: Callable[[], None]) -> Iterator[Entry]:
    """Yield a segment's data entries in order, and fill in the report except for the verdict.

    Args:
        at_end: called after everything was read.

    Raises:
        OSError: a read failed.
    """
    _begin(life, report)
    if life.identity:
        entries: Iterator[Any] = _IdentityWalk(source, life, report).entries(at_end)
        return entries
    return _BorderWalk(source, life, report).entries(at_end)


def walk_by_stretches(
    source: SegmentSource, life: SegmentLife, report: ScanReport, at_end: Callable[[], None]
) -> Iterator[Entry | Stretch]:
    """Do as `walk`, and yield small entries as stretches where it can."""
    from arcpipe.wal.stretch import StretchFinder  # it needs numpy, which other readers do not wait for

    _begin(life, report)
    if life.identity:
        return _IdentityWalk(source, life, report).entries(at_end, StretchFinder())
    return _BorderWalk(source, life, report).entries(at_end)


def _begin(life: SegmentLife, report: ScanReport) -> None:
    report.start = life.start
    report.identity = life.identity
    report.end_offset = life.offset
    report.last_timestamp = life.start.created if life.start is not None else 0


def _front_at(window: memoryview, begin: int) -> bytes:
    """Copy the bytes that are the front of a payload if it is an envelope with an identity."""
    mark = window[begin + 2]
    size = 25 + (mark & 0x1F) if mark & 0xE0 == 0xA0 else 26 + window[begin + 3] if mark == 0xD9 else 0
    return bytes(window[begin : begin + size])


class _Walk(ABC):
    """The parts of a walk that both kinds of files share: everything but the fast loop."""

    def __init__(self, source: SegmentSource, life: SegmentLife, report: ScanReport, salvager: Salvager) -> None:
        self._source = source
        self._life = life
        self._report = report
        self._salvager = salvager

    @abstractmethod
    def _settle_timestamp(self, header: Header) -> int:
        """Return the timestamp of an intact entry, or note that it is damaged and return a likely one."""

    def _take(self, payload: memoryview) -> None:  # noqa: B027  (only one kind of walk learns from it)
        """Learn from a data entry that `_step` judged."""

    def _step(self, offset: int) -> tuple[Entry | None, int]:
        """Judge the bytes at an offset.

        Returns:
            The data entry if it is one, and the offset to go on from; -1 at the end.
        """
        source, report = self._source, self._report
        if offset + ENTRY_HEADER_SIZE > source.size:
            if offset < source.size:
                self._note_tail(
                    offset, f"only {source.size - offset} bytes, an entry header alone has {ENTRY_HEADER_SIZE}"
                )
            return None, -1
        length, timestamp, crc = ENTRY_HEADER.unpack_from(source.read(offset, ENTRY_HEADER_SIZE))
        header = Header(offset, length, timestamp)
        self._bring(header)
        reason = self._problem(header, crc)
        if reason:
            return None, self._step_over(offset, reason)
        payload = source.read(header.payload, length)
        if payload[0] == ENVELOPE_MARK and length > 1 and payload[1] in _MARKER_KINDS:
            report.end = unpack_end(payload)
        timestamp = self._settle_timestamp(header)
        report.last_timestamp = max(report.last_timestamp, timestamp)
        report.end_offset = header.end
        if report.end is not None:
            report.end_entry_offset = offset
            return None, -1
        self._take(payload)
        report.entries += 1
        return Entry(offset, timestamp, payload), header.end

    def _bring(self, header: Header) -> None:
        """Load an entry and the header of the next one into one window: two windows would cost fresh memory."""
        end = min(header.end + ENTRY_HEADER_SIZE, self._source.size)
        if header.end <= end and header.length <= WINDOW_BYTES:
            with contextlib.suppress(OSError):  # the next header may not be needed; the entry is read again
                self._source.read(header.offset, end - header.offset)

    def _problem(self, header: Header, crc: int) -> str:
        """Explain why the bytes of an entry are not an intact entry of this segment; empty if they are."""
        length = header.length
        if not 0 < length <= MAX_PAYLOAD_BYTES or header.end > self._source.size:
            return f"impossible payload length {length}"
        found = self._source.crc32(header.payload, length)
        if found != crc:
            return f"checksum mismatch: expected {crc:08x}, got {found:08x}"
        return self._salvager.refusal(header)

    def _step_over(self, offset: int, reason: str) -> int:
        """Note what is wrong at an offset. Return the offset of the next intact entry; -1 without one."""
        intact = self._salvager.next_entry(offset)
        if intact is not None:
            self._report.damage.append(Damage(offset, intact - offset, reason))
            return intact
        if self._salvager.gave_up:  # the search may have missed entries, so the rest must not be cut off as a torn tail
            self._report.damage.append(Damage(offset, self._source.size - offset, f"{_GAVE_UP}: {reason}"))
        else:
            self._note_tail(offset, reason)
        return -1

    def _note_tail(self, offset: int, reason: str) -> None:
        torn = self._source.last_nonzero(offset, self._salvager.stale_from(offset)) - offset
        if torn <= 0:
            return
        if self._life.is_named and offset == FILE_HEADER_SIZE:
            # A start entry is durable before its file gets this name, so this one was not just being written.
            self._report.damage.append(Damage(offset, torn, reason))
            return
        self._report.torn_bytes = torn
        self._report.torn_reason = reason


class _IdentityWalk(_Walk):
    """A walk through a segment with an identity. The identity decides; timestamps hide nothing."""

    def __init__(self, source: SegmentSource, life: SegmentLife, report: ScanReport) -> None:
        super().__init__(source, life, report, IdentitySalvager(source, life.identity))
        self._effort = SearchEffort(source.size)
        self._before = life.start.created if life.start is not None else 0  # µs, of the entry before; 0 if unknown
        # The front of the last entry (its payload up to its identity's end), and how to unpack an entry like it.
        self._front = b""
        self._unpack: _Unpack = ENTRY_HEADER.unpack_from
        self._fronts: dict[bytes, _Unpack] = {}

    def entries(self, at_end: Callable[[], None], finder: StretchFinder | None = None) -> Iterator[Entry | Stretch]:
        """Yield the entries; small ones as stretches if there is a finder of these."""
        self._check_start()
        most = _NO_BOUND if finder is None else _BETWEEN_STRETCHES
        report, source = self._report, self._source
        checksum, make, latest, fronts = crc32, Entry._make, LATEST_US, self._fronts
        offset = report.end_offset
        while offset >= 0:
            if finder is not None:
                offset = yield from self._stretches(offset, finder)
            window, base = source.window, source.start
            position, last, count = offset - base, self._before, 0
            front, unpack = self._front, self._unpack
            # An entry that ends here or before has the next entry's header and front in the window, too.
            limit = len(window) - ENTRY_HEADER_SIZE - len(front)
            if front and 0 <= position <= limit:
                following = unpack(window, position)
                while count < most:
                    length, timestamp, crc, found = following
                    begin = position + ENTRY_HEADER_SIZE
                    end = begin + length
                    if found != front:
                        front = _front_at(window, begin)
                        if front not in fronts:
                            break
                        unpack = fronts[front]
                        limit = len(window) - ENTRY_HEADER_SIZE - len(front)
                        if position > limit:
                            break
                        following = unpack(window, position)
                        continue
                    if end > limit or length <= len(front):
                        break
                    following = unpack(window, end)
                    payload = window[begin:end]
                    if not last < timestamp < following[1] <= latest or checksum(payload) != crc:
                        break
                    last = timestamp
                    count += 1
                    yield make((base + position, timestamp, payload))
                    position = end
            if count:
                offset = report.end_offset = base + position
                report.entries += count
                self._before = last
                report.last_timestamp = max(report.last_timestamp, last)
            window = payload = memoryview(b"")  # the next one is read into memory of its own, if it is large
            entry, offset = self._step(offset)
            if entry is not None:
                yield entry
                del entry  # as above
        at_end()

    def _stretches(self, offset: int, finder: StretchFinder) -> Generator[Stretch, None, int]:
        """Yield the stretches in the window from an offset on; return the offset after them."""
        source, report = self._source, self._report
        while self._fronts and (
            stretch := finder.find(source.window, source.start, offset, self._fronts, self._before)
        ):
            offset = report.end_offset = stretch.offset + int(stretch.ends[-1])
            report.entries += len(stretch.ends)
            self._before = int(stretch.timestamps[-1])
            report.last_timestamp = max(report.last_timestamp, self._before)
            yield stretch
            del stretch  # it holds the window
        return offset

    def _check_start(self) -> None:
        start = self._life.start
        if start is not None and (timestamp := self._timestamp_at(FILE_HEADER_SIZE)) != start.created:
            self._note_timestamp(FILE_HEADER_SIZE, timestamp)

    def _take(self, payload: memoryview) -> None:
        kind = payload[1]
        if kind in _MARKER_KINDS or kind >= 0x80:
            return
        front = bytes(payload[: identity_offset(payload) + IDENTITY_BYTES])
        if front not in self._fronts:
            if len(self._fronts) >= _KNOWN_FRONTS:
                self._fronts.clear()
            self._fronts[front] = struct.Struct(f"{ENTRY_HEADER.format}{len(front)}s").unpack_from
        self._front, self._unpack = front, self._fronts[front]

    def _settle_timestamp(self, header: Header) -> int:
        timestamp, before = header.timestamp, self._before
        is_last = self._report.end is not None
        if is_last or not before < timestamp < self._timestamp_at(header.end) <= LATEST_US:
            following = [] if is_last else self._timestamps_from(header.end)
            timestamp, damaged = judge(before, timestamp, following, self._source.newest(before))
            if damaged is Culprit.THIS:
                self._note_timestamp(header.offset, header.timestamp)
            elif damaged is Culprit.BEFORE:
                self._note_timestamp(header.offset, before, " of the entry before")
        self._before = timestamp
        return timestamp

    def _timestamp_at(self, offset: int) -> int:
        """Read the timestamp of a header at an offset without any check; 0 at the end of the file."""
        if offset + ENTRY_HEADER_SIZE > self._source.size:
            return 0
        timestamp: int = ENTRY_HEADER.unpack_from(self._source.read(offset, ENTRY_HEADER_SIZE))[1]
        return timestamp

    def _timestamps_from(self, offset: int) -> list[int]:
        """Read the timestamps of the next two entries, as far as they are intact and of this segment."""
        found: list[int] = []
        while len(found) < 2 and (header := self._source.intact_at(offset, self._effort)) is not None:
            if self._salvager.refusal(header):
                break
            found.append(header.timestamp)
            offset = header.end
        return found

    def _note_timestamp(self, offset: int, timestamp: int, whose: str = "") -> None:
        reason = f"timestamp {timestamp}{whose} is damaged; the entry itself is intact"
        self._report.damage.append(Damage(offset, 0, reason))


class _BorderWalk(_Walk):
    """A walk through a file without identities: timestamps decide which entries are stale."""

    def __init__(self, source: SegmentSource, life: SegmentLife, report: ScanReport) -> None:
        self._border = life.border
        self._entries = BorderSalvager(source, life.border)
        super().__init__(source, life, report, self._entries)

    def entries(self, at_end: Callable[[], None]) -> Iterator[Entry]:
        report, source, border = self._report, self._source, self._border
        unpack, checksum, make = ENTRY_HEADER.unpack_from, crc32, Entry._make
        offset = report.end_offset
        while offset >= 0:
            window, base = source.window, source.start
            position, last, count = offset - base, report.last_timestamp, 0
            while 0 <= position <= len(window) - _LEAST_ENTRY_BYTES:
                length, timestamp, crc = unpack(window, position)
                begin = position + ENTRY_HEADER_SIZE
                payload = window[begin : begin + length]
                if (
                    len(payload) != length
                    or length < 2
                    or (window[begin] == ENVELOPE_MARK and window[begin + 1] in _MARKER_KINDS)
                    or not border <= timestamp <= last + JUMP_US
                    or checksum(payload) != crc
                ):
                    break
                if timestamp > last:
                    last = timestamp
                count += 1
                yield make((base + position, timestamp, payload))
                position = begin + length
            if count:
                offset = report.end_offset = base + position
                report.entries += count
                report.last_timestamp = last
            window = payload = memoryview(b"")  # the next one is read into memory of its own, if it is large
            entry, offset = self._step(offset)
            if entry is not None:
                yield entry
                del entry  # as above
        at_end()

    def _settle_timestamp(self, header: Header) -> int:
        is_far = header.timestamp > self._report.last_timestamp + JUMP_US
        return self._plausible(header) if is_far else header.timestamp

    def _plausible(self, header: Header) -> int:
        """Return a timestamp that is far above the one before, or note that it is damaged and return a likely one.

        It is damaged if it is far above the following one as well. The clock takes the place of a missing neighbour.
        """
        source, timestamp = self._source, header.timestamp
        previous = max(self._report.last_timestamp, self._border)
        after = self._entries.intact_at(header.end)
        likely = after.timestamp if after is not None else source.newest(self._border)
        highest = max(previous, likely) if previous else max(likely, source.newest(0))
        if timestamp <= min(highest + JUMP_US, LATEST_US):
            return timestamp
        reason = f"timestamp {timestamp} is damaged; the entry itself is intact"
        self._report.damage.append(Damage(header.offset, 0, reason))
        return previous + 1 if previous else min(likely, LATEST_US)
