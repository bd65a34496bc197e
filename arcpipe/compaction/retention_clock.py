"""When retention may delete: a day after it was announced, while the clock runs evenly.

    waiting = RetentionClock(plans.folder).look(days, now_us)     # under the lock of `Plans`
    if waiting is None: ...delete

A clock that jumps ahead makes everything old. A machine that was off for a week looks just the same. So after a jump,
in either direction, nothing is deleted for a day: an operator who reads the log can set the clock right, or let the
day pass. The same day comes before the first delete, and after each change of `retention.days` that lets more go.

The state is one file, `compaction/retention.json` in the WAL directory. Without it, or if it is damaged, the day begins
again: that deletes nothing too early.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile
from arcpipe.wal.checksum import checksum_holds, with_checksum

log = logging.getLogger(__name__)

DAY_US: Final = 86_400_000_000
WAIT_US: Final = DAY_US
"""Time from the announcement to the first delete: long enough to be read by somebody who looks once a day."""
AHEAD_US: Final = DAY_US + 3_600_000_000
"""Most time between two looks that counts as even: a server may be off for a day. A smaller jump deletes what goes
within a day in any case."""
BACK_US: Final = 300_000_000
"""Most time that a clock may be set back. Before it was, it may have been wrong."""

_STILL: Final = "a day of waiting is not over"


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What earlier looks saw. Times are µs since the epoch."""

    days: dict[str, int]
    since_us: int  # the looks from this time on saw an even clock, and these days
    seen_us: int  # the last look


class Waiting(NamedTuple):
    """Nothing is deleted before `until_us`."""

    until_us: int
    reason: str


def judge(before: Watch | None, days: Mapping[str, int], now_us: int) -> tuple[Watch, str]:
    """Take a look at the clock and the setting.

    Returns:
        What to remember, and why the day begins again; empty if it does not.
    """
    reason = ""
    if before is None:
        reason = "retention is new here"
    elif any(count < before.days.get(name, count + 1) for name, count in days.items()):
        reason = "retention.days has changed"
    elif now_us > before.seen_us + AHEAD_US:
        ahead = (now_us - before.seen_us) / DAY_US
        reason = f"the last look was {ahead:.1f} days ago: either the server was off, or its clock is wrong"
    elif now_us < before.seen_us - BACK_US:
        reason = f"the clock was set back by {(before.seen_us - now_us) / 3.6e9:.1f} hours"
    since = now_us if reason or before is None else before.since_us
    return Watch(dict(days), since, now_us), reason


class RetentionClock:
    """The file with the state. Its user holds the lock of `Plans`."""

    def __init__(self, folder: str, disk: Disk | None = None) -> None:
        self.path = os.path.join(folder, "retention.json")
        self._disk = disk or Disk()

    def look(self, days: Mapping[str, int], now_us: int) -> Waiting | None:
        """Take a look, and remember it durably.

        Returns:
            None if hours may be deleted now.

        Raises:
            OSError: the state cannot be read or written.
        """
        watch, reason = judge(self._read(), days, now_us)
        durable.replace(self._disk, self.path, with_checksum(msgspec.json.encode(watch)))
        until = watch.since_us + WAIT_US
        return None if now_us >= until else Waiting(until, reason or _STILL)

    def _read(self) -> Watch | None:
        try:
            return durable.load(self._disk, self.path, _decode)
        except DamagedFile as error:
            log.warning("retention waits for a day again, as its state is damaged: %s", error)
            return None


def _decode(data: bytes) -> Watch:
    if checksum_holds(data) is not True:
        raise ValueError("its checksum does not match")
    content = msgspec.json.decode(data)
    content.pop("crc32", None)
    return msgspec.convert(content, Watch)
