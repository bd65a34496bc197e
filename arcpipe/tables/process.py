"""The committer process: what is handed over becomes a part of tables every `tables.commit_interval_seconds`.

Sooner, if `tables.max_uncommitted_mb` holds the uploader back, and at the end: SIGTERM has it commit what is handed
over by then. Between two rounds it looks after tables that it has committed to. What fails is logged and left for the
next round. `arcpipe tables commit-now` does a round of its own: whoever commits holds `tables/LOCK`.

The libraries of formats are loaded here, in the child: deltalake cannot be used after a fork.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from arcpipe.child import Fields, living
from arcpipe.counters import Committer as Block
from arcpipe.counters import Counters, Uploader
from arcpipe.errors import ArcpipeError, DamagedFile, UnknownVersion
from arcpipe.storage import LakeStore, open_store
from arcpipe.tables import open_format
from arcpipe.tables.base import Dropped, Older, TableError, TableFormat, TableName, UnreadableTables
from arcpipe.tables.commit_file import FOLDER, Busy
from arcpipe.tables.committer import Committer, Foreign, Round
from arcpipe.tables.states import States

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5  # between two looks for an uploader that is held back
_FIRST_SECONDS: Final = 1.0  # after the start: workers and uploader come first
_RETRY_SECONDS: Final = (1.0, 60.0)  # after a failure of all: at first, and at most
_BUSY_SECONDS: Final = 2.0  # until it is asked again whether a command is done
_HELD_BACK_SECONDS: Final = 5.0  # between two rounds for an uploader that is held back
_UPKEEP_SECONDS: Final = 3_600.0  # between two upkeeps of one table
# Between two upkeeps of a table that this process has not committed to, and two looks for such tables: merges and
# retention take files out of them, too.
_IDLE_SECONDS: Final = 86_400.0
_LAST_TRIES: Final = 3  # rounds at the end that commit nothing, before the next start gets the rest


def run(settings: Settings, wal_dir: str, counters: Counters) -> int:
    """Commit until SIGTERM. Returns the exit code of the process."""
    return asyncio.run(_run(settings, wal_dir, counters))


async def _run(settings: Settings, wal_dir: str, counters: Counters) -> int:
    store = open_store(settings.storage.url, settings.storage.s3)
    process = CommitterProcess(
        settings, wal_dir, counters, store, lambda: open_format(settings.tables, settings.storage, wal_dir)
    )
    fields = Fields(Block.PID, Block.STARTED_US, Block.HEARTBEAT_US)
    try:
        async with living(counters, counters.committer, fields, process.stop):
            await process.serve()
    finally:
        process.close()
        await store.close()
    return 0


class CommitterProcess:
    """Commits in rounds, looks after tables, and waits. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        wal_dir: str,
        counters: Counters,
        store: LakeStore,
        open_tables: Callable[[], TableFormat],
    ) -> None:
        """Make ready; nothing is read or imported."""
        self._settings = settings
        self._wal_dir = wal_dir
        self._counters = counters
        self._block = counters.committer
        self._store = store
        self._open_tables = open_tables
        self._folder = os.path.join(wal_dir, FOLDER)
        self._states = States()
        self._committer: Committer | None = None
        self._is_checked = False  # whether the format worked when it was tried last
        self._ending = asyncio.Event()
        self._failures = 0
        self._held_back_until = 0.0  # monotonic: no round for an uploader that is held back before this
        self._upkeep_due: dict[TableName, float] = {}  # monotonic, in seconds
        self._look_due = math.inf  # monotonic: the next look for tables that nobody writes to

    def stop(self) -> None:
        """Commit what is handed over, then end. May be called by a signal handler of the loop."""
        self._ending.set()

    def close(self) -> None:
        """Release the tables' connections."""
        if self._committer is not None:
            self._committer.close()

    async def serve(self) -> None:
        """Commit until `stop`."""
        await self._wait(_FIRST_SECONDS)
        begun = time.monotonic()
        while not self._ending.is_set():
            outcome = await self.work()
            if outcome is None:
                await self._wait(self._pause())
                begun = time.monotonic()
                continue
            await self._look_after_tables(begun + self._settings.tables.commit_interval_seconds)
            await self._wait(begun + self._settings.tables.commit_interval_seconds - time.monotonic())
            begun = time.monotonic()
        await self._end()

    async def _end(self) -> None:
        """Commit what is handed over. What cannot be committed is left for the next start."""
        tries = 0
        while tries < _LAST_TRIES:
            outcome = await self.work(force=True)
            if outcome is not None and not (outcome.waiting and outcome.failed):
                return
            tries = 0 if outcome is not None and outcome.commits else tries + 1
            await asyncio.sleep(_RETRY_SECONDS[0])

    async def work(self, force: bool = False) -> Round | None:
        """Do one round. Returns None if it failed as a whole.

        Args:
            force: try tables again that failed a short while ago.
        """
        try:
            committer = await self._ready()
            with committer.files.lock():
                started = time.monotonic()
                outcome = await committer.round(force)
        except Busy as error:
            log.info("%s; waiting for it", error)
            self._failures = 0
            return None
        except Exception as error:  # of any kind: commit files stay where they are, and the next round tries again
            self._note(error)
            return None
        self._note_states("", "")
        if outcome.commits:
            log.info(
                "committed %d files with %d rows to %d tables in %.2f s; %d batches wait",
                *(outcome.files, outcome.rows, outcome.commits, time.monotonic() - started, outcome.waiting),
            )
        self._failures = 0
        self._held_back_until = time.monotonic() + _HELD_BACK_SECONDS
        return outcome

    async def _ready(self) -> Committer:
        """Load the format and try it once."""
        if self._committer is None:
            tables = self._open_tables()
            parquet = self._settings.parquet
            self._committer = Committer(
                *(tables, self._store, self._wal_dir, self._block), states=self._states, parquet=parquet
            )
            self._block[Block.UNREACHABLE] = 1  # until it was tried
        if not self._is_checked:
            await self._committer.check()
            self._is_checked = True
            self._block[Block.UNREACHABLE] = 0
        return self._committer

    def _note(self, error: Exception) -> None:
        """Count and log a failure that concerns all tables."""
        self._failures += 1
        self._block[Block.FAILURES] += 1
        if isinstance(error, (Foreign, Older, DamagedFile, UnknownVersion)):
            self._block[Block.UNREACHABLE] = 0
            self._note_states(str(error), "")
            log.error("nothing is committed to tables: %s", error)
        elif isinstance(error, TableError) or self._committer is None:
            self._is_checked = False
            self._block[Block.UNREACHABLE] = 1
            self._note_states("", str(error))
            log.error("tables cannot be reached, and are tried again: %s", error)
        else:
            is_expected = isinstance(error, (ArcpipeError, OSError, MemoryError))
            trace = None if is_expected else error
            log.warning("a round of commits failed, and is tried again: %s", error, exc_info=trace)

    def _note_states(self, stopped: str, unreachable: str) -> None:
        self._block[Block.STOPPED] = bool(stopped)
        states = self._states
        if (states.stopped, states.unreachable) != (stopped, unreachable):
            states.stopped, states.unreachable = stopped, unreachable
            states.write(self._folder, self._settings.tables.format)

    async def _look_after_tables(self, until: float) -> None:
        """Do the upkeep of tables that are due, while there is time before the next round."""
        committer = self._committer
        assert committer is not None
        now = time.monotonic()
        committed = set(committer.states.committed())
        for table in committed:
            # Not all at once, and not at the same time as other nodes.
            if self._upkeep_due.get(table, math.inf) > now + _UPKEEP_SECONDS:
                self._upkeep_due[table] = now + random.uniform(0.5, 1.0) * _UPKEEP_SECONDS
        await self._look_for_others(committer, now)
        # The one that waits longest first: there may not be time for all of them.
        for table, due in sorted(self._upkeep_due.items(), key=lambda item: item[1]):
            if due > now or self._ending.is_set() or time.monotonic() >= until or self._is_asked():
                return
            self._block[Block.STEPS] += 1
            self._upkeep_due[table] = now + (_UPKEEP_SECONDS if table in committed else _IDLE_SECONDS)
            try:
                await committer.maintain(table)
            except Dropped:
                del self._upkeep_due[table]
            except Exception as error:  # of any kind: the next time will do
                self._block[Block.UPKEEP_FAILURES] += 1
                expected = isinstance(error, (ArcpipeError, OSError))
                log.warning(
                    "the upkeep of table %r.%r failed, and is tried again: %s",
                    *(*table, error),
                    exc_info=None if expected else error,
                )

    async def _look_for_others(self, committer: Committer, now: float) -> None:
        """Have tables looked after that this process has not committed to: other nodes, or former processes, did."""
        self._look_due = min(self._look_due, now + random.uniform(0.5, 1.0) * _UPKEEP_SECONDS)
        if now < self._look_due:
            return
        self._look_due = now + _IDLE_SECONDS
        unreadable: UnreadableTables = {}
        try:
            found = await committer.all_tables(unreadable)
        except Exception as error:  # of any kind: the next time will do
            self._look_due = now + _UPKEEP_SECONDS
            self._block[Block.UPKEEP_FAILURES] += 1
            log.warning("the upkeep of tables that nobody writes to has to wait: %s", error)
            return
        for table, problem in unreadable.items():
            self._block[Block.UPKEEP_FAILURES] += 1
            log.warning("the upkeep of table %r.%r has to wait: it cannot be read: %s", *table, problem)
        for table in found:
            self._upkeep_due.setdefault(table, now + random.uniform(0.0, 0.25) * _IDLE_SECONDS)

    def _is_asked(self) -> bool:
        """Tell whether an uploader that is held back wants a commit now."""
        is_held_back = bool(self._counters.uploader[Uploader.HELD_BACK]) and not self._failures
        return is_held_back and time.monotonic() >= self._held_back_until

    def _pause(self) -> float:
        if not self._failures:
            return _BUSY_SECONDS
        first, most = _RETRY_SECONDS
        return random.uniform(0.5, 1.0) * min(first * 2.0 ** min(self._failures - 1, 16), most)

    async def _wait(self, seconds: float) -> None:
        """Wait, but not longer than until somebody asks for a commit."""
        deadline = time.monotonic() + seconds
        while not self._ending.is_set() and (left := deadline - time.monotonic()) > 0:
            self._block[Block.STEPS] += 1
            if self._is_asked():
                return
            try:
                await asyncio.wait_for(self._ending.wait(), min(left, _LOOK_SECONDS))
            except TimeoutError:
                continue
