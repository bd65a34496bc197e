"""Compare tables with the store, both ways, and import files that no table has.

    lost       in a table and not in the store: readers of the table fail
    waiting    uploaded, and handed over or about to be: the committer will add it
    former     a former state of the table has it: somebody compacted, or deleted rows; it goes when that state expires.
               Or a merge has its rows, and the table that knew it was dropped
    others     of another node, and in no table: it may wait there
    orphan     in the store, of this node or of none that is known, and in no table: `import_files` adds it

Servers go on meanwhile, so a file is only called an orphan after `batches/`, then the commit files, then the table were
looked at once more: a file moves from one to the next, and is never in none of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar, get_args

from arcpipe.errors import MissingObject
from arcpipe.lake.file_schema import DATABASE, MEASUREMENT
from arcpipe.lake.folders import Folder, parse_file_name, parse_folder
from arcpipe.lake.footers import Unreadable, find_footer, in_parallel
from arcpipe.lake.keys import Hidden, encode_database, encode_name
from arcpipe.storage import LakeStore, Listed
from arcpipe.tables.base import Conflict, Dropped, NewFile, TableFormat, TableName, UnreadableTables, is_outside
from arcpipe.tables.commit_file import CommitFiles
from arcpipe.tables.committer import BATCH_ENDINGS
from arcpipe.tables.pending import table_of
from arcpipe.tables.twins import Twins

T = TypeVar("T")

IMPORT_NODE: Final = "import"
"""The node whose marker says which import was the last one: so two imports at once add no file twice."""
_COMMIT_FILES: Final = 2_000  # of one commit of an import
_CONFLICTS: Final = 20  # in a row, before an import gives up


class Report(NamedTuple):
    """A folder of the store, or a table, and how they agree."""

    table: TableName
    is_table: bool  # whether there is one
    in_table: int
    in_store: int
    lost: list[str]
    orphans: list[tuple[str, int]]  # keys and sizes in bytes
    waiting: int
    others: int
    former: int
    outside: int  # files that the table has outside of the store
    problem: str = ""  # why the table cannot be read; empty if it can

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.orphans or self.problem)


class Stock:
    """What tables and the store have. The format is called from threads, one at a time."""

    def __init__(
        self,
        tables: TableFormat,
        store: LakeStore,
        wal_dir: str,
        node: str | None,
        all_nodes: bool = False,
        *,
        gone: str = "",
        inputs_of_merges: Callable[[Folder, list[Listed]], set[str]] = lambda folder, listed: set(),
    ) -> None:
        """Make ready; nothing is read.

        Args:
            node: this node; files of others may wait there. None if no server has used the WAL directory.
            all_nodes: whether files of other nodes are orphans, too: none of these nodes runs any more, or waits.
            gone: a node of which this holds while others run.
            inputs_of_merges: tells which files of a whole folder have their rows in others of it, too.
        """
        self._inputs_of_merges = inputs_of_merges
        self._tables = tables
        self._store = store
        self._wal_dir = wal_dir
        self._node = node
        self._all_nodes = all_nodes
        self._prefixes = tuple(f"{one}-" for one in (node, gone) if one)

    async def compare(self, only: TableName | None = None) -> AsyncIterator[Report]:
        """Yield how each table agrees with the store, and each folder without a table.

        Args:
            only: nothing but this table.

        Raises:
            TableError: the tables cannot be listed.
            StorageError: the store cannot be listed.
        """
        unreadable: UnreadableTables = {}
        known = [only] if only is not None else await self._call(self._tables.all_tables, unreadable)
        folders: dict[str, TableName] = {folder: table for table in known for folder in _folders_of(table)}
        found = await self._folders(only)
        by_table: dict[TableName, list[str]] = {table: [] for table in known}
        for folder in found:
            table = folders.get(folder) or table_of(folder) or ("", folder)
            by_table.setdefault(table, []).append(folder)
        for table in sorted(by_table.keys() | unreadable.keys()):
            if (problem := unreadable.get(table)) is None:
                yield await self._compare(table, by_table[table])
            else:
                yield Report(table, True, 0, 0, [], [], 0, 0, 0, 0, str(problem))

    async def _folders(self, only: TableName | None) -> list[str]:
        """List the folders of measurements in the store."""
        if only is not None:
            return sorted(set(_folders_of(only)))
        found = []
        for database in await self._store.list_folders(""):
            if database[0] not in "._":
                found += [f"{database}/{name}" for name in await self._store.list_folders(f"{database}/")]
        return [folder for folder in found if folder.rpartition("/")[2][0] not in "._"]

    async def _compare(self, table: TableName, folders: Iterable[str]) -> Report:
        stored: dict[str, int] = {}
        nodes: dict[str, str] = {}  # by key: the batch
        for prefix in folders:
            async for page in self._store.list_objects(f"{prefix}/"):
                for listed in page:
                    path, _, filename = listed.key.rpartition("/")
                    folder = parse_folder(path)
                    name = parse_file_name(filename, folder) if folder is not None else None
                    if name is not None:
                        stored[listed.key] = listed.size
                        nodes[listed.key] = name.batch
        try:
            held = await self._files(table)
        except Dropped:
            held = None
        except Exception as error:  # of any kind: the report tells it
            return Report(table, True, 0, len(stored), [], [], 0, 0, 0, 0, str(error))
        inside = {key for key in held or () if not is_outside(key)}
        lost = [key for key in sorted(inside - stored.keys()) if not await self._store.exists(key)]
        left = stored.keys() - inside
        waiting = self._waiting({key: nodes[key] for key in left}) if left else set()
        former: set[str] = set()
        if left - waiting and held is not None:
            left -= await self._files(table)  # committed meanwhile
            former = left & await self._call(self._tables.former, table)
        left -= waiting | former
        merged = await self._merged(left)
        left -= merged
        former |= merged
        others = {key for key in left if self._is_of_another(nodes[key])}
        orphans = [(key, stored[key]) for key in sorted(left - others)]
        counts = len(held or ()), len(stored)
        outside = len(held or ()) - len(inside)
        return Report(table, held is not None, *counts, lost, orphans, len(waiting), len(others), len(former), outside)

    async def _merged(self, keys: Iterable[str]) -> set[str]:
        """Find files of which a merge has the rows: those of a table that was dropped since are in no history."""
        found: set[str] = set()
        for path in {key.rpartition("/")[0] for key in keys}:
            folder = parse_folder(path)
            assert folder is not None, "BUG: such a key was parsed"
            listed = [one async for page in self._store.list_objects(f"{path}/") for one in page]
            found |= self._inputs_of_merges(folder, listed)
        return found.intersection(keys)

    async def _files(self, table: TableName) -> set[str]:
        return await self._call(lambda: set(self._tables.files(table)))

    def _waiting(self, batches: dict[str, str]) -> set[str]:
        """Find files of batches that are not ended, or whose commit file waits. Looks in this order."""
        found: set[str] = set()
        try:
            names = set(os.listdir(os.path.join(self._wal_dir, "batches")))
        except FileNotFoundError:
            names = set()
        for key, batch in batches.items():
            # Parts of a batch that were converted on their own have a number after the id.
            ids = (batch, batch.rpartition(".")[0])
            if any(one + end in names for one in ids for end in BATCH_ENDINGS):
                found.add(key)
        plan = self._merge_plan()
        found |= {key for key in batches if key in plan}
        files = CommitFiles(self._wal_dir)
        for twin in Twins.load(files.folder, files.disk):  # files that are rewritten, and their copies
            found |= batches.keys() & set(twin.objects)
        for name in files.names():
            content = files.read(name)
            for table in content.tables if content is not None else ():
                found.update(batches.keys() & set(table.keys()))
        return found

    def _merge_plan(self) -> str:
        """Return the plan of a merge, which names the files that it will put into a table; empty if there is none."""
        try:
            with open(os.path.join(self._wal_dir, "compaction", "plan.json"), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _is_of_another(self, batch: str) -> bool:
        return not self._all_nodes and self._node is not None and not batch.startswith(self._prefixes)

    # Import

    async def import_files(self, report: Report, note: Callable[[int], None] = lambda files: None) -> int:
        """Add the orphans of a report to their table. Returns how many were added.

        Args:
            note: called with the number of files of each commit.

        Raises:
            TableError: the table does not take them; those of earlier commits are there.
            Unreadable, StorageError: a file cannot be read.
        """
        added = conflicts = 0
        left = report.orphans
        while left:
            files = await self._footers(left[:_COMMIT_FILES])
            table = _table_in(files[0]) if files else report.table
            # The marker is read before the files: who sets it meanwhile makes this commit do nothing.
            marker = await self._call(self._tables.committed, table, IMPORT_NODE)
            try:
                held = await self._files(table)
            except Dropped:
                held = set()
            new = [file for file in files if file.key not in held]
            if new:
                try:
                    done = await self._call(self._tables.commit, table, new, IMPORT_NODE, (marker or 0) + 1)
                except Conflict:
                    done = None
                if done is None or not done.files:
                    conflicts += 1
                    if conflicts >= _CONFLICTS:
                        raise Conflict(f"table {table[0]}.{table[1]}: others commit all the time; try again later")
                    continue
                added += done.files
                note(done.files)
            conflicts = 0
            left = left[_COMMIT_FILES:]
        return added

    async def _footers(self, files: Sequence[tuple[str, int]]) -> list[NewFile]:
        async def read(file: tuple[str, int]) -> NewFile | None:
            try:
                footer = await find_footer(self._store, *file)
            except MissingObject:
                return None
            return NewFile(file[0], footer.size, footer.metadata.num_rows, footer.metadata)

        found = [result async for _, result in in_parallel(files, read)]
        return [file for file in found if file is not None]

    async def _call(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.to_thread(work, *arguments)


def _folders_of(table: TableName) -> list[str]:
    """Return the folders that a table's files may be in: names were encoded in different ways."""
    ways: tuple[Hidden, ...] = get_args(Hidden)
    return [f"{encode_database(table[0], hidden)}/{encode_name(table[1], hidden)}" for hidden in ways]


def _table_in(file: NewFile) -> TableName:
    metadata = file.metadata.metadata or {}
    try:
        return metadata[DATABASE].decode(), metadata[MEASUREMENT].decode()
    except KeyError:
        raise Unreadable(f"{file.key}: arcpipe did not write it: its footer names no table") from None
