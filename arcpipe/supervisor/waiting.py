"""Since when each segment waits for its upload: how far behind the store is, in a clock that nobody sets.

A segment's own timestamps are of the time of day, as it was then. As soon as the machine's clock is set, they say
nothing about how long ago that was. So the supervisor notes the first record of each segment while its worker writes
it. Only of a segment that it has never seen so (of a former process, or sealed within a moment) it takes the file's own
word, once, by the clock as it is at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from arcpipe.clock import ahead_us, steady_us
from arcpipe.counters import Counters, Worker
from arcpipe.wal.directory import ACTIVE, SegmentFile, SegmentName
from arcpipe.wal.reader import first_timestamp

# Segments that no listing shows are remembered for a while: those that are being sealed, which a sick disk makes long.
_UNLISTED: Final = 1024


class _Since(NamedTuple):
    us: int  # steady
    is_sure: bool = True  # False: of the file's modification, which is a little too late
    ahead: int = 0  # of the time of day, as it was when the file was seen first


class Waiting:
    """The segments that the supervisor knows, and since when each waits."""

    def __init__(self, counters: Counters) -> None:
        self._blocks = [counters.worker(slot) for slot in range(1, counters.workers + 1)]
        self._since: dict[SegmentName, _Since] = {}

    def note_active(self) -> None:
        """Takes note of the segments that workers write. To be called a few times a second, before `oldest`."""
        for slot, block in enumerate(self._blocks, 1):
            first = block[Worker.SEGMENT_FIRST_US]
            seq, created = block[Worker.SEGMENT_SEQ], block[Worker.SEGMENT_CREATED_US]
            if first and seq and first == block[Worker.SEGMENT_FIRST_US]:  # else it is being changed
                self._since[SegmentName.at(slot, created, seq)] = _Since(first)

    def being_sealed(self, files: Iterable[SegmentFile]) -> list[SegmentFile]:
        """Those that their workers have left for the next one, and that are active all the same.

        They are being sealed in the background, which a slow disk makes long, or recovered.
        """
        current = [block[Worker.SEGMENT_SEQ] for block in self._blocks]
        return [
            file
            for file in files
            if file.state == ACTIVE
            and 0 < file.name.slot <= len(current)
            and file.name.seq < current[file.name.slot - 1]
        ]

    def oldest(self, sealed: Sequence[SegmentFile], left: Sequence[SegmentFile]) -> int:
        """Since when the oldest record of these waits, in µs of the steady clock; 0 if there is none.

        Args:
            left: segments that are being sealed, or of dead workers. Their heads are not read.
        """
        known = self._since
        found = {file.name: known[file.name] if file.name in known else _of_left(file) for file in left}
        found |= {file.name: known[file.name] if file.name in known else _of_sealed(file) for file in sealed}
        self._look_into_one(sealed, found)
        oldest = min((since.us for since in found.values()), default=0)
        rest = [item for item in known.items() if item[0] not in found]
        self._since = {**dict(rest[-_UNLISTED:]), **found}
        return oldest

    def _look_into_one(self, sealed: Sequence[SegmentFile], found: dict[SegmentName, _Since]) -> None:
        """Makes sure of one segment, the oldest of those that are not sure: a backlog may have thousands."""
        unsure = [file for file in sealed if not found[file.name].is_sure]
        if not unsure:
            return
        file = min(unsure, key=lambda one: found[one.name].us)
        since = found[file.name]
        us = since.us
        try:
            first = first_timestamp(file.path)
        except FileNotFoundError:  # uploaded since the listing
            del found[file.name]
            return
        except OSError:  # the uploader tells it; the file's own time is not far off
            first = 0
        if first:
            us = _not_ahead(first - since.ahead)
        found[file.name] = _Since(us)


def _of_sealed(file: SegmentFile) -> _Since:
    ahead = ahead_us()
    # What was replayed counts from its copy.
    return _Since(_not_ahead(int(file.modified * 1e6) - ahead), is_sure=not file.name.slot, ahead=ahead)


def _of_left(file: SegmentFile) -> _Since:
    return _Since(_not_ahead(file.name.created_us - ahead_us()))


def _not_ahead(us: int) -> int:
    """A time that has come, whatever a clock said."""
    return max(1, min(us, steady_us()))
