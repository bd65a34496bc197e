"""Files of a table that are merged or too old, for compaction and retention: out of the table by its own atomic commit.

The objects stay in the store: readers of earlier states need them. The table's upkeep deletes them when these states
expire.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from arcpipe.errors import MissingObject
from arcpipe.lake.file_schema import DATABASE, MEASUREMENT
from arcpipe.lake.folders import SUFFIX
from arcpipe.lake.footers import Unreadable, find_footer, read_footer
from arcpipe.lake.keys import database_components, measurement_components
from arcpipe.storage import LakeStore
from arcpipe.tables.base import Conflict, Dropped, NewFile, TableFormat, TableName
from arcpipe.tables.pending import table_of

log = logging.getLogger(__name__)
T = TypeVar("T")

_ATTEMPTS: Final = 10
_MOST_NAMES: Final = 10_000
_JITTER_SECONDS: Final = (0.05, 0.5)


class TableSwap:
    """Replaces and removes files of tables. For one event loop; the format is called from threads."""

    def __init__(self, open_tables: Callable[[], TableFormat], store: LakeStore) -> None:
        """Make ready; the format is opened by the first call."""
        self._open = open_tables
        self._store = store
        self._tables: TableFormat | None = None
        self._names: dict[str, TableName] = {}  # by folder: names that were cut

    async def close(self) -> None:
        """Release the tables' connections."""
        if self._tables is not None:
            await asyncio.to_thread(self._tables.close)
            self._tables = None

    async def is_there(self, folder: str) -> bool:
        """Tell whether there is a table for a folder."""
        table = await self._table_of(folder)
        return table is not None and bool(await self._call(lambda tables: tables.columns(table)))

    async def held(self, folder: str) -> frozenset[str]:
        """Return the keys of the files that the table of a folder has; none if there is no table.

        Args:
            folder: two components of keys.
        """
        table = await self._table_of(folder)
        return frozenset() if table is None else frozenset(await self._files(table))

    async def former(self, folder: str) -> frozenset[str]:
        """Return the keys of the files that readable earlier states of a table have, and it has not."""
        table = await self._table_of(folder)
        return frozenset() if table is None else frozenset(await self._call(lambda tables: tables.former(table)))

    async def replace(self, folder: str, old: Sequence[str], new: Sequence[tuple[str, int]]) -> bool:
        """Take files out of the table, and add others with the same rows, at once.

        Args:
            new: keys and sizes in bytes.

        Returns:
            True if the table has the new files; it may have had them before. False if it lacks some of the old ones,
            because somebody else was first: it will never take the new ones.

        Raises:
            TableError, StorageError: it is not known yet; try again.
        """
        table = await self._table_of(folder)
        assert table is not None, "BUG: a merge of files that no table has"
        for attempt in range(1, _ATTEMPTS + 1):
            held = await self._files(table)
            if held.issuperset(key for key, _ in new):
                return True
            if not held.issuperset(old):
                return False
            files = await self._footers(new)
            try:
                await self._call(functools.partial(_replace, table, old, files))
                return True
            except Conflict as error:
                if attempt == _ATTEMPTS:
                    raise
                log.info("%s; trying again", error)
                await asyncio.sleep(random.uniform(*_JITTER_SECONDS))
        raise AssertionError("BUG: the loop has an end")

    async def remove(self, folder: str, keys: Sequence[str]) -> None:
        """Take files with their rows out of the table."""
        table = await self._table_of(folder)
        if table is None or not keys:
            return
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._call(lambda tables: tables.remove(table, keys))
                return
            except Dropped:
                return
            except Conflict:
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(*_JITTER_SECONDS))

    async def _table_of(self, folder: str) -> TableName | None:
        """Return the table of a folder; if its name was cut, a file's footer has it. None if there is no such file."""
        known = table_of(folder) or self._names.get(folder)
        if known is not None:
            return known
        async for page in self._store.list_objects(f"{folder}/"):
            for listed in page:
                if not listed.key.endswith(SUFFIX):
                    continue
                try:
                    metadata = (await read_footer(self._store, listed.key, listed.size)).metadata or {}
                    found = metadata[DATABASE].decode(), metadata[MEASUREMENT].decode()
                except (Unreadable, MissingObject, KeyError, UnicodeDecodeError):
                    continue
                database, measurement = folder.split("/")
                if database in database_components(found[0]) and measurement in measurement_components(found[1]):
                    if len(self._names) >= _MOST_NAMES:
                        self._names.clear()
                    self._names[folder] = found
                    return found
        return None

    async def _footers(self, files: Sequence[tuple[str, int]]) -> list[NewFile]:
        found = []
        for key, size in files:
            footer = await find_footer(self._store, key, size)
            found.append(NewFile(key, footer.size, footer.metadata.num_rows, footer.metadata))
        return found

    async def _files(self, table: TableName) -> set[str]:
        try:
            return await self._call(lambda tables: set(tables.files(table)))
        except Dropped:
            return set()

    async def _call(self, work: Callable[[TableFormat], T]) -> T:
        def call() -> T:
            if self._tables is None:
                self._tables = self._open()
            return work(self._tables)

        return await asyncio.to_thread(call)


def _replace(table: TableName, old: Sequence[str], new: Sequence[NewFile], tables: TableFormat) -> None:
    tables.replace(table, old, new)
