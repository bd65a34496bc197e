"""Look through the lake for hours that are worth merging, and merge them, one at a time.

    compactor = Compactor(settings, directory, node, store)
    async for work in compactor.find(): ...
    await compactor.compact(work.folder)         # takes the lock, finishes a plan that a crash left, merges

An hour is closed `compaction.after_seconds` after its end. Files that come later are found by the next look.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe.compaction.dedup import DedupRules
from arcpipe.compaction.files import (
    SUFFIX,
    LakeFile,
    batch_of,
    choose,
    choose_for_dedup,
    final,
    first_unfinished,
    parse_file,
)
from arcpipe.compaction.merge import Merge, Outcome, Stuck
from arcpipe.compaction.plan import Plans, make_plan
from arcpipe.compaction.rewrite import CannotSort, RewriteBounds
from arcpipe.config.settings import FileLocation
from arcpipe.disk import Disk, space
from arcpipe.errors import ArcpipeError
from arcpipe.lake.file_schema import HOUR_US
from arcpipe.lake.folders import Folder, parse_folder, table_folder
from arcpipe.lake.input_file import Odd
from arcpipe.lake.keys import database_components, measurement_components
from arcpipe.storage import LakeStore, Listed
from arcpipe.tables.base import Refused
from arcpipe.tables.commit_file import FOLDER
from arcpipe.tables.ledger import FILENAME
from arcpipe.tables.problems import Problems
from arcpipe.tables.swap import TableSwap
from arcpipe.units import MB

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)

# Bytes on disk for each byte of input: ranges of rows with a fast codec, and an output that waits for its put.
_SPILL: Final = 4
# Odd files of a folder after which it is left for this time: something is wrong with the folder, or with the store.
_MOST_ODD: Final = 20


class Bounds(NamedTuple):
    """Times that tests shrink, in seconds."""

    settle_seconds: float = 300.0  # age of an input: later than any late request of a process that was killed


class NoSpace(ArcpipeError):
    """The disk has no room for a merge."""


class Work(NamedTuple):
    """A folder with files that are worth merging."""

    folder: Folder
    dedup: bool
    files: int
    size: int  # bytes of them together


class Compactor:
    """Finds and does the merges of one node."""

    def __init__(  # noqa: PLR0913 (most of them are for tests)
        self,
        settings: Settings,
        wal_dir: str,
        node: str,
        store: LakeStore,
        *,
        now: Callable[[], float] = time.time,
        bounds: Bounds | None = None,
        rewrite_bounds: RewriteBounds | None = None,
        disk: Disk | None = None,
        tables: TableSwap | None = None,
    ) -> None:
        """Make ready; nothing is read.

        Args:
            now: seconds since the epoch.
            tables: where the files are a part of tables: files that no table has are left alone.
        """
        self.tables = tables
        self._settings = settings
        self._store = store
        self._node = node
        self._now = now
        self._bounds = bounds or Bounds()
        self._batches = os.path.join(wal_dir, "batches")
        self._ledger = os.path.join(wal_dir, FOLDER, FILENAME)
        self._spool = os.path.join(wal_dir, "compaction")
        self._dedup = DedupRules(settings.compaction.dedup)
        self._odd: dict[Listed, str] = {}
        self.plans = Plans(wal_dir, disk)
        memory = rewrite_bounds or RewriteBounds.of(settings.compaction.memory_mb)
        self._merge = Merge(self.plans, store, node, self._spool, settings.parquet, memory, tables)

    def stop(self) -> None:
        """Have a merge that is not committed end soon, with Stopped. Any thread may call it."""
        self._merge.is_stopping = True

    @property
    def odd(self) -> dict[str, str]:
        """The files that stay as they are, and why, by key."""
        return {listed.key: reason for listed, reason in self._odd.items()}

    # Finding

    async def find(
        self, database: str | None = None, measurement: str | None = None, before_us: int | None = None
    ) -> AsyncIterator[Work]:
        """Look through the lake, or through one database or measurement of it, for closed hours that are worth merging.

        Args:
            before_us: only hours that end by then; by default those that are closed.

        Raises:
            TableError: some tables cannot be read. All that was found in others was yielded before.
        """
        problems = Problems()
        closed_us = int((self._now() - self._settings.compaction.after_seconds) * 1_000_000)
        closed_us = closed_us if before_us is None else min(before_us, closed_us)
        databases = await self._store.list_folders("") if database is None else database_components(database)
        for one in databases:
            if one[0] in "._":
                continue
            measurements = await self._store.list_folders(f"{one}/")
            if measurement is not None:
                measurements = [name for name in measurements if name in measurement_components(measurement)]
            for name in measurements:
                with problems.of_one_table():
                    async for work in self._find_in(f"{one}/{name}/", closed_us):
                        yield work
                        problems.note_answer()
        problems.raise_first()

    async def _find_in(self, prefix: str, closed_us: int) -> AsyncIterator[Work]:
        path, files = "", list[Listed]()
        hour: Folder | None = None
        held: frozenset[str] | None = None  # read once an hour is found: a table of somebody else may be unreadable
        async for page in self._store.list_objects(prefix):
            for listed in page:
                folder = listed.key.rpartition("/")[0]
                if folder != path:
                    if (work := self._work_in(hour, files, closed_us)) is not None:
                        yield work
                    path, hour, files = folder, parse_folder(folder), []
                if hour is None:
                    continue
                if held is None and self.tables is not None:
                    held = await self.held(prefix)
                if held is None or listed.key in held:
                    files.append(listed)
        if (work := self._work_in(hour, files, closed_us)) is not None:
            yield work

    async def held(self, path: str) -> frozenset[str] | None:
        """Return the keys that the table of a path has; None if there are no tables."""
        return None if self.tables is None else await self.tables.held(table_folder(path))

    async def list_folder(self, folder: Folder, held: frozenset[str] | None = None) -> list[Listed]:
        """List the files in a folder; with tables only those that its table has.

        Args:
            held: the keys that the table had a while ago, of `held`; by default it is asked.
        """
        listed = [one async for page in self._store.list_objects(folder.path + "/") for one in page]
        held = await self.held(folder.path) if held is None else held
        own = [one for one in listed if one.key.rpartition("/")[0] == folder.path]
        return own if held is None else [one for one in own if one.key in held]

    def _work_in(self, folder: Folder | None, listed: list[Listed], closed_us: int) -> Work | None:
        if folder is None or folder.hour_us + HOUR_US > closed_us:
            return None
        files = self._choose(folder, listed)
        return Work(folder, self._is_dedup(folder), len(files), sum(file.size for file in files)) if files else None

    def _is_dedup(self, folder: Folder) -> bool:
        return self._dedup.applies(folder.database, folder.measurement)

    def _choose(self, folder: Folder, listed: list[Listed]) -> list[LakeFile]:
        """Choose the files of a folder. They were listed before this is called.

        Raises:
            OSError: nobody knows which batches are over.
        """
        dedup = self._is_dedup(folder)
        # A file that a table has is final, whoever uploaded it; and of two merges of one file the table takes one.
        of_several = dedup and self.tables is not None
        node = None if of_several else self._node
        visible = [one for one in listed if one.key.endswith(SUFFIX)]
        files = [file for one in visible if (file := parse_file(one, folder, node)) is not None]
        unfinished = self._unfinished()
        files = [file for file in files if file.listed not in self._odd]
        ready = final(files, unfinished, self._now() - self._bounds.settle_seconds)
        if dedup:
            return choose_for_dedup(files, ready, first_unfinished(unfinished, of_several))
        return choose(ready, self._settings.parquet.max_file_mb * MB)

    def final_files(
        self, folder: Folder, listed: list[Listed], *, all_nodes: bool = False
    ) -> tuple[list[LakeFile], int]:
        """Return the files of a folder that are final, and the number of all others. They were listed before.

        Args:
            all_nodes: whether files of other nodes count; nobody knows which of them are final.

        Raises:
            OSError: nobody knows which batches are over.
        """
        node = None if all_nodes else self._node
        files = [file for one in listed if (file := parse_file(one, folder, node)) is not None]
        ready = final(files, self._unfinished(), self._now() - self._bounds.settle_seconds)
        return ready, len(listed) - len(ready)

    def _unfinished(self) -> set[str]:
        return {batch_of(name) for name in os.listdir(self._batches)}

    # Merging

    async def finish(self) -> None:
        """Take a plan that a crash left to its end, and remove hidden objects that nobody needs.

        Raises:
            Busy: another process is compacting.
            Stuck, DamagedFile, UnknownVersion: an operator has to decide. Or files of tables would be touched without
                tables.
        """
        with self.plans.lock():
            await self._finish()
            self._require_no_tables()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the right to change files of this node, with no plan open.

        Raises:
            As `finish`.
        """
        with self.plans.lock():
            if self.plans.read() is not None:
                await self._finish()
            self._require_no_tables()
            yield

    def _require_no_tables(self) -> None:
        """Refuse to work without tables if files of this node are in some: their readers would miss the files.

        Raises:
            Stuck: this WAL directory has issued numbers of commits, and the settings have no tables.
        """
        if self.tables is not None:
            return
        try:
            os.stat(self._ledger)
        except FileNotFoundError:
            return
        raise Stuck(
            'tables.format is "none", and tables have files of this node, which their readers need: set it again; or '
            f"if these tables are gone for good, move {self._ledger} away. Nothing is merged or deleted"
        )

    async def _finish(self) -> None:
        plan = self.plans.read()
        if plan is not None:
            await self._merge.resume(plan)
        else:
            await self._merge.clean()

    async def compact(self, folder: Folder) -> Outcome | None:
        """Merge the files of a folder that are worth it.

        Returns:
            None if none are, or not any more.

        Raises:
            Busy: another process is compacting.
            ArcpipeError, OSError: this folder was not merged; the text says why.
        """
        async with self.turn():
            for _ in range(_MOST_ODD):
                files = self._choose(folder, await self.list_folder(folder))
                if not files:
                    return None
                self._require_space(sum(file.size for file in files))
                dedup, in_table = self._is_dedup(folder), self.tables is not None
                plan = make_plan(self._store.url, folder, files, self._node, dedup, in_table)
                try:
                    return await self._merge.run(plan, folder)
                except Odd as error:
                    self._leave(error, files)
                except Refused as error:
                    if not error.column:
                        raise
                    log.warning("%d files of %s stay as they are: %s", len(files), folder.path, error)
                    self._odd |= dict.fromkeys((file.listed for file in files), str(error))
        raise CannotSort(f"{folder.path} has over {_MOST_ODD} files that cannot be merged: it is left for now")

    def _leave(self, error: Odd, files: list[LakeFile]) -> None:
        """Leave files as they are from now on, as long as they do not change."""
        others = f" (and {len(error.keys) - 1} other files)" if len(error.keys) > 1 else ""
        log.warning("a file stays as it is, and the others are merged without it: %s%s", error, others)
        for file in files:
            if file.listed.key in error.keys:
                self._odd[file.listed] = error.reason

    def _require_space(self, size: int) -> None:
        """Raise NoSpace if the disks of the WAL, or of a local store, might get too full."""
        least = self._settings.wal.min_free_mb * MB
        location = self._settings.storage.location
        wanted = [(self._spool, size * _SPILL)]
        if isinstance(location, FileLocation):
            wanted.append((str(location.path), size))
        for path, needed in wanted:
            free, _ = space(os.statvfs(path))
            if free < needed + least:
                raise NoSpace(
                    f"a merge of {size / 1e6:.0f} MB needs up to {needed / 1e6:.0f} MB in {path}, besides "
                    f"wal.min_free_mb, and {free / 1e6:.0f} MB are free: free space there; the files stay as they are"
                )
