"""The ledger: every number that this WAL directory ever issued for a commit. One file, `tables/ledger.json`.

A number (`seq`) is an era << 32 | counter, and only grows. A table's marker is the number of the last commit of a node.
The directory knows each marker of its own: it issued the number, and the ledger says so before anything else does. A
marker that it did not issue was set by another copy of this directory: one that was restored from an old backup, or
that runs beside it. Then nobody knows which batches are in the tables, and nothing may be committed.

An era is a start of the server that issued numbers. Its counter begins at a random one: a copy that was restored counts
its starts like the original, and would issue the same numbers otherwise, so that its own ledger knew them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.wal.checked_json import decode, encode
from arcpipe.wal.directory import NodeIdentity

VERSION: Final = 1
FILENAME: Final = "ledger.json"
MOST_RANGES: Final = 1_000
"""Eras in the file, of 40 bytes each; older ones are known by their number alone."""

_COUNTER_BITS: Final = 32
_FIRST_BITS: Final = 31  # of the random first counter: as many numbers are left for the era
_MASK: Final = (1 << _COUNTER_BITS) - 1


class Range(msgspec.Struct, frozen=True, array_like=True):
    """The counters that an era issued, from the first to the last."""

    era: int
    first: int
    last: int


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    node: str  # of the last era
    boot: int
    forgotten: int  # eras up to this one are not among the ranges
    ranges: list[Range]


class Ledger:
    """The numbers of one WAL directory. One process issues; others load it to check markers."""

    def __init__(self, path: str, content: _Content | None = None) -> None:
        self.path = path
        self._content = content or _Content(VERSION, "", 0, 0, [])

    @classmethod
    def load(cls, folder: str | os.PathLike[str], disk: Disk) -> Ledger:
        """Load the ledger in `tables/`; an empty one if there is none.

        Raises:
            OSError: it cannot be read.
            DamagedFile: its content is damaged.
            UnknownVersion: another version of arcpipe wrote it.
        """
        path = os.path.join(folder, FILENAME)
        return cls(path, durable.load(disk, path, lambda data: _decode(data, path)))

    @property
    def last(self) -> int:
        """The last number that was issued; 0 if none was."""
        ranges = self._content.ranges
        return _seq(ranges[-1].era, ranges[-1].last) if ranges else 0

    def has_issued(self, seq: int) -> bool:
        """Tell whether this directory issued a number."""
        era, counter = seq >> _COUNTER_BITS, seq & _MASK
        if era <= self._content.forgotten:
            return era > 0
        return any(one.era == era and one.first <= counter <= one.last for one in self._content.ranges)

    def issue(self, node: NodeIdentity, write: Callable[[str, bytes], None]) -> int:
        """Issue the next number, and return it once the ledger that has it is durable.

        Args:
            write: replaces a file durably.

        Raises:
            OSError: the number may be in the file or not. The next call of this process issues it again; one of a later
                process issues the one after it.
        """
        content = self._content
        ranges = list(content.ranges)
        if ranges and (content.node, content.boot) == (node.node, node.boot):
            ranges[-1] = msgspec.structs.replace(ranges[-1], last=ranges[-1].last + 1)
        else:
            # A directory that was given another identity counts its starts anew, and its numbers go on all the same.
            era = max(node.boot, ranges[-1].era + 1 if ranges else 1)
            first = 1 + secrets.randbits(_FIRST_BITS)
            ranges.append(Range(era, first, first))
        forgotten = content.forgotten
        while len(ranges) > MOST_RANGES:
            forgotten = ranges.pop(0).era
        new = _Content(VERSION, node.node, node.boot, forgotten, ranges)
        write(self.path, encode(new))
        self._content = new
        return self.last


def _seq(era: int, counter: int) -> int:
    return era << _COUNTER_BITS | counter


def _decode(data: bytes, path: str) -> _Content:
    return decode(data, _Content, VERSION, path, "Nothing is committed to tables until that version runs again")
