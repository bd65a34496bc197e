"""Isolation: cut a batch whose conversion fails again and again by a bug into parts that do not fail.

An entry that fails alone is a dead letter; the rest is uploaded. The parts are found by trial: each segment alone, then
halves of those that fail, down to single entries. The result is durable in the journal before it is used, so that every
later try makes the same objects. This module must not know stores.
"""

from __future__ import annotations

import logging
from typing import Final

from arcpipe.counters import Uploader
from arcpipe.errors import NotAWAL
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.upload import segments
from arcpipe.upload.batch import Batch
from arcpipe.upload.batch_reader import END
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.context import Context
from arcpipe.upload.dead_letters import DeadLetter
from arcpipe.upload.journal import Isolated, MisfitEntry, Part

log = logging.getLogger(__name__)

# Tries that fail by the same bug before the batch is taken apart: the first ones may have been bad luck.
BUG_TRIES: Final = 3


class BugWatch:
    """Count the tries of a batch that failed by the same bug."""

    def __init__(self) -> None:
        self._last = ""
        self._count = 0

    def note(self, error: Exception) -> bool:
        """Note a bug. Returns True when it is time to isolate."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        bug = f"{type(error).__name__} {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else repr(error)
        self._count = self._count + 1 if bug == self._last else 1
        self._last = bug
        return self._count >= BUG_TRIES


def isolate(context: Context, batch: Batch) -> Isolated:
    """Find the parts of a batch that can be converted, and the entries that cannot. For a thread.

    Raises:
        OSError, UnreadableSegment: a segment cannot be read now.
    """
    whole = [Part(name, 0, END) for name in batch.segments]
    if _failure(context, batch, whole) is None:
        log.warning("batch %s fails, but not by its conversion: it is tried again as it is", batch.batch_id)
        return Isolated(whole, [])
    parts: list[Part] = []
    misfits: list[MisfitEntry] = []
    for part in whole:
        _take_apart(context, batch, part, parts, misfits)
    log.error(
        "batch %s cannot be converted as a whole: it is uploaded in %d parts, and %d entries become dead letters",
        batch.batch_id,
        len(parts),
        len(misfits),
    )
    return Isolated(parts, misfits)


def _take_apart(context: Context, batch: Batch, part: Part, parts: list[Part], misfits: list[MisfitEntry]) -> None:
    error = _failure(context, batch, [part])
    if error is None:
        parts.append(part)
        return
    offsets = _offsets(context, part)
    if len(offsets) == 1:
        misfits.append(MisfitEntry(part.segment, offsets[0], f"{type(error).__name__}: {error}"))
        return
    middle = offsets[len(offsets) // 2]
    _take_apart(context, batch, Part(part.segment, part.start, middle), parts, misfits)
    _take_apart(context, batch, Part(part.segment, middle, part.stop), parts, misfits)


def _offsets(context: Context, part: Part) -> list[int]:
    try:
        found = [entry.offset for entry in segments.open_scan(context.directory, part.segment)]
    except OSError as error:
        raise segments.UnreadableSegment(part.segment, error) from error
    return [offset for offset in found if part.start <= offset < part.stop]


def _failure(context: Context, batch: Batch, parts: list[Part]) -> Exception | None:
    """Convert these parts without putting anything. Returns the bug that this fails by, or None."""

    def drop_file(key: str, spool: Spool, rows: Rows) -> None:
        spool.close()

    def drop_letter(letter: DeadLetter) -> None:
        pass

    tables = BatchTables(
        batch.batch_id,
        batch.manifest.layout,
        context.parquet(),
        context.registry.copy(),
        threads=context.settings.uploader.threads,
        spool=context.spool,
        hidden=batch.manifest.hidden,
        on_file=drop_file,
        on_dead_letter=drop_letter,
        careful=batch.careful,
    )
    try:
        with tables:
            for part in parts:
                _add(context, part, tables)
            tables.finish()
    except (OSError, MemoryError, segments.UnreadableSegment):
        raise
    except Exception as error:
        return error
    return None


def _add(context: Context, part: Part, tables: BatchTables) -> None:
    context.block[Uploader.STEPS] += 1
    try:
        scan = segments.open_scan(context.directory, part.segment)
        iterator = iter(scan)
    except (FileNotFoundError, NotAWAL):  # moved to quarantine, or it will be by the next try
        return
    except OSError as error:
        raise segments.UnreadableSegment(part.segment, error) from error
    while True:
        try:
            entry = next(iterator, None)
        except OSError as error:
            raise segments.UnreadableSegment(part.segment, error) from error
        if entry is None or entry.offset >= part.stop:
            return
        context.block[Uploader.STEPS] += 1
        if entry.offset >= part.start:
            tables.add(entry.timestamp, entry.payload, 0)
