"""The upkeep of one table: a checkpoint, an end to old states, and the files that no state needs any more.

| what goes | when |
|---|---|
| commits and checkpoints | older than `delta.logRetentionDuration`, and before a checkpoint that was just read |
| files that were taken out | for longer than that, as the log remembers them, and not in the table again |

So nothing goes that the log does not prove to have been in this table. A file that waits for its commit is in no log.
Others may do the same at once (Spark's VACUUM, deltalake): a file that is gone is no error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from arcpipe.clock import now_us
from arcpipe.storage import LakeStore
from arcpipe.tables.base import Maintained, is_outside
from arcpipe.tables.delta.checkpoint import CheckpointFile, DamagedCheckpoint, read_paths, read_state
from arcpipe.tables.delta.checkpoints import INTERVAL
from arcpipe.tables.delta.files import files_of
from arcpipe.tables.delta.log import Listing, Log
from arcpipe.tables.delta.paths import key_of
from arcpipe.tables.delta.state import State, interval_seconds

_DEFAULT_RETENTION: Final = "interval 30 days"  # of the protocol


class Memory:
    """What is remembered from one upkeep to the next, by the table's folder."""

    def __init__(self) -> None:
        self.looked: dict[str, float] = {}  # the time of the last look, in seconds since the epoch
        self.deleted_ms: dict[str, int] = {}  # files that were taken out before this were deleted


class Upkeep:
    """The upkeep of a table whose state was just loaded."""

    def __init__(self, store: LakeStore, log: Log, state: State, memory: Memory, *, every_seconds: float) -> None:
        self._store = store
        self._log = log
        self._state = state
        self._memory = memory
        self._every_seconds = every_seconds
        self._now = now_us() / 1e6

    async def run(self, make_checkpoint: Callable[[], int | None]) -> Maintained:
        """Do what is due.

        Raises:
            Refused: the log is damaged.
            StorageError: the store does not answer. The rest is done the next time.
        """
        merged = await self._checkpoint(make_checkpoint)
        root = self._log.root
        since = self._now - self._memory.looked.get(root, 0.0)
        if 0 <= since < self._every_seconds:
            return Maintained(merged=merged)
        deleted = await self._delete_files()
        expired, others = await self._clean_log()
        self._memory.looked[root] = self._now
        return Maintained(merged, expired, deleted + expired + others)

    async def _checkpoint(self, make_checkpoint: Callable[[], int | None]) -> int:
        """Make a checkpoint if the latest one is too old; return the number of commits that are new in it."""
        last = await self._log.last_checkpoint()
        if self._state.version - (last or 0) < INTERVAL:
            return 0
        version = await asyncio.to_thread(make_checkpoint)
        return 0 if version is None else version - (last or 0)

    async def _delete_files(self) -> int:
        retention = retention_seconds(self._state)
        if retention is None:
            return 0
        before_ms = int((self._now - retention) * 1000)
        after_ms = self._memory.deleted_ms.get(self._log.root, 0)
        if not 0 <= after_ms < before_ms:
            return 0
        root, url = self._log.root, self._store.url
        files = await files_of(self._log, self._state, with_removed=True)
        held = {key_of(root, path, url) for path in files.sizes}
        old = {key_of(root, one.path, url) for one in files.removed.values() if after_ms <= one.deleted_ms < before_ms}
        gone = sorted(key for key in old - held if not is_outside(key) and key.endswith(".parquet"))
        await self._store.delete_all(gone)
        self._memory.deleted_ms[root] = before_ms
        return len(gone)

    async def _clean_log(self) -> tuple[int, int]:
        """Delete commits that nobody needs; return the numbers of commits and of other files that were deleted."""
        settings = self._state.configuration
        retention = retention_seconds(self._state)
        if retention is None or settings.get("delta.enableExpiredLogCleanup", "true").lower() == "false":
            return 0, 0
        listing = await self._log.listing()
        cutoff = self._now - retention
        young = [version for version, one in listing.commits.items() if one.modified >= cutoff]
        border = await self._border(listing, min([self._state.version, *young]))
        if border is None:
            return 0, 0
        hint = await self._log.last_checkpoint()
        commits = sorted(one for version, one in listing.commits.items() if version < border)
        others = [one for version, one in listing.others if version < border]
        for version, files in listing.checkpoints.items():
            if version < border and version != hint:
                others += files
        old = [[one.key for one in some if one.modified < cutoff] for some in (commits, others)]
        for keys in old:
            await self._store.delete_all(keys)
        return len(old[0]), len(old[1])

    async def _border(self, listing: Listing, keep: int) -> int | None:
        """Return the latest checkpoint up to version `keep` if it can be read, so that what came before may go."""
        version = max((version for version in listing.checkpoints if version <= keep), default=None)
        if version is None or version == 0:
            return None
        files = [CheckpointFile(self._store, one.key, one.size) for one in listing.checkpoints[version]]
        try:
            await read_state(files)
            await read_paths(files)
        except DamagedCheckpoint:
            return None
        return version


def retention_seconds(state: State) -> float | None:
    """Return how long earlier states stay; None if the table's property cannot be read, so that nothing goes."""
    return interval_seconds(state.configuration.get("delta.logRetentionDuration", _DEFAULT_RETENTION))
