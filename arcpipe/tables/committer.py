"""The committer: commit files in, rows in tables, each exactly once.

    names = commit files, oldest first; the folder is synced, so that none of them vanishes after its commit
    for each table: marker = committed(table)       # loaded fresh
                    a marker that was never issued here: nothing at all is committed
                    files of all commit files with seq > marker, and the highest seq as the marker, in ONE commit
                    conflict, lost answer, error: from the beginning, with the marker
    a commit file whose tables all have it is removed, once its batch is forgotten

Commit files of a table are committed in the order of their numbers, because a marker says "everything up to here". So a
commit file that cannot be read holds back what was handed over after it. A table that fails waits by itself, and others
go on. Nothing here depends on what an earlier process did, or on what a request answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from arcpipe import logs
from arcpipe.clock import steady_us
from arcpipe.counters import Committer as Block
from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError, DamagedFile, MissingObject, UnknownVersion
from arcpipe.lake.file_schema import DATABASE, MEASUREMENT
from arcpipe.lake.footers import Unreadable, find_footer, in_parallel
from arcpipe.storage import LakeStore
from arcpipe.tables.base import (
    Committed,
    Conflict,
    Dropped,
    NewFile,
    Refused,
    TableError,
    TableFormat,
    TableName,
    Unavailable,
)
from arcpipe.tables.commit_file import CommitFileName, CommitFiles, DataFile
from arcpipe.tables.ledger import Ledger
from arcpipe.tables.pending import Blocked, Chunk, Part, chunks, some, table_of
from arcpipe.tables.states import Kind, States

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between two attempts after a conflict: at least, and at most for the first and the last attempt.
_JITTER_SECONDS: Final = (0.02, 0.2, 3.2)
BATCH_ENDINGS: Final = (".json", ".uploaded.json", ".journal", ".json.tmp", ".journal.tmp")
"""The files of a batch in `batches/`, after its id."""


class Bounds(NamedTuple):
    """Bounds of a round."""

    chunk_files: int = 50_000  # data files that are known at once: 25 MB
    commit_files: int = 1_000  # of one commit, unless one batch has more: their footers are in memory
    footers_at_once: int = 16
    attempts: int = 6  # at a table in one round, if others are always first


class Foreign(ArcpipeError):
    """A table has a marker of this node that this WAL directory never issued. Nothing may be committed."""


class Gone(ArcpipeError):
    """Objects of a commit file are not in the store, or are no Parquet files."""


class Round(NamedTuple):
    """The result of a round."""

    commits: int
    files: int
    rows: int
    waiting: int  # commit files that are not done
    failed: int  # tables that have to wait


class Committer:
    """Commits what is handed over. For one event loop; the format's calls run in a thread of their own."""

    def __init__(
        self,
        tables: TableFormat,
        store: LakeStore,
        wal_dir: str | os.PathLike[str],
        block: memoryview,
        *,
        states: States | None = None,
        disk: Disk | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008 (a frozen tuple)
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Make ready; nothing is read.

        Args:
            block: the committer's counters.
            sleep: waits the seconds between two attempts.
        """
        self.files = CommitFiles(wal_dir, disk)
        self.states = states or States()
        self.skip_missing = False
        """Whether files that are gone, or cannot be read, are left out of tables instead of waited for."""
        self._tables = tables
        self._store = store
        self._batches = os.path.join(wal_dir, "batches")
        self._disk = self.files.disk
        self._block = block
        self._bounds = bounds
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(1, "tables")
        self._ledger: Ledger | None = None
        self._names: dict[str, TableName] = {}  # by folder: names that were cut
        self._seen: set[tuple[TableName, str]] = set()  # tables in which a marker of a node was seen
        self._done: set[CommitFileName] = set()  # all of their tables have them
        self._sizes: dict[CommitFileName, int] = {}  # bytes of the objects of each commit file
        self._since: dict[CommitFileName, float] = {}  # when it was handed over, in seconds since the epoch
        self._is_first = True

    def close(self) -> None:
        """End the thread, and release the tables' connections."""
        self._thread.submit(self._tables.close)
        self._thread.shutdown()

    async def check(self) -> None:
        """Prove that tables can be used with these settings.

        Raises:
            TableError: they cannot.
        """
        await self._call(self._tables.check)

    async def maintain(self, table: TableName) -> None:
        """Do the upkeep of one table. Raises TableError."""
        result = await self._call(self._tables.maintain, table)
        self._block[Block.MAINTAINED] += 1
        if any(result):
            what = "%d metadata files merged, %d states expired, %d objects deleted"
            log.info(f"table %s: {what}", _shown(table), *result)

    # A round

    async def round(self, force: bool = False) -> Round:
        """Commit all that waits and may be committed now.

        Args:
            force: try tables again that failed a short while ago.

        Raises:
            Foreign, DamagedFile, UnknownVersion: nothing more may be committed.
            Blocked, OSError, StorageError: it cannot go on now.
        """
        started = steady_us()
        if force:
            self.states.retry_all()
        before = self._block[Block.COMMITS], self._block[Block.FILES], self._block[Block.ROWS]
        names = self.list_files()
        waiting = [name for name in names if name not in self._done]
        failed: set[tuple[str, str]] = set()
        try:
            if waiting:
                self._ledger = Ledger.load(self.files.folder, self._disk)
                if self._is_first:
                    await self._check_all(waiting)
                for chunk in chunks(self.files, waiting, self._bounds.chunk_files):
                    await self._commit_chunk(chunk, failed)
            self._is_first = False
        finally:
            left = [name for name in names if name not in self._done]
            self._publish(left)
            self.forget(names)
        self._block[Block.ROUNDS] += 1
        self._block[Block.LAST_ROUND_US] = steady_us()
        made = [now - then for now, then in zip(self._totals(), before, strict=True)]
        if made[0]:
            self._block[Block.ROUND_US] = steady_us() - started
        return Round(made[0], made[1], made[2], len(left), len(failed))

    def _totals(self) -> tuple[int, int, int]:
        return self._block[Block.COMMITS], self._block[Block.FILES], self._block[Block.ROWS]

    def list_files(self) -> list[CommitFileName]:
        """List the commit files, whose names are durable from then on."""
        names = self.files.names()
        if names:
            self.files.sync()
        self._done.intersection_update(names)
        return names

    async def _check_all(self, names: Sequence[CommitFileName]) -> None:
        """Check the markers of all tables before the first commit: one that is wrong concerns all of them."""
        checked: set[tuple[str, str]] = set()
        for chunk in chunks(self.files, names, self._bounds.chunk_files):
            for (node, folder), parts in chunk.parts.items():
                if (node, folder) in checked:
                    continue
                checked.add((node, folder))
                try:
                    await self.read_marker(await self._table_of(parts[0]), node)
                except (TableError, Gone):
                    continue  # its turn comes
                self._step()

    async def _commit_chunk(self, chunk: Chunk, failed: set[tuple[str, str]]) -> None:
        self._sizes.update(chunk.sizes)
        for (node, folder), parts in chunk.parts.items():
            if (node, folder) not in failed and not await self._try(parts):
                failed.add((node, folder))
            self._step()
        left = {part.name for key, parts in chunk.parts.items() if key in failed for part in parts}
        self._done.update(name for name in chunk.names if name not in left)

    async def _try(self, parts: list[Part]) -> bool:
        """Commit the parts of one table. Returns False if it has to wait."""
        kind: Kind
        table: TableName = table_of(parts[0].folder) or ("", parts[0].folder)
        try:
            table = await self._table_of(parts[0])
            if not self.states.is_due(table):
                self._note_waiting(table, parts)
                return False
            await self._commit(table, parts)
        except Foreign:
            raise
        except Refused as error:
            kind, problem = "refused", str(error)
        except Gone as error:
            kind, problem = "missing", str(error)
        except Conflict as error:
            kind, problem = "conflict", str(error)
        except ArcpipeError as error:
            kind, problem = "unavailable", str(error)
        except (OSError, MemoryError, RuntimeError) as error:
            kind, problem = "unavailable", f"{type(error).__name__}: {error}"
        except Exception as error:  # of any kind: the files stay where they are, and it is tried again
            log.exception("a bug in the commit to table %s", _shown(table))
            kind, problem = "bug", repr(error)
        else:
            self.states.note_success(table)
            return True
        self._note_failure(table, parts, kind, problem)
        return False

    async def _commit(self, table: TableName, parts: list[Part]) -> None:
        node, conflicts = parts[0].node, 0
        while True:
            marker = await self.read_marker(table, node)
            parts = [part for part in parts if marker is None or part.seq > marker]
            if not parts:
                return
            now = some(parts, self._bounds.commit_files)
            files = await self.read_footers(now)
            if marker is None:
                files = await self._without_present(table, files)
            try:
                if files:
                    await self.attempt(table, files, node, now[-1].seq)
            except Conflict:
                conflicts += 1
                self._block[Block.CONFLICTS] += 1
                if conflicts >= self._bounds.attempts:
                    raise
                await self._sleep(_jitter(conflicts))
                continue
            conflicts = 0
            parts = parts[len(now) :]
            self._step()
            if not parts:
                return

    # The steps of a commit

    async def read_marker(self, table: TableName, node: str) -> int | None:
        """Load a table fresh, and return the node's marker.

        Raises:
            Foreign: this directory never issued it.
        """
        assert self._ledger is not None
        marker = await self._call(self._tables.committed, table, node)
        if marker is not None:
            if not self._ledger.has_issued(marker):
                raise Foreign(
                    f"table {_shown(table)} has the marker {marker} of this node ({node}), which this WAL directory "
                    f"never issued (its last number is {self._ledger.last}): it is an old copy, or a server runs with "
                    "another copy of it. Nothing is committed to any table, so that no batch is there twice"
                )
            self._seen.add((table, node))
        elif (table, node) in self._seen:
            self._seen.discard((table, node))
            self._block[Block.RECREATED] += 1
            log.error(
                "table %s was dropped or replaced by somebody: it is made anew, with what is not committed yet",
                _shown(table),
                extra=logs.EACH,
            )
        return marker

    async def read_footers(self, parts: Sequence[Part]) -> list[NewFile]:
        """Read the footers of files, which proves that they are in the store.

        Raises:
            Gone: some are not, or are no Parquet files.
            StorageError: the store does not give them.
        """
        found: list[NewFile] = []
        gone: list[str] = []

        async def read(one: tuple[str, DataFile]) -> NewFile | str:
            key, file = one
            try:
                footer = await find_footer(self._store, key, file.bytes)
            except (MissingObject, Unreadable) as error:
                return str(error)
            self._step()
            return NewFile(key, footer.size, footer.metadata.num_rows, footer.metadata)

        files = [one for part in parts for one in part.keyed()]
        async for _, result in in_parallel(files, read, self._bounds.footers_at_once):
            if isinstance(result, str):
                gone.append(result)
            else:
                found.append(result)
        if gone and not self.skip_missing:
            raise Gone(f"{len(gone)} of {len(files)} files cannot be committed, such as {gone[0]}")
        for text in gone:
            log.error("left out of its table: %s", text, extra=logs.EACH)
        return found

    async def attempt(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        """Commit once, and count it."""
        result = await self._call(self._tables.commit, table, files, node, seq)
        if result.files:
            rows = sum(file.rows for file in files)
            block = self._block
            block[Block.COMMITS] += 1
            block[Block.FILES] += result.files
            block[Block.ROWS] += rows
            block[Block.LAST_COMMIT_US] = steady_us()
            state = self.states.of(table)
            state.last_commit, state.snapshot = time.time(), result.snapshot
            state.commits += 1
            log.debug("table %s: %d files with %d rows committed", _shown(table), result.files, rows)
        if result.created:
            log.info("table %s is new", _shown(table))
        self._seen.add((table, node))
        return result

    async def _without_present(self, table: TableName, files: list[NewFile]) -> list[NewFile]:
        """Leave out files that a table without a marker has: somebody removed the marker, or imported the files."""

        def present() -> set[str]:
            try:
                return set(self._tables.files(table)).intersection(file.key for file in files)
            except Dropped:
                return set()

        there = await self._call(present)
        if there:
            log.warning("table %s has no marker of this node, and %d of the files", _shown(table), len(there))
        return [file for file in files if file.key not in there]

    async def _table_of(self, part: Part) -> TableName:
        known = table_of(part.folder) or self._names.get(part.folder)
        if known is None:
            file = (await self.read_footers([part._replace(files=part.files[:1])]))[0]
            metadata = file.metadata.metadata or {}
            try:
                known = metadata[DATABASE].decode(), metadata[MEASUREMENT].decode()
            except KeyError:
                raise Gone(f"{file.key}: arcpipe did not write it: its footer names no table") from None
            self._names[part.folder] = known
        return known

    # The end of commit files

    def forget(self, names: Sequence[CommitFileName]) -> None:
        """Remove the commit files that are done, and whose batches are forgotten.

        A batch that is not would be handed over again after a crash, if its commit file were not there.
        """
        done = [name for name in names if name in self._done]
        if not done:
            return
        known = set(self._disk.names(self._batches))
        over = [name for name in done if known.isdisjoint(name.batch_id + end for end in BATCH_ENDINGS)]
        if over:
            self._disk.sync_directory(self._batches)  # no power cut may bring the batch back
            self.files.remove(over)
        for name in over:
            self._done.discard(name)
            self._sizes.pop(name, None)
            self._since.pop(name, None)

    # What others see

    def _note_failure(self, table: TableName, parts: Sequence[Part], kind: Kind, problem: str) -> None:
        self._block[Block.FAILURES] += 1
        if self.states.note_failure(table, kind, problem):
            level = logging.WARNING if kind in ("unavailable", "conflict") else logging.ERROR
            log.log(level, "table %s has to wait: %s", _shown(table), problem)
        self._note_waiting(table, parts)

    def _note_waiting(self, table: TableName, parts: Sequence[Part]) -> None:
        state = self.states.of(table)
        state.waiting_files = sum(len(part.files) for part in parts)
        state.waiting_since = self._handed_over(parts[0].name)

    def _handed_over(self, name: CommitFileName) -> float:
        """Return when a batch was handed over, in seconds since the epoch."""
        since = self._since.get(name)
        if since is None:
            try:
                since = self._since[name] = os.stat(self.files.path(name.filename)).st_mtime
            except OSError:
                return time.time()
        return since

    def _publish(self, waiting: Sequence[CommitFileName]) -> None:
        block, states = self._block, self.states
        block[Block.WAITING_BATCHES] = len(waiting)
        block[Block.WAITING_BYTES] = sum(self._sizes.get(name, 0) for name in waiting)
        oldest = min(map(self._handed_over, waiting), default=0.0)
        age_us = int(max(time.time() - oldest, 0.0) * 1e6)
        block[Block.OLDEST_US] = max(steady_us() - age_us, 1) if waiting else 0
        block[Block.FAILING] = states.count("unavailable", "conflict", "bug")
        block[Block.REFUSED] = states.count("refused")
        block[Block.MISSING] = states.count("missing")
        states.write(self.files.folder, self._tables.name)

    def _step(self) -> None:
        self._block[Block.STEPS] += 1

    async def _call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do a format's work in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*arguments))


def _jitter(conflicts: int) -> float:
    least, first, most = _JITTER_SECONDS
    return random.uniform(least, min(first * 2.0 ** (conflicts - 1), most))


def _shown(table: TableName) -> str:
    return f"{table[0]!r}.{table[1]!r}"


__all__ = ["Blocked", "Bounds", "Committer", "DamagedFile", "Foreign", "Gone", "Round", "Unavailable", "UnknownVersion"]
