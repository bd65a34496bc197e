"""Read the entries of a batch, judge its segments, and keep account of how far they were read. For one thread."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from arcpipe import logs
from arcpipe.counters import Uploader
from arcpipe.errors import NotAWAL
from arcpipe.upload import segments
from arcpipe.upload.batch import Batch
from arcpipe.upload.batch_findings import BatchFindings
from arcpipe.upload.context import Context
from arcpipe.upload.journal import Part, SegmentRecord
from arcpipe.wal.reader import ScanReport
from arcpipe.wal.report import damage_count, end_problem

log = logging.getLogger(__name__)

# Entries between two counted steps: a counter in shared memory costs as much as the rest of the loop.
_STEP_ENTRIES: Final = 64

END: Final = 1 << 62
"""An offset after every entry."""


class Origin(NamedTuple):
    """The place of an entry: names its dead letter, should it become one."""

    segment: str
    offset: int


class BatchReader:
    """Read the segments of one batch. `reports` are those of segments that were read to their end, by name."""

    def __init__(self, context: Context, batch: Batch, found: BatchFindings) -> None:
        self.reports: dict[str, ScanReport] = {}
        self._context = context
        self._batch = batch
        self._found = found
        self._done: deque[SegmentRecord] = deque()  # segments that were read whole
        self._position = ("", 0, 0)  # the one at hand: name, entries, offset of the last; replaced as one

    def progress(self) -> list[SegmentRecord]:
        """Take how far the segments have been read since the last call. Any one thread may call it."""
        name, entries, offset = self._position
        done = [SegmentRecord(name, entries, offset, False)] if entries else []
        while self._done:
            done.append(self._done.popleft())
        return done

    def entries(self, part: Part) -> Iterator[tuple[int, memoryview, Origin]]:
        """Yield the entries of a part: timestamp, payload and origin. Judges a segment that is read to its end.

        Raises:
            UnreadableSegment: a read failed.
            MissingSegment: the segment is gone.
        """
        context, name = self._context, part.segment
        entries = 0
        try:
            scan = segments.open_scan(context.directory, name)
            for offset, timestamp, payload in scan:
                entries += 1
                if not entries % _STEP_ENTRIES:
                    context.block[Uploader.STEPS] += 1
                if offset < part.start:
                    continue
                if offset >= part.stop:
                    return
                self._position = (name, entries, offset)
                yield timestamp, payload, Origin(name, offset)
                del payload  # as in the caller
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
