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
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from arcpipe.clock import steady_us
from arcpipe.config.settings import Parquet
from arcpipe.counters import Committer as Block
from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError, DamagedFile, UnknownVersion
from arcpipe.storage import LakeStore
from arcpipe.tables.base import (
    Conflict,
    Older,
    Refused,
    TableError,
    TableFormat,
    TableName,
    Unavailable,
    UnreadableTables,
)
from arcpipe.tables.commit_file import CommitFileName, CommitFiles
from arcpipe.tables.pending import Blocked, Chunk, Part, chunks, in_order, table_of
from arcpipe.tables.states import Kind, States
from arcpipe.tables.table_commits import Bounds, Foreign, Gone, TableCommits

log = logging.getLogger(__name__)

BATCH_ENDINGS: Final = (".json", ".uploaded.json", ".journal", ".json.tmp", ".journal.tmp")
"""The files of a batch in `batches/`, after its id."""


class Round(NamedTuple):
    """The result of a round."""

    commits: int
    files: int
    rows: int
    waiting: int  # commit files that are not done
    failed: int  # tables that have to wait


class Committer:
    """Commits what is handed over. For one event loop; the format's calls run in threads of their own."""

    def __init__(  # noqa: PLR0913 (what a test replaces)
        self,
        tables: TableFormat,
        store: LakeStore,
        wal_dir: str | os.PathLike[str],
        block: memoryview,
        *,
        states: States | None = None,
        disk: Disk | None = None,
        parquet: Parquet | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008 (a frozen tuple)
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Make ready; nothing is read.

        Args:
            block: the committer's counters.
            parquet: how files are written that have to be rewritten.
            sleep: waits the seconds between two attempts.
        """
        self.files = CommitFiles(wal_dir, disk)
        self.states = states or States()
        self.commits = TableCommits(
            *(tables, store, self.files, block, self.states, parquet or Parquet(), bounds, sleep)
        )
        self._tables = tables
        self._batches = os.path.join(wal_dir, "batches")
        self._disk = self.files.disk
        self._block = block
        self._bounds = bounds
        self._done: set[CommitFileName] = set()  # all of their tables have them
        self._sizes: dict[CommitFileName, int] = {}  # bytes of the objects of each commit file
        self._since: dict[CommitFileName, float] = {}  # when it was handed over, in seconds since the epoch
        self._is_first = True

    def close(self) -> None:
        """End the threads, and release the tables' connections."""
        self.commits.close()

    async def check(self) -> None:
        """Prove that tables can be used with these settings.

        Raises:
            TableError: they cannot.
        """
        await self.commits.call(self._tables.check)

    async def all_tables(self, unreadable: UnreadableTables) -> list[TableName]:
        """Return the tables that are arcpipe's, as `TableFormat.all_tables` does. Raises TableError."""
        return await self.commits.call(self._tables.all_tables, unreadable)

    async def maintain(self, table: TableName) -> None:
        """Do the upkeep of one table. Raises TableError."""
        result = await self.commits.call(self._tables.maintain, table)
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
            Foreign, Older, DamagedFile, UnknownVersion: nothing more may be committed.
            Blocked, OSError, StorageError: it cannot go on now.
        """
        started = steady_us()
        if force:
            self.states.retry_all()
        before = self._block[Block.COMMITS], self._block[Block.FILES], self._block[Block.ROWS]
        names = self.list_files()
        waiting = [name for name in names if name not in self._done]
        failed: set[tuple[str, TableName]] = set()
        try:
            if names or self._is_first:  # another process may have written what `forget` writes
                self.commits.rewriter.load()
            if waiting:
                self.commits.load()
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

        async def check(parts: list[Part]) -> None:
            try:
                await self.commits.read_marker(await self.commits.table_of(parts[0]), parts[0].node)
            except (Foreign, Older):
                raise
            except (TableError, Gone):
                return  # its turn comes
            self.commits.step()

        for chunk in chunks(self.files, names, self._bounds.chunk_files):
            new = [parts for key, parts in chunk.parts.items() if key not in checked]
            checked.update(chunk.parts)
            await self._for_each_table(new, check)

    async def _commit_chunk(self, chunk: Chunk, failed: set[tuple[str, TableName]]) -> None:
        self._sizes.update(chunk.sizes)

        async def commit(parts: list[Part]) -> None:
            key = parts[0].node, _name_of(parts[0].folder)
            if key not in failed and not await self._try(parts):
                failed.add(key)
            self.commits.step()

        await self._for_each_table(chunk.parts.values(), commit)
        left = {
            part.name
            for (node, folder), parts in chunk.parts.items()
            if (node, _name_of(folder)) in failed
            for part in parts
        }
        self._done.update(name for name in chunk.names if name not in left)

    async def _for_each_table(self, found: Iterable[list[Part]], work: Callable[[list[Part]], Awaitable[None]]) -> None:
        """Work on several tables at once, as many as the format allows, and on each by one at a time.

        Raises:
            Exception: the first one of the work. What was begun is at its end then, and nothing more is begun.
        """
        tables: dict[TableName, list[list[Part]]] = {}
        for parts in found:
            tables.setdefault(_name_of(parts[0].folder), []).append(parts)
        queue = deque(map(in_order, tables.values()))

        async def take() -> None:
            while queue:
                for parts in queue.popleft():
                    await work(parts)

        takers = [asyncio.ensure_future(take()) for _ in range(min(self._tables.at_once, len(queue)))]
        try:
            for taker in asyncio.as_completed(takers):
                await taker
        finally:
            queue.clear()
            if takers:
                await asyncio.wait(takers)

    async def _try(self, parts: list[Part]) -> bool:
        """Commit the parts of one table. Returns False if it has to wait."""
        kind: Kind
        table = _name_of(parts[0].folder)
        try:
            table = await self.commits.table_of(parts[0])
            if not self.states.is_due(table):
                self._note_waiting(table, parts)
                return False
            await self.commits.commit(table, parts)
        except (Foreign, Older):
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

    # The end of commit files

    def forget(self, names: Sequence[CommitFileName]) -> None:
        """Remove the commit files that are done, and whose batches are forgotten.

        A batch that is not would be handed over again after a crash, if its commit file were not there.
        """
        done = [name for name in names if name in self._done]
        if not done:
            self.commits.rewriter.forget(frozenset(name.seq for name in names))
            return
        known = set(self._disk.names(self._batches))
        over = [name for name in done if known.isdisjoint(name.batch_id + end for end in BATCH_ENDINGS)]
        if over:
            self._disk.sync_directory(self._batches)  # no power cut may bring the batch back
            self.files.remove(over)
        self.commits.rewriter.forget(frozenset(name.seq for name in names if name not in over))
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


def _name_of(folder: str) -> TableName:
    """Name a table before its files are looked at: by its folder, if its name was cut."""
    return table_of(folder) or ("", folder)


def _shown(table: TableName) -> str:
    return f"{table[0]!r}.{table[1]!r}"


__all__ = ["Blocked", "Bounds", "Committer", "DamagedFile", "Foreign", "Gone", "Round", "Unavailable", "UnknownVersion"]
