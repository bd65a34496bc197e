"""Segments as the uploader reads them: find those that are gone, unreadable, or hold less than before.

This module must not know conversion or stores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import NamedTuple

from arcpipe import durable, logs
from arcpipe.errors import ArcpipeError, NotAWAL
from arcpipe.upload.journal import SegmentRecord
from arcpipe.wal import verdict
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.reader import ScanReport, SegmentScan

log = logging.getLogger(__name__)


class UnreadableSegment(ArcpipeError):
    """A read of a segment failed. It is retried; until then nobody knows its content."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"segment {name} cannot be read: {error}")
        self.name = name


class MissingSegment(ArcpipeError):
    """A segment of a batch is gone."""


class Examined(NamedTuple):
    """A batch's segments compared with its journal."""

    missing: list[str]
    short: list[str]  # they have fewer entries than an earlier try read, or are no WAL any more


def open_scan(directory: WALDirectory, name: str) -> SegmentScan:
    """Open a segment for the uploader."""
    return SegmentScan(os.path.join(directory.path, name), disk=directory.disk, gently=True)


def keeps_original(report: ScanReport) -> bool:
    """Tell whether a segment is archived as `.recovered` once its entries are in the store."""
    return verdict.keeps_original(report.verdict) or (report.end is not None and report.end.recovered)


def quarantine(directory: WALDirectory, name: str, error: NotAWAL) -> None:
    """Move away a file that is no WAL at all."""
    log.error("%s; moved to %s", error, directory.quarantine, extra=logs.EACH)
    durable.move(directory.disk, os.path.join(directory.path, name), os.path.join(directory.quarantine, name))


def missing(directory: WALDirectory, names: Iterable[str], known: dict[str, SegmentRecord]) -> list[str]:
    """Name the segments that are gone, except those that an earlier try moved to quarantine.

    A segment counts as there if the operating system cannot tell: reading it will raise the error.

    Raises:
        OSError: the quarantine cannot be searched for a segment that is not in the WAL directory.
    """
    disk = directory.disk
    gone = []
    for name in names:
        try:
            is_there = disk.size(os.path.join(directory.path, name)) is not None
        except OSError:
            is_there = True
        if is_there:
            continue
        had_entries = name in known and known[name].entries > 0
        if had_entries or disk.size(os.path.join(directory.quarantine, name)) is None:
            gone.append(name)
    return gone


def examine(directory: WALDirectory, names: Iterable[str], known: dict[str, SegmentRecord]) -> Examined:
    """Read segments that an earlier try read, before any of their rows is put again. For a thread.

    Raises:
        UnreadableSegment: a read failed.
    """
    names = list(names)
    gone = missing(directory, names, known)
    short = []
    for name in names:
        record = known.get(name)
        if record is None or not record.entries or name in gone:
            continue
        found = _count(directory, name, record.offset)
        if found < record.entries:
            log.error(
                "segment %s had %d entries up to offset %d, and has %d",
                *(name, record.entries, record.offset, found),
                extra=logs.EACH,
            )
            short.append(name)
    return Examined(gone, short)


def probe(directory: WALDirectory, name: str) -> None:
    """Read a segment to its end. For a thread.

    Raises:
        UnreadableSegment: a read failed.
    """
    _count(directory, name, -1)


def _count(directory: WALDirectory, name: str, upto: int) -> int:
    """Count the entries that begin at or before an offset."""
    count = 0
    try:
        for offset, _, _ in open_scan(directory, name):
            count += offset <= upto
    except (NotAWAL, FileNotFoundError):
        return count
    except OSError as error:
        raise UnreadableSegment(name, error) from error
    return count
