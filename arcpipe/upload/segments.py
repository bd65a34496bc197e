"""Segments as the uploader reads them: which are gone, unreadable, or hold less than they did.

The only place of the uploader that judges a scan. It must not know conversion or stores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import NamedTuple

from arcpipe import durable, logs
from arcpipe.errors import ArcpipeError, NotAWAL
from arcpipe.upload.journal import Segment
from arcpipe.wal import verdict
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.reader import ScanReport, SegmentScan

log = logging.getLogger(__name__)


class UnreadableSegment(ArcpipeError):
    """A read of a segment failed. It is tried again; nobody knows what is in it until then."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"segment {name} cannot be read: {error}")
        self.name = name


class MissingSegment(ArcpipeError):
    """A segment of a batch is gone."""


class Examined(NamedTuple):
    """What a batch's segments are, compared with what its journal says of them."""

    missing: list[str]
    short: list[str]  # with fewer entries than an earlier try read, or no WAL at all any more


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


def missing(directory: WALDirectory, names: Iterable[str], known: dict[str, Segment]) -> list[str]:
    """Name the segments that are gone, but for those that an earlier try moved to quarantine.

    One that the operating system does not tell about is not: reading it will say what is wrong.

    Raises:
        OSError: it cannot be told of one that is not in the WAL directory.
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


def examine(directory: WALDirectory, names: Iterable[str], known: dict[str, Segment]) -> Examined:
    """Read segments that an earlier try read before anything of theirs is put again. For a thread.

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
    """The entries that begin at or before an offset."""
    count = 0
    try:
        for offset, _, _ in open_scan(directory, name):
            count += offset <= upto
    except (NotAWAL, FileNotFoundError):
        return count
    except OSError as error:
        raise UnreadableSegment(name, error) from error
    return count
