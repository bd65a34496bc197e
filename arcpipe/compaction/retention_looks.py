"""Retention in the compaction process: a day of announcement, then deletes at each look, with counts and log lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from arcpipe.compaction.compactor import Compactor
from arcpipe.compaction.merge import Stopped
from arcpipe.compaction.retention import Expired, Retention
from arcpipe.compaction.retention_clock import RetentionClock, Waiting
from arcpipe.counters import Compaction
from arcpipe.lake.folders import name_of, table_folder
from arcpipe.storage import LakeStore
from arcpipe.tables.base import TableError
from arcpipe.tables.problems import Problems

log = logging.getLogger(__name__)


class _Sum:
    """Deleted files of a database, or those that would go."""

    def __init__(self) -> None:
        self.hours = self.files = self.bytes = 0

    def add(self, expired: Expired) -> None:
        self.hours += 1
        self.files += len(expired.files)
        self.bytes += expired.size

    def __str__(self) -> str:
        return f"{self.files} files of {self.hours} hours, {self.bytes / 1e6:.1f} MB"


class RetentionLooks:
    """Announces, waits, deletes and counts."""

    def __init__(
        self,
        days: Mapping[str, int],
        store: LakeStore,
        compactor: Compactor,
        block: memoryview,
        ending: asyncio.Event,
        now: Callable[[], float],
    ) -> None:
        """Make ready; nothing is read.

        Args:
            block: of the compaction process.
            ending: set when the process is asked to end.
            now: seconds since the epoch.
        """
        self._days = days
        self._compactor = compactor
        self._block = block
        self._ending = ending
        self._now = now
        self._announced_us = 0  # the end of the wait that was announced
        self._clock = RetentionClock(compactor.plans.folder)
        self._retention = Retention(store, compactor, now=now, step=self._step)

    async def look(self) -> None:
        """Delete the hours that are too old, or announce them.

        Raises:
            Stopped: the process is asked to end.
            Busy: `arcpipe compact` is at work.
            ArcpipeError, OSError: it is tried again by the next look.
        """
        with self._compactor.plans.lock():
            waiting = self._clock.look(self._days, int(self._now() * 1_000_000))
        self._block[Compaction.RETENTION_FROM] = waiting.until_us // 1_000_000 if waiting is not None else 0
        if waiting is None:
            await self._delete_all()
        elif waiting.until_us != self._announced_us:
            await self._announce(waiting)
            self._announced_us = waiting.until_us

    async def _delete_all(self) -> None:
        sums: dict[str, _Sum] = {}
        problems = Problems()
        refused = ""  # the table that refused an hour: it will refuse the others, too
        try:
            limits = await self._retention.limits(self._days)
            async for expired in self._retention.find(limits, tidies=True):
                table = table_folder(expired.folder.path)
                if not expired.files or table == refused:
                    continue
                refused = table
                with problems.of_one_table():
                    sums.setdefault(name_of(expired.folder.database), _Sum()).add(await self._delete(expired))
                    refused = ""
            problems.raise_first()
        finally:
            for database, found in sums.items():
                log.info("retention: deleted %s, from database %r", found, database)

    async def _delete(self, expired: Expired) -> Expired:
        done = await self._retention.delete(expired.folder)
        self._block[Compaction.EXPIRED_HOURS] += 1
        self._block[Compaction.EXPIRED_FILES] += len(done.files)
        self._block[Compaction.EXPIRED_BYTES] += done.size
        return done

    async def _announce(self, waiting: Waiting) -> None:
        sums: dict[str, _Sum] = {}
        try:
            async for expired in self._retention.find(await self._retention.limits(self._days)):
                if expired.files:
                    sums.setdefault(name_of(expired.folder.database), _Sum()).add(expired)
        except TableError as error:  # it is announced all the same: what follows is deleted when the wait is over
            log.warning("retention: not all tables can be read, and what is too old there is not counted: %s", error)
        until = datetime.fromtimestamp(waiting.until_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        found = "; ".join(f"{database!r}: {found}" for database, found in sums.items()) or "nothing"
        log.warning(
            "retention deletes nothing before %s, as %s. Too old by now: %s. `arcpipe lake expire` lists it",
            *(until, waiting.reason, found),
        )

    def _step(self) -> None:
        self._block[Compaction.STEPS] += 1
        if self._ending.is_set():
            raise Stopped
