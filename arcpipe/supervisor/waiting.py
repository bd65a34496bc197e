"""The time at which each segment's wait for its upload began, in the steady clock.

A segment's own timestamps are times of day. If somebody sets the machine's clock, they no longer tell the age of the
segment. So the supervisor notes the time of the first record while the worker writes the segment. For a segment that it
never saw active (of an earlier run, or sealed within a moment) it converts the file's own time once, when it first sees
the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from arcpipe.clock import ahead_us, steady_us
from arcpipe.counters import Counters, Worker
from arcpipe.wal.directory import SegmentFile, SegmentName
from arcpipe.wal.reader import first_timestamp

# Segments that are in no listing and are still remembered, such as those being sealed, which a failing disk delays.
_UNLISTED: Final = 1024
# Looks at a file that is not in the page cache, before its modification time is taken: its sectors may be bad.
_MOST_LOOKS: Final = 8


class _Since(NamedTuple):
    us: int  # of the steady clock
    is_sure: bool = True  # False: it is the file's modification time, which is a little too late
    looks: int = 0  # at the file, which was not in the page cache
    ahead: int = 0  # µs by which the time of day was ahead when the file was first seen


class Waiting:
    """The segments that the supervisor knows, and the time since when each waits."""

    def __init__(self, counters: Counters) -> None:
        self._blocks = [counters.worker(slot) for slot in range(1, counters.workers + 1)]
        self._since: dict[SegmentName, _Since] = {}

    def note_active(self) -> None:
        """Note the active segments of all workers. Call it a few times a second, before `oldest`."""
        for slot, block in enumerate(self._blocks, 1):
            first = block[Worker.SEGMENT_FIRST_US]
            seq, created = block[Worker.SEGMENT_SEQ], block[Worker.SEGMENT_CREATED_US]
            if first and seq and first == block[Worker.SEGMENT_FIRST_US]:  # otherwise the worker is changing it
                self._since[SegmentName.at(slot, created, seq)] = _Since(first)

    def oldest(self, sealed: Sequence[SegmentFile], left: Sequence[SegmentFile]) -> int:
        """Return the time since when the oldest record waits, in µs of the steady clock; 0 if there is none.

        Args:
            sealed: segments that wait for the uploader.
            left: segments that are being sealed, or of dead workers. This does not read them.
        """
        known = self._since
        found = {file.name: known[file.name] if file.name in known else _of_left(file) for file in left}
        found |= {file.name: known[file.name] if file.name in known else _of_sealed(file) for file in sealed}
        self._look_into_one(sealed, found)
        oldest = min((since.us for since in found.values()), default=0)
        rest = [item for item in known.items() if item[0] not in found]
        self._since = {**dict(rest[-_UNLISTED:]), **found}
        return oldest

    def oldest_of(self, files: Sequence[SegmentFile]) -> int:
        """Return the same of some files that the last `oldest` got."""
        return min((self._since[file.name].us for file in files if file.name in self._since), default=0)

    def _look_into_one(self, sealed: Sequence[SegmentFile], found: dict[SegmentName, _Since]) -> None:
        """Read the first timestamp of one unsure segment, the oldest: a backlog may have thousands of them.

        The disk is not waited for: this process must go on where it fails.
        """
        unsure = [file for file in sealed if not found[file.name].is_sure]
        if not unsure:
            return
        file = min(unsure, key=lambda one: found[one.name].us)
        since = found[file.name]
        us = since.us
        try:
            first = first_timestamp(file.path, may_wait=False)
        except FileNotFoundError:  # uploaded since the listing
            del found[file.name]
            return
        except BlockingIOError:  # it is being fetched
            looks = since.looks + 1
            found[file.name] = since._replace(looks=looks, is_sure=looks == _MOST_LOOKS)
            return
        except OSError:  # the uploader logs it; the file's modification time is close enough
            first = 0
        if first:
            us = _not_ahead(first - since.ahead)
        found[file.name] = _Since(us)


def _of_sealed(file: SegmentFile) -> _Since:
    ahead = ahead_us()
    # A replayed segment (slot 0) waits since it was copied.
    return _Since(_not_ahead(int(file.modified * 1e6) - ahead), is_sure=not file.name.slot, ahead=ahead)


def _of_left(file: SegmentFile) -> _Since:
    return _Since(_not_ahead(file.name.created_us - ahead_us()))


def _not_ahead(us: int) -> int:
    """Limit a time to the present: a clock that was set may give one in the future."""
    return max(1, min(us, steady_us()))
