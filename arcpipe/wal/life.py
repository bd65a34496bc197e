"""Find out which entries of a file belong to its segment, before any is read: by identity, or by a border in time.

An intact start entry has the identity. If it is damaged, the identity is taken from the first of these that has one:

1. The bytes of the damaged start entry, if an intact entry has the same identity.
2. The first intact entry whose identity has the slot and number in the file's name, and the end entry in the file's
   last bytes. If they differ, the right one is the one that does not lie within a value of the other.

Without an identity, the second in the file's name is the border: older entries are stale.

While the start entry is intact, nothing that a client sends can be taken for an entry of the segment.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import msgspec

from arcpipe.disk import Disk
from arcpipe.wal.directory import SegmentName, parse_filename
from arcpipe.wal.format import (
    END_ENTRY_BYTES,
    ENTRY_HEADER_SIZE,
    FILE_HEADER_SIZE,
    IDENTITY_BYTES,
    StartMeta,
    identity_of,
    is_identity_of,
    make_identity,
    unpack_end,
    unpack_start,
)
from arcpipe.wal.salvage import BorderSalvager, IdentitySalvager, Salvager
from arcpipe.wal.source import Header, SearchEffort, SegmentSource
from arcpipe.wal.timestamps import LATEST_US

_START_OFFSET: Final = FILE_HEADER_SIZE
# Bytes. More than any start entry has.
_HEAD_BYTES: Final = 4096
# Bytes of an identity that a file's name tells: slot and number.
_NAMED_BYTES: Final = 8


class SegmentLife(NamedTuple):
    """One use of a segment's file: tells its entries from stale ones."""

    start: StartMeta | None  # None if the file has no intact start entry of this segment
    identity: bytes  # empty if the entries have none
    border: int  # µs: without an identity, entries below it are stale
    offset: int  # where the first entry is to be read
    is_named: bool  # the file has the name of one of our segments: it begins with a start entry, or is damaged

    def salvager(self, source: SegmentSource) -> Salvager:
        """Make the salvager that finds this segment's entries after damage."""
        return IdentitySalvager(source, self.identity) if self.identity else BorderSalvager(source, self.border)


def settle(source: SegmentSource) -> SegmentLife:
    """Find out which entries of a file belong to its segment.

    Raises:
        OSError: a read failed.
    """
    parsed = parse_filename(os.path.basename(source.path))
    name = parsed[0] if parsed is not None and parsed[0].seq > 0 else None
    border = name.created_us if name is not None else 0
    found = source.intact_at(_START_OFFSET, SearchEffort(source.size))
    if found is not None:
        payload = source.read(found.payload, found.length)
        start = unpack_start(payload)
        if start is None and not identity_of(payload):  # another program's file
            return SegmentLife(None, b"", border, _START_OFFSET, name is not None)
        # A start entry that is older than the name belongs to an older segment: the rename reached the disk, but the
        # new contents did not, because the disk acknowledged a sync that it had not done.
        if start is not None and not 0 <= start.created <= LATEST_US:  # no clock shows such a time
            start = msgspec.structs.replace(start, created=border)
        if start is not None and (name is None or name[::2] == (start.slot, start.seq) or start.created >= border):
            return SegmentLife(start, identity_of(payload), start.created, found.end, name is not None)
    is_arcs = parsed is not None and name is None  # Arc's files have no identities, except in clients' values
    identity = _learn_identity(source, name) if not is_arcs else b""
    return SegmentLife(None, identity, border, _START_OFFSET, name is not None)


def read_start(path: str, disk: Disk) -> StartMeta | None:
    """Read the start entry of a file, whatever its name; None if it is not intact.

    Raises:
        OSError: it cannot be read.
    """
    source = SegmentSource(path, disk, window_bytes=_HEAD_BYTES)
    found = source.intact_at(_START_OFFSET, SearchEffort(source.size))
    return unpack_start(source.read(found.payload, found.length)) if found is not None else None


def has_entries(source: SegmentSource, life: SegmentLife) -> bool:
    """Tell if a file with a damaged file header holds an entry of the segment that its name or start entry tells."""
    if life.start is not None:
        return True
    return life.is_named and life.salvager(source).next_entry(_START_OFFSET - 1) is not None


def _learn_identity(source: SegmentSource, name: SegmentName | None) -> bytes:
    """Learn the identity of a segment whose start entry is damaged; empty if its entries have none."""
    claimed = identity_of(source.read(_START_OFFSET + ENTRY_HEADER_SIZE, END_ENTRY_BYTES))
    if name is not None and not is_identity_of(claimed, name.slot, name.seq):
        claimed = b""
    if claimed and IdentitySalvager(source, claimed).next_entry(_START_OFFSET) is not None:
        return claimed
    if name is None:
        first = BorderSalvager(source, 0).first_intact(_START_OFFSET)
        return identity_of(source.front(first)) if first is not None else b""
    known = make_identity(name.slot, name.seq)[:_NAMED_BYTES]
    first = next(source.find_identified(_START_OFFSET, known, SearchEffort(source.size)), None)
    last = _find_end(source, known)
    if first is None or last is None:
        found = first or last
        return _identity_at(source, found) if found is not None else claimed
    identity, at_the_end = _identity_at(source, first), _identity_at(source, last)
    if identity == at_the_end or any(
        entry.payload <= last.offset < entry.end
        for entry in source.find_identified(first.offset, identity, SearchEffort(source.size))
    ):
        return identity  # the apparent end entry lies within a value
    return at_the_end


def _find_end(source: SegmentSource, known: bytes) -> Header | None:
    """Find the end entry in a file's last bytes: its identity begins with `known`, and it names its own offset."""
    found = None
    for entry in source.find_identified(
        max(_START_OFFSET, source.size - END_ENTRY_BYTES), known, SearchEffort(source.size)
    ):
        end = unpack_end(source.read(entry.payload, entry.length))
        if end is not None and end.offset == entry.offset:
            found = entry
    return found


def _identity_at(source: SegmentSource, entry: Header) -> bytes:
    identity = identity_of(source.front(entry))
    assert len(identity) == IDENTITY_BYTES, f"BUG: {len(identity)} bytes of identity at offset {entry.offset}"
    return identity
