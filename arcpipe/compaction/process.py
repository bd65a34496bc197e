"""The compaction process: looks through the lake once an hour, deletes what is too old, and merges what is worth it.

A look begins `compaction.after_seconds` after each full hour, and at the start. What fails is logged and left for the
next look, or for the next try a minute later if nothing can be done at all. SIGTERM ends a merge that is not
committed, and lets the few requests after a commit come to their end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from arcpipe import logs
from arcpipe.child import Fields, living
from arcpipe.clock import steady_us
from arcpipe.compaction.compactor import Compactor, Work
from arcpipe.compaction.merge import Mismatch, Outcome, Stopped, Stuck
from arcpipe.compaction.plan import Busy
from arcpipe.compaction.resources import bound_resources
from arcpipe.compaction.retention_looks import RetentionLooks
from arcpipe.counters import Compaction, Counters
from arcpipe.errors import ArcpipeError, DamagedFile, UnknownVersion
from arcpipe.lake.folders import table_folder
from arcpipe.storage import LakeStore, open_store
from arcpipe.tables import Refused, TableError, open_format
from arcpipe.tables.swap import TableSwap

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)

_HOUR_SECONDS: Final = 3_600.0
_RETRY_SECONDS: Final = 60.0  # after a look that failed as a whole
_BUSY_SECONDS: Final = 5.0  # until it is asked again whether `arcpipe compact` is done
_FIRST_SECONDS: Final = 10.0  # after the start: workers and uploader come first
_RETENTION: Final = "retention"  # as the place of a failure
_MOST_WAITING: Final = 100_000  # folders of one look that are remembered, 500 bytes each; the next look finds the rest


def run(settings: Settings, wal_dir: str, counters: Counters, node: str) -> int:
    """Compact until SIGTERM. Returns the exit code of the process."""
    bound_resources()
    return asyncio.run(_run(settings, wal_dir, counters, node))


async def _run(settings: Settings, wal_dir: str, counters: Counters, node: str) -> int:
    store = open_store(settings.storage.url, settings.storage.s3)
    tables = swap_of(settings, wal_dir, store)
    process = CompactionProcess(settings, Compactor(settings, wal_dir, node, store, tables=tables), counters, store)
    fields = Fields(Compaction.PID, Compaction.STARTED_US, Compaction.HEARTBEAT_US)
    try:
        async with living(counters, counters.compaction, fields, process.stop):
            await process.serve()
    finally:
        if tables is not None:
            await tables.close()
        await store.close()
    return 0


def swap_of(settings: Settings, wal_dir: str, store: LakeStore) -> TableSwap | None:
    """Return the swap of the settings' tables; None if there are none. Their library is loaded by its first call."""
    if not settings.has_tables:
        return None
    return TableSwap(lambda: open_format(settings.tables, settings.storage, wal_dir), store)


