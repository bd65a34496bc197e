"""The commits to one table: its marker, its files, one attempt, and from the beginning again.

marker = read_marker()      loaded fresh; one that this directory never issued stops everything
settle()                    of files that were rewritten: the table has one, the others are deleted
read_footers()              proves that the files are there
attempt()                   once. A conflict: from the beginning, with the marker
fit()                       where types differ: the files are rewritten, then from the beginning
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

from arcpipe import logs
from arcpipe.clock import steady_us
from arcpipe.config.settings import Parquet
from arcpipe.counters import Committer as Block
from arcpipe.errors import ArcpipeError, MissingObject
from arcpipe.lake.file_schema import DATABASE, MEASUREMENT
from arcpipe.lake.footers import Unreadable, find_footer, in_parallel
from arcpipe.lake.input_file import Odd
from arcpipe.storage import LakeStore
from arcpipe.tables.base import Committed, Conflict, Dropped, NewFile, Refused, TableFormat, TableName
from arcpipe.tables.commit_file import CommitFiles, DataFile
from arcpipe.tables.ledger import Ledger
from arcpipe.tables.pending import Part, some, table_of
from arcpipe.tables.rewriting import Rewriter, Source
from arcpipe.tables.states import States

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between two attempts after a conflict: at least, and at most for the first and the last attempt.
_JITTER_SECONDS: Final = (0.02, 0.2, 3.2)
_FITS: Final = 3  # times that files are rewritten for one commit, while others change the table's columns


class Bounds(NamedTuple):
    """Bounds of a round."""

    chunk_files: int = 50_000  # data files that are known at once: 25 MB
    commit_files: int = 1_000  # of all commits at once, unless one batch has more: their footers are in memory
    footers_at_once: int = 16
    attempts: int = 6  # at a table in one round, if others are always first


class Foreign(ArcpipeError):
    """A table has a marker of this node that this WAL directory never issued. Nothing may be committed."""


class Gone(ArcpipeError):
    """Objects of a commit file are not in the store, or are no Parquet files."""


class TableCommits:
    """Commits to tables, several at once. For one event loop; the format's calls run in threads."""

    def __init__(
        self,
        tables: TableFormat,
        store: LakeStore,
        files: CommitFiles,
        block: memoryview,
        states: States,
        parquet: Parquet,
        bounds: Bounds,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Make ready; nothing is read.

        Args:
            files: those of the WAL directory.
            block: the committer's counters.
            sleep: waits the seconds between two attempts.
        """
        self.skip_missing = False
        """Whether files that are gone, or cannot be read, are left out of tables instead of waited for."""
        self.states = states
        spool = os.path.join(os.path.dirname(files.folder), "spool")
        self.rewriter = Rewriter(store, files.folder, spool, files.disk, parquet, self.step)
        self._tables = tables
        self._store = store
        self._files = files
        self._block = block
        self._bounds = bounds
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(tables.at_once, "tables")
        self._ledger: Ledger | None = None
        self._names: dict[str, TableName] = {}  # by folder: names that were cut
        self._seen: set[tuple[TableName, str]] = set()  # tables in which a marker of a node was seen
        self._room = _Room(bounds.commit_files)  # of files whose footers are in memory
        self._rewriting = asyncio.Lock()  # one table's files at a time: they take memory, disk and a core

    def close(self) -> None:
        """End the threads, and release the tables' connections."""
        self._thread.submit(self._tables.close)
        self._thread.shutdown()

    def load(self) -> None:
        """Read the numbers that this directory issued.

        Raises:
            OSError, DamagedFile, UnknownVersion: it cannot be used, and nothing may be committed.
        """
        self._ledger = Ledger.load(self._files.folder, self._files.disk)

    async def commit(self, table: TableName, parts: list[Part]) -> None:
        """Commit the parts of one table, which are in the order of their numbers.

        Raises:
            Foreign: nothing may be committed.
            TableError, Gone, …: it has to wait.
        """
        node, folder = parts[0].node, parts[0].folder
        while True:
            marker = await self.read_marker(table, node)
            if marker is not None:
                await self._settle(table, node, folder, marker)
            parts = [part for part in parts if marker is None or part.seq > marker]
            if not parts:
                return
            now = some(parts, self._bounds.commit_files)
            async with self._room.of(sum(len(part.files) for part in now)):
                await self._commit_some(table, now, marker)
            await self._settle(table, node, folder, now[-1].seq)
            parts = parts[len(now) :]
            self.step()
            if not parts:
                return

    async def _commit_some(self, table: TableName, parts: Sequence[Part], marker: int | None) -> None:
        """Commit the files of these parts together, however often others are first.

        Footers are read once: between two attempts there is nothing that takes longer the more files there are. Else a
        node that has many would lose to those that have few, and have even more the next time.

        Args:
            marker: as it was a moment ago.
        """
        node, seq = parts[0].node, parts[-1].seq
        conflicts = fits = 0
        sources = await self.read_footers(parts)
        while True:
            left = [source for source in sources if marker is None or source.seq > marker]
            if marker is None:
                left = await self._without_present(table, left)
            try:
                if left:
                    await self.attempt(table, [source.file for source in left], node, seq)
                return
            except Conflict:
                conflicts += 1
                self._block[Block.CONFLICTS] += 1
                if conflicts >= self._bounds.attempts:
                    raise
                await self._sleep(_jitter(conflicts))
            except Refused as error:
                fits += 1
                if not error.column or fits > _FITS or not await self.fit(table, parts[0].folder, node, left):
                    raise
                sources = await self.read_footers(parts)
            marker = await self.read_marker(table, node)

    # The steps of a commit

    async def read_marker(self, table: TableName, node: str) -> int | None:
        """Load a table fresh, and return the node's marker.

        Raises:
            Foreign: this directory never issued it.
        """
        assert self._ledger is not None
        marker = await self.call(self._tables.committed, table, node)
        told = marker
        if marker is None:
            told = await self.call(self._tables.left_behind, table, node)
        if told is not None and not self._ledger.has_issued(told):
            raise Foreign(
                f"table {_shown(table)} has the marker {told} of this node ({node}), which this WAL directory "
                f"never issued (its last number is {self._ledger.last}): it is an old copy, or a server runs with "
                "another copy of it. Nothing is committed to any table, so that no batch is there twice"
            )
        if marker is not None:
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

    async def read_footers(self, parts: Sequence[Part]) -> list[Source]:
        """Read the footers of files, which proves that they are in the store.

        Raises:
            Gone: some are not, or are no Parquet files.
            StorageError: the store does not give them.
        """
        found: list[Source] = []
        gone: list[str] = []

        async def read(one: tuple[int, str, DataFile]) -> Source | str:
            seq, key, file = one
            current, size = self.rewriter.current(key, file.bytes)
            try:
                footer = await find_footer(self._store, current, size)
            except (MissingObject, Unreadable) as error:
                self.rewriter.note_missing(key)
                return str(error)
            self.step()
            return Source(seq, key, NewFile(current, footer.size, footer.metadata.num_rows, footer.metadata))

        files = [(part.seq, *one) for part in parts for one in part.keyed()]
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
        result = await self.call(self._tables.commit, table, files, node, seq)
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

    async def fit(self, table: TableName, folder: str, node: str, sources: list[Source]) -> bool:
        """Rewrite the files whose columns differ from the table's. Returns False if that does not help."""
        known = await self.call(self._tables.columns, table)
        async with self._rewriting:
            try:
                return await self.rewriter.fit(table, folder, node, known, sources)
            except Odd as error:
                log.warning("%s: it cannot be rewritten", error)
                return False

    async def _settle(self, table: TableName, node: str, folder: str, covered: int) -> None:
        """Delete the objects that the table has not, of files that were rewritten and are in it."""
        twins = self.rewriter.unsettled(node, folder, covered)
        if not twins:
            return
        objects = frozenset(key for twin in twins for key in twin.objects)
        held = await self.call(self._held, table, objects)
        former: frozenset[str] = frozenset()
        if any(held.isdisjoint(twin.objects) for twin in twins):
            former = objects & await self.call(self._tables.former, table)
        await self.rewriter.settle(twins, held, former)

    async def _without_present(self, table: TableName, sources: list[Source]) -> list[Source]:
        """Leave out files that a table without a marker has: somebody removed the marker, or imported the files."""
        objects = {source.key: self.rewriter.objects(source.key) for source in sources}
        there = await self.call(self._held, table, frozenset().union(*objects.values()))
        if there:
            log.warning("table %s has no marker of this node, and %d of the files", _shown(table), len(there))
        return [source for source in sources if there.isdisjoint(objects[source.key])]

    def _held(self, table: TableName, keys: frozenset[str]) -> frozenset[str]:
        try:
            return keys.intersection(self._tables.files(table))
        except Dropped:
            return frozenset()

    async def table_of(self, part: Part) -> TableName:
        """Return the table of a part; a file's footer has the name if it was cut."""
        known = table_of(part.folder) or self._names.get(part.folder)
        if known is None:
            source = (await self.read_footers([part._replace(files=part.files[:1])]))[0]
            metadata = source.file.metadata.metadata or {}
            try:
                known = metadata[DATABASE].decode(), metadata[MEASUREMENT].decode()
            except KeyError:
                raise Gone(f"{source.file.key}: arcpipe did not write it: its footer names no table") from None
            self._names[part.folder] = known
        return known

    def step(self) -> None:
        """Tell the supervisor that work goes on."""
        self._block[Block.STEPS] += 1

    async def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do a format's work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*arguments))


class _Room:
    """A number of files that may be in memory at once. Whoever needs more than all of it waits for all of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def of(self, files: int) -> AsyncIterator[None]:
        """Take room for some files."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._used or self._used + files <= self._most)
            self._used += files
        try:
            yield
        finally:
            async with self._changed:
                self._used -= files
                self._changed.notify_all()


def _jitter(conflicts: int) -> float:
    least, first, most = _JITTER_SECONDS
    return random.uniform(least, min(first * 2.0 ** (conflicts - 1), most))


def _shown(table: TableName) -> str:
    return f"{table[0]!r}.{table[1]!r}"
