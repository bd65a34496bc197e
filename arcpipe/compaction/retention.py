"""Retention: whole hours whose end is older than `retention.days` are deleted. It is off unless a database is named.

    limits = await retention.limits()                     # by database: hours that end by then are expired
    async for expired in retention.find(limits): ...      # what would go; nothing is changed
    await retention.delete(expired.folder)                # takes the lock, lists again, deletes

The age is of the hour in the folder's name, not of the file. A node deletes the files that it uploaded itself, as it
merges no others: nodes on one bucket may have different settings, and only the node knows which files are final. Files
of nodes that are gone are deleted by `arcpipe lake expire --all-nodes`.

**The clock.** Age is counted from now, or from a day after the newest hour in the lake if that is earlier. So a clock
that runs ahead deletes nothing as long as clients send their times, and a lake that nobody writes to is kept.
`retention_clock` has the other half: nothing is deleted within a day of a jump.

**Crashes.** Deletes are repeated by the next look. They take the lock of merges, and finish a plan that a crash left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, NamedTuple

from arcpipe.compaction.compactor import Compactor
from arcpipe.compaction.files import LakeFile
from arcpipe.compaction.retention_clock import DAY_US
from arcpipe.errors import StorageError
from arcpipe.lake.file_schema import HOUR_US
from arcpipe.lake.folders import Folder, parse_folder, table_folder
from arcpipe.lake.hours import hours_until, newest_hour
from arcpipe.lake.keys import database_components
from arcpipe.storage import LakeStore
from arcpipe.tables.problems import Problems

_EMPTY_SECONDS: Final = 600.0  # age of an empty folder that is removed: an uploader may just have made a young one
_AHEAD_US: Final = DAY_US  # most time that the clock may be ahead of the newest hour's end


class Expired(NamedTuple):
    """An hour that is old enough, and its files that may be deleted."""

    folder: Folder
    files: list[LakeFile]
    others: int  # files of other nodes and programs, and those that are not final yet

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def limit_us(now_us: int, newest_us: int, days: int) -> int:
    """Return the time by which an hour has to end to be expired.

    Args:
        newest_us: first µs of the newest hour in the lake.
    """
    return min(now_us, newest_us + HOUR_US + _AHEAD_US) - days * DAY_US


class Retention:
    """Finds and deletes the hours that are too old."""

    def __init__(
        self,
        store: LakeStore,
        compactor: Compactor,
        *,
        all_nodes: bool = False,
        now: Callable[[], float] = time.time,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """Make ready; nothing is read.

        Args:
            all_nodes: whether files of other nodes are deleted, too.
            now: seconds since the epoch.
            step: called for each measurement and hour that was looked at.
        """
        self._step = step
        self._store = store
        self._compactor = compactor
        self._all_nodes = all_nodes
        self._now = now

    async def limits(self, days: Mapping[str, int]) -> dict[str, int]:
        """Return by which time an hour has to end to be expired, by database. Empty if the lake has no files."""
        now_us = int(self._now() * 1_000_000)
        newest = await self._newest_hour(now_us)
        return {} if newest is None else {name: limit_us(now_us, newest, count) for name, count in days.items()}

    async def _newest_hour(self, now_us: int) -> int | None:
        """Return the newest hour of the lake, or any that lets the clock decide alone."""
        newest: int | None = None
        for database in await self._store.list_folders(""):
            if database[0] in "._":
                continue
            for measurement in await self._store.list_folders(f"{database}/"):
                self._step()
                hour = await newest_hour(self._store, f"{database}/{measurement}/", now_us)
                if hour is not None and (newest is None or hour > newest):
                    newest = hour
                if newest is not None and newest + HOUR_US + _AHEAD_US >= now_us:
                    return newest
        return newest

    async def find(self, limits: Mapping[str, int], *, tidies: bool = False) -> AsyncIterator[Expired]:
        """Yield the expired hours that have files, also of others only, by measurement and the oldest first.

        Args:
            tidies: whether empty folders are removed, which an earlier look has left. Else nothing is changed.

        Raises:
            TableError: some tables cannot be read. All that was found in others was yielded before.
        """
        problems = Problems()
        for database, end_us in limits.items():
            for component in database_components(database):
                for measurement in await self._store.list_folders(f"{component}/"):
                    with problems.of_one_table():
                        async for expired in self._find_in(f"{component}/{measurement}/", end_us, tidies):
                            yield expired
                            problems.note_answer()
        problems.raise_first()

    async def _find_in(self, measurement: str, end_us: int, tidies: bool) -> AsyncIterator[Expired]:
        held: frozenset[str] | None = None  # read once for all hours, and again before anything is deleted
        async for found in hours_until(self._store, measurement, end_us):
            self._step()
            folder = parse_folder(found.path)
            if folder is None:
                continue
            held = await self._compactor.held(measurement) if held is None else held
            if any((expired := await self._look(folder, held))[1:]):
                yield expired
            elif tidies:
                with contextlib.suppress(StorageError):  # a folder that stays costs a look at it
                    await self._store.remove_empty(folder.path, self._now() - _EMPTY_SECONDS)

    async def delete(self, folder: Folder) -> Expired:
        """Delete the files of an expired hour.

        Returns:
            What was deleted.

        Raises:
            Busy: a merge is under way; nothing was deleted.
            ArcpipeError, OSError: some files may still be there.
        """
        async with self._compactor.turn():
            expired = await self._look(folder)
            keys = [file.listed.key for file in expired.files]
            if self._compactor.tables is None:
                await self._store.delete_all(keys)
            else:  # the table's upkeep deletes them, when no readable state needs them
                await self._compactor.tables.remove(table_folder(folder.path), keys)
        return expired

    async def _look(self, folder: Folder, held: frozenset[str] | None = None) -> Expired:
        listed = await self._compactor.list_folder(folder, held)
        files, others = self._compactor.final_files(folder, listed, all_nodes=self._all_nodes)
        return Expired(folder, files, others)
