"""Groups: entries that go to disk together. And a writer's figures of them. Knows nothing of files or threads."""

from __future__ import annotations

from typing import Any, Final

from arcpipe.counters import GROUP_BOUNDS, LATENCY_BOUNDS_US, Histogram
from arcpipe.disk import Buffer
from arcpipe.wal.format import (
    ENTRY_HEADER,
    ENTRY_HEADER_SIZE,
    IDENTITY_BYTES,
    AnyPrefix,
    crc32,
    entry_head,
    identity_offset,
    join_entry,
)

# Bytes. A body up to this size is joined with its header: a small copy is cheaper than one more vector of the write.
SMALL_BODY_BYTES: Final = 2048
# Takes the place of the identity in a group that was begun while there was no segment.
NO_IDENTITY: Final = bytes(IDENTITY_BYTES)


class Group:
    """Entries of one segment: their buffers in order, and the requests that wait for them.

    A group carries the identity of the segment that was current when it began. `fit` moves it to another one. One
    thread at a time uses a group. `add` also uses the prefix, so only the thread that owns the prefixes calls it.
    """

    __slots__ = ("buffers", "entries", "first_timestamp", "identity", "last_timestamp", "records", "size", "waiters")

    def __init__(self, identity: bytes = NO_IDENTITY) -> None:
        self.identity = identity
        self.buffers: list[Buffer] = []
        self.waiters: list[Any] = []
        self.size = 0
        self.entries = 0
        self.records = 0
        self.first_timestamp = 0
        self.last_timestamp = 0

    def add(
        self, prefix: AnyPrefix, body: bytes | memoryview, records: int, timestamp: int, front: bytes = b""
    ) -> None:
        """Add one entry. Its timestamp must be above all timestamps in the group.

        Args:
            front: a few bytes between prefix and body: the key for a `KeyedPrefix`, then the first ones of the body.
        """
        if prefix.identity is not self.identity:
            prefix.bind(self.identity)
        size = len(body)
        if size <= SMALL_BODY_BYTES:
            entry = join_entry(prefix.data, prefix.crc, front, body, timestamp)
            self.buffers.append(entry)
            self.size += len(entry)
        else:
            head = entry_head(prefix, body, timestamp, front)
            self.buffers.append(head)
            self.buffers.append(body)
            self.size += len(head) + size
        if not self.entries:
            self.first_timestamp = timestamp
        self.last_timestamp = timestamp
        self.entries += 1
        self.records += records

    def fit(self, identity: bytes, above: int) -> None:
        """Give every entry this identity and a timestamp above `above`.

        Only heads are written anew: large bodies stay where they are. If all timestamps are above already, they are
        kept. Needed only after a rotation between the entries and their commit, or a step back of the clock.

        Args:
            identity: the identity of the segment that takes the group.
            above: µs since the epoch.
        """
        restamp = self.first_timestamp <= above
        if identity == self.identity and not restamp:
            return
        buffers = self.buffers
        timestamp, index = above, 0
        while index < len(buffers):
            head = bytearray(buffers[index])
            length, stamped, crc = ENTRY_HEADER.unpack_from(head)
            timestamp = timestamp + 1 if restamp else stamped
            is_whole = len(head) == ENTRY_HEADER_SIZE + length
            if identity != self.identity:
                payload = memoryview(head)[ENTRY_HEADER_SIZE:]
                at = identity_offset(payload)
                assert at >= 0, f"BUG: an entry of a group names no segment: {bytes(payload[:64])!r}"
                payload[at : at + IDENTITY_BYTES] = identity
                crc = crc32(payload)
                if not is_whole:
                    crc = crc32(buffers[index + 1], crc)
            ENTRY_HEADER.pack_into(head, 0, length, timestamp, crc)
            buffers[index] = head
            index += 1 if is_whole else 2
        self.identity = identity
        if restamp:
            self.first_timestamp, self.last_timestamp = above + 1, timestamp


class WALStats:
    """A writer's figures since it was made; each field has one writing thread."""

    __slots__ = (
        "bytes",
        "commits",
        "entries",
        "failures",
        "group_entries",
        "last_error",
        "last_failure_us",
        "lost_records",
        "records",
        "rotations",
        "sync_us",
        "syncs",
    )

    def __init__(self) -> None:
        self.entries = 0
        self.records = 0
        self.bytes = 0
        self.commits = 0
        self.syncs = 0
        self.sync_us = Histogram(LATENCY_BOUNDS_US)
        self.group_entries = Histogram(GROUP_BOUNDS)
        self.rotations = 0
        self.failures = 0  # refused commits, and failed background syncs
        self.last_failure_us = 0  # by the steady clock
        self.last_error = ""
        self.lost_records = 0  # with wal.enabled = false: acknowledged, and never written
