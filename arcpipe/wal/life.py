"""Settles whose entries a segment's file holds, before any is read: by its start entry, or by what else is there.

A start entry says it all. Where it is damaged, these are asked, in this order:

1. The bytes of the damaged start entry itself, if an intact entry has the same identity.
2. The first intact entry whose identity has the slot and number in the file's name, and the end entry in the file's
   last bytes. Where both are there and differ, the one is right that is not within a value of the other.
3. The file's name. Its second is a border for files without identities.

While the start entry is intact, nothing that a client sends can be taken for an entry of the segment.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

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
from arcpipe.wal.source import Effort, Header, Source

_START_OFFSET: Final = FILE_HEADER_SIZE
# More than any start entry has.
_HEAD_BYTES: Final = 4096
# An identity's bytes that a file's name tells: slot and number.
_NAMED_BYTES: Final = 8


class Life(NamedTuple):
    """Whose entries these are."""

    start: StartMeta | None  # None if there is no intact start entry of this segment
    identity: bytes  # empty if entries name no segment
    border: int  # µs: without an identity, entries below it are stale
    offset: int  # where the first entry is to be read
    is_named: bool  # the file has the name of one of our segments: it begins with a start entry, or is damaged

    def salvager(self, source: Source) -> Salvager:
        """How to find this segment's entries after damage."""
        return IdentitySalvager(source, self.identity) if self.identity else BorderSalvager(source, self.border)


def settle(source: Source) -> Life:
    """Find out whose entries a file holds.

    Raises:
        OSError: a read failed.
    """
    parsed = parse_filename(os.path.basename(source.path))
    name = parsed[0] if parsed is not None and parsed[0].seq > 0 else None
    border = name.created_us if name is not None else 0
    found = source.intact_at(_START_OFFSET, Effort(source.size))
    if found is not None:
        payload = source.read(found.payload, found.length)
        start = unpack_start(payload)
        if start is None and not identity_of(payload):  # another program's file
            return Life(None, b"", border, _START_OFFSET, name is not None)
        # A start entry that is older than the name is another segment's: a disk that says "synced", and is not, may
        # keep the name alone.
        if start is not None and (name is None or name[::2] == (start.slot, start.seq) or start.created >= border):
            return Life(start, identity_of(payload), start.created, found.end, name is not None)
    is_arcs = parsed is not None and name is None  # which never has identities, but in clients' values
    identity = _learn_identity(source, name) if not is_arcs else b""
    return Life(None, identity, border, _START_OFFSET, name is not None)


def read_start(path: str, disk: Disk) -> StartMeta | None:
    """The start entry of a file, if that is intact; whatever the file's name is.

    Raises:
        OSError: it cannot be read.
    """
    source = Source(path, disk, window_bytes=_HEAD_BYTES)
    found = source.intact_at(_START_OFFSET, Effort(source.size))
    return unpack_start(source.read(found.payload, found.length)) if found is not None else None


def has_entries(source: Source, life: Life) -> bool:
    """Whether a file with a damaged file header holds anything of the segment that its name or its start tells of."""
    if life.start is not None:
        return True
    return life.is_named and life.salvager(source).next_entry(_START_OFFSET - 1) is not None


def _learn_identity(source: Source, name: SegmentName | None) -> bytes:
    """The identity of a segment whose start entry is damaged; no bytes if its entries have none."""
    claimed = identity_of(source.read(_START_OFFSET + ENTRY_HEADER_SIZE, END_ENTRY_BYTES))
    if name is not None and not is_identity_of(claimed, name.slot, name.seq):
        claimed = b""
    if claimed and IdentitySalvager(source, claimed).next_entry(_START_OFFSET) is not None:
        return claimed
    if name is None:
        first = BorderSalvager(source, 0).first_intact(_START_OFFSET)
        return identity_of(source.front(first)) if first is not None else b""
    known = make_identity(name.slot, name.seq)[:_NAMED_BYTES]
    first = next(source.find_identified(_START_OFFSET, known, Effort(source.size)), None)
    last = _find_end(source, known)
    if first is None or last is None:
        found = first or last
        return _identity_at(source, found) if found is not None else claimed
    identity, at_the_end = _identity_at(source, first), _identity_at(source, last)
    if identity == at_the_end or any(
        entry.payload <= last.offset < entry.end
        for entry in source.find_identified(first.offset, identity, Effort(source.size))
    ):
        return identity  # what looks like an end entry is within a value
    return at_the_end


def _find_end(source: Source, known: bytes) -> Header | None:
    """The end entry in a file's last bytes, if its identity begins with these bytes and it says where it stands."""
    found = None
    for entry in source.find_identified(max(_START_OFFSET, source.size - END_ENTRY_BYTES), known, Effort(source.size)):
        end = unpack_end(source.read(entry.payload, entry.length))
        if end is not None and end.offset == entry.offset:
            found = entry
    return found


def _identity_at(source: Source, entry: Header) -> bytes:
    identity = identity_of(source.front(entry))
    assert len(identity) == IDENTITY_BYTES, f"BUG: {len(identity)} bytes of identity at offset {entry.offset}"
    return identity
