"""Read the entries of a batch, judge its segments, and keep account of how far they were read. For one thread."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator
from typing import Final

import numpy as np

from arcpipe import logs
from arcpipe.counters import Uploader
from arcpipe.errors import NotAWAL
from arcpipe.upload import segments
from arcpipe.upload.batch import Batch
from arcpipe.upload.batch_findings import BatchFindings
from arcpipe.upload.context import Context
from arcpipe.upload.journal import Part, SegmentRecord
from arcpipe.wal.reader import Entry, ScanReport, SegmentScan
from arcpipe.wal.report import damage_count, end_problem
from arcpipe.wal.stretch import Stretch

log = logging.getLogger(__name__)

# Entries between two counted steps: a counter in shared memory costs as much as the rest of the loop.
_STEP_ENTRIES: Final = 64

END: Final = 1 << 62
"""An offset after every entry."""


_OFFSET_BITS: Final = 44  # of an origin, below the number of its segment in the batch


class BatchReader:
    """Read the segments of one batch. `reports` are those of segments that were read to their end, by name."""

    def __init__(self, context: Context, batch: Batch, found: BatchFindings) -> None:
        self.reports: dict[str, ScanReport] = {}
        self._context = context
        self._batch = batch
        self._found = found
        self._done: deque[SegmentRecord] = deque()  # segments that were read whole
        self._names: list[str] = []  # of the segments that were opened, by their numbers
        self._position = ("", 0, 0)  # the one at hand: name, entries, offset of the last; replaced as one

    def progress(self) -> list[SegmentRecord]:
        """Take how far the segments have been read since the last call. Any one thread may call it."""
        name, entries, offset = self._position
        done = [SegmentRecord(name, entries, offset, False)] if entries else []
        while self._done:
            done.append(self._done.popleft())
        return done

    def place(self, origin: int) -> tuple[str, int]:
        """Return the segment and the offset that an origin stands for."""
        return self._names[origin >> _OFFSET_BITS], origin & ((1 << _OFFSET_BITS) - 1)

    def entries(self, part: Part) -> Iterator[tuple[int, memoryview, int]]:
        """Yield the entries of a part one by one: timestamp, payload and origin. Otherwise as `items`."""
        for item, origin in self.items(part):
            if isinstance(item, Entry):
                yield item.timestamp, item.payload, origin
                continue
            for number, offset in enumerate(item.offsets.tolist()):
                payload = item.data[int(item.starts[number]) : int(item.ends[number])]
                yield int(item.timestamps[number]), payload, origin + offset

    def items(self, part: Part) -> Iterator[tuple[Entry | Stretch, int]]:
        """Yield the entries of a part, small ones by stretches. Judges a segment that is read to its end.

        With an entry comes its origin, a number that `place` reads; with a stretch, the one to be added to offsets.

        Raises:
            UnreadableSegment: a read failed.
            MissingSegment: the segment is gone.
        """
        context, name = self._context, part.segment
        if name not in self._names:
            self._names.append(name)
        try:
            scan = segments.open_scan(context.directory, name)
            if not (yield from self._items(scan, part, self._names.index(name) << _OFFSET_BITS)):
                return
        except FileNotFoundError as error:
            if not os.path.exists(os.path.join(context.directory.quarantine, name)):  # by an earlier try
                raise segments.MissingSegment(f"segment {name} of batch {self._batch.batch_id} is gone") from error
        except NotAWAL as error:
            segments.quarantine(context.directory, name, error)
            context.block[Uploader.DAMAGED] += 1
        except OSError as error:
            raise segments.UnreadableSegment(name, error) from error
        else:
            self._judge(name, scan.report)

    def _items(self, scan: SegmentScan, part: Part, base: int) -> Generator[tuple[Entry | Stretch, int], None, bool]:
        """Yield the items of a scan that are in a part. Returns whether all of the file was read."""
        block = self._context.block
        entries = 0
        for item in scan.by_stretches():
            if isinstance(item, Stretch):
                block[Uploader.STEPS] += 1
                offsets = item.offsets
                first, last = np.searchsorted(offsets, (part.start, part.stop)).tolist()
                if first < last:
                    self._position = (part.segment, entries + last, int(offsets[last - 1]))
                    yield item.cut(first, last), base
                if last < len(offsets):
                    return False
                entries += last
                continue
            entries += 1
            if not entries % _STEP_ENTRIES:
                block[Uploader.STEPS] += 1
            if item.offset < part.start:
                continue
            if item.offset >= part.stop:
                return False
            self._position = (part.segment, entries, item.offset)
            yield item, base + item.offset
            del item  # as in the caller
        return True

    def _judge(self, name: str, report: ScanReport) -> None:
        block = self._context.block
        if name in self.reports:  # read in parts
            return
        problem = end_problem(report, was_active=False)
        block[Uploader.DAMAGED] += damage_count(report, problem)
        for damage in report.damage:
            log.error(
                "segment %s: %s at offset %d; skipped %d bytes",
                *(name, damage.reason, damage.offset, damage.length),
                extra=logs.EACH,
            )
        if problem:
            log.error("segment %s: %s", name, problem, extra=logs.EACH)
        block[Uploader.STEPS] += 1
        block[Uploader.ENTRIES] += report.entries
        self.reports[name] = report
        self._done.append(SegmentRecord(name, report.entries, report.end_offset, True))
        if report.damage or problem:
            reason = f"{report.damage[0].reason} at offset {report.damage[0].offset}" if report.damage else problem
            # Counted as recovery counts a segment that it seals unchanged: without its missing end.
            self._found.add_damaged(name, len(report.damage) or 1, reason)
        self._found.note_early()