class CompactionProcess:
    """Looks, merges, counts, and waits. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        compactor: Compactor,
        counters: Counters,
        store: LakeStore,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make ready; nothing is read.

        Args:
            now: seconds since the epoch.
        """
        self._settings = settings
        self._compactor = compactor
        self._counters = counters
        self._block = counters.compaction
        self._ending = asyncio.Event()
        self._retention = RetentionLooks(settings.retention.days, store, compactor, self._block, self._ending, now)

    def stop(self) -> None:
        """End soon. May be called by a signal handler of the loop."""
        self._ending.set()
        self._compactor.stop()

    async def serve(self) -> None:
        """Look and merge until `stop`."""
        await self._wait(_FIRST_SECONDS)
        while not self._ending.is_set():
            try:
                await self.look()
                pause = self._until_the_next_hour(time.time())
            except Stopped:
                return
            except Busy as error:
                log.info("%s; waiting for it", error)
                pause = _BUSY_SECONDS
            except Exception as error:  # of any kind: the lake stays as it is, and the next look tries again
                self._note(error)
                self._block[Compaction.FAILED_LOOKS] += 1
                pause = _RETRY_SECONDS
            await self._wait(pause)

    async def look(self) -> None:
        """Finish what a crash left, look through the lake once, delete what is too old, and merge what is worth it.

        Raises:
            Stopped: the process is asked to end.
            Busy: `arcpipe compact` is at work.
            Exception: nothing can be done now.
        """
        failures = self._block[Compaction.FAILURES]
        await self._compactor.finish()
        self._block[Compaction.STOPPED] = 0
        if self._settings.retention.days:
            await self._expire()
        if self._settings.compaction.enabled:
            await self._merge_all()
        has_failed = self._block[Compaction.FAILURES] > failures
        self._block[Compaction.FAILED_LOOKS] = self._block[Compaction.FAILED_LOOKS] + 1 if has_failed else 0
        self._block[Compaction.LOOKS] += 1
        self._block[Compaction.LAST_LOOK_US] = steady_us()

    async def _expire(self) -> None:
        try:
            await self._retention.look()
        except (Stuck, DamagedFile, UnknownVersion, Busy, Stopped):
            raise
        except Exception as error:  # of any kind: merges must not wait for it
            self._note(error, _RETENTION)

    async def _merge_all(self) -> None:
        waiting: list[Work] = []
        try:
            async for work in self._compactor.find():
                self._block[Compaction.STEPS] += 1
                waiting.append(work)
                if len(waiting) >= _MOST_WAITING or self._ending.is_set():
                    break
        except TableError as error:  # of some tables: the others are merged
            self._note(error, "some tables")
        refused: set[str] = set()  # tables that take no merge now: each try would read and write files for nothing
        files = sum(work.files for work in waiting)
        for number, work in enumerate(waiting):
            self._block[Compaction.WAITING_FOLDERS] = len(waiting) - number
            self._block[Compaction.WAITING_FILES] = files
            files -= work.files
            if self._ending.is_set():
                raise Stopped
            table = table_folder(work.folder.path)
            if table not in refused and not await self._merge(work):
                refused.add(table)
        self._block[Compaction.WAITING_FOLDERS] = self._block[Compaction.WAITING_FILES] = 0
        self._block[Compaction.LEFT_ALONE] = len(self._compactor.odd)

    async def _merge(self, work: Work) -> bool:
        """Merge the files of a folder. Returns False if its table refuses it."""
        self._block[Compaction.STEPS] += 1
        try:
            outcome = await self._compactor.compact(work.folder)
        except (Stuck, DamagedFile, UnknownVersion, Busy, Stopped):
            raise
        except Exception as error:  # of any kind: what is wrong with one folder must not hold up the others
            self._note(error, work.folder.path)
            return not isinstance(error, Refused)
        if outcome is not None:
            self._count(outcome)
        return True

    def _count(self, outcome: Outcome) -> None:
        plan, block = outcome.plan, self._block
        block[Compaction.MERGES] += 1
        block[Compaction.FILES_IN] += len(plan.inputs)
        block[Compaction.FILES_OUT] += len(plan.outputs)
        block[Compaction.BYTES_IN] += plan.input_bytes
        block[Compaction.BYTES_OUT] += plan.output_bytes
        block[Compaction.ROWS] += outcome.rows
        block[Compaction.SUPERSEDED] += outcome.superseded
        log.info(
            "compacted %s: %d files became %d, %.1f MB became %.1f MB, %d rows, %d superseded, in %.2f s; "
            "both were visible for %.0f ms",
            *(plan.folder, len(plan.inputs), len(plan.outputs), plan.input_bytes / 1e6, plan.output_bytes / 1e6),
            *(outcome.rows, outcome.superseded, outcome.seconds, outcome.visible_twice_seconds * 1e3),
        )

    def _note(self, error: BaseException, where: str = "") -> None:
        """Count and log a failure."""
        self._block[Compaction.FAILURES] += 1
        if isinstance(error, Mismatch):
            self._block[Compaction.MISMATCHES] += 1
            log.critical("compaction: %s", error, extra=logs.EACH)
        elif isinstance(error, (Stuck, DamagedFile, UnknownVersion)):
            self._block[Compaction.STOPPED] = 1
            log.error("compaction cannot go on: %s", error)
        else:
            is_expected = isinstance(error, (ArcpipeError, OSError, MemoryError))
            log.warning(
                "%s failed, and is tried again later: %s",
                *(where if where == _RETENTION else f"compaction of {where or 'the lake'}", error),
                exc_info=None if is_expected else error,
            )

    def _until_the_next_hour(self, now: float) -> float:
        """Return the seconds until the next hour is closed."""
        return _HOUR_SECONDS - (now - self._settings.compaction.after_seconds) % _HOUR_SECONDS

    async def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ending.is_set() and (left := deadline - time.monotonic()) > 0:
            self._block[Compaction.STEPS] += 1
            try:
                await asyncio.wait_for(self._ending.wait(), min(left, _RETRY_SECONDS))
            except TimeoutError:
                continue
