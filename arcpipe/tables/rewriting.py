"""Files that do not fit their table are written anew, under a key of their own, so that the table takes them.

    learn     which column takes which values: durable, for the uploader, too
    rewrite   in a spool; the key is that of the file with a hash of the new content: the same bytes, the same key
    record    the copy, durably (`tables.twins`)
    put       the copy
    verify    the copy as it is in the store, turned back: its sums are those of the file

Then it is committed in place of the file. After the commit `settle` deletes whichever of the two the table has not.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

import pyarrow as pa

from arcpipe.codec.columns import TIME
from arcpipe.config.settings import Parquet
from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError
from arcpipe.lake.checksums import Checksums
from arcpipe.lake.file_schema import for_readers
from arcpipe.lake.folders import Folder, parse_folder
from arcpipe.lake.input_file import InputFile, Odd
from arcpipe.lake.parquet_file import ParquetFile, Special
from arcpipe.lake.spool import Spool, SpoolMemory
from arcpipe.storage import LakeStore
from arcpipe.tables.base import Column, NewFile, TableName
from arcpipe.tables.fitting import Move, moved, moved_back, moved_schema, moves
from arcpipe.tables.learned import Learned
from arcpipe.tables.schema import shown, word_of
from arcpipe.tables.twins import Twin, Twins
from arcpipe.units import MB

log = logging.getLogger(__name__)

_READ_BYTES: Final = 8 * MB  # of one request
_NAME: Final = re.compile(r"(?:\.fit[0-9a-f]{16})?(_\d+\.parquet)\Z")


class Mismatch(ArcpipeError):
    """A copy does not hold the rows of its file. It is deleted, and was never committed."""


class Source(NamedTuple):
    """A file that may have to be rewritten."""

    seq: int
    key: str  # as its commit file has it
    file: NewFile  # as it would be committed


class Rewriter:
    """Rewrites files of one node. For one event loop; Parquet is read and written in a thread."""

    def __init__(
        self,
        store: LakeStore,
        folder: str,
        spool: str | os.PathLike[str],
        disk: Disk,
        parquet: Parquet,
        step: Callable[[], None],
    ) -> None:
        """Make ready; nothing is read before `load`.

        Args:
            folder: `tables/` of the WAL directory.
            spool: where files go that are too large for memory.
            step: called again and again while it works.
        """
        self._store = store
        self._folder = folder
        self._disk = disk
        self._parquet = parquet
        self._memory = SpoolMemory(spool, 32 * MB, 16 * MB)
        self._step = step
        self._twins = Twins("", disk)
        self._learned = Learned("", disk)
        self._ready: dict[str, tuple[str, int]] = {}  # by key of the commit file: the copy to commit, and its bytes
        self._settled: dict[str, tuple[str, ...]] = {}  # by such a key: the objects of which one is left

    def load(self) -> None:
        """Read what earlier rounds, of this or another process, wrote.

        Raises:
            OSError, DamagedFile, UnknownVersion: it cannot be used.
        """
        self._twins = Twins.load(self._folder, self._disk)
        self._learned = Learned.load(self._folder, self._disk)

    def current(self, key: str, size: int) -> tuple[str, int]:
        """Return the object to commit for a key of a commit file, with its bytes; -1 if they are not known."""
        ready = self._ready.get(key)
        if ready is not None:
            return ready
        source = self._twins.source(key)
        return source, size if source == key else -1

    def objects(self, key: str) -> frozenset[str]:
        """Return all objects that have, or had, the rows of a key of a commit file."""
        return frozenset(self._twins.objects(key))

    def note_missing(self, key: str) -> None:
        """Note that the object to commit is not there: a copy is made anew."""
        self._ready.pop(key, None)

    # Before a commit

    async def fit(self, table: TableName, folder: str, node: str, known: Sequence[Column], files: list[Source]) -> bool:
        """Rewrite the files that do not fit the table. Returns False if there are none.

        Args:
            known: the columns of the table.

        Raises:
            Mismatch: a copy was not as its file; it is gone.
            Odd: arcpipe did not write a file that does not fit.
            StorageError, OSError: try again.
        """
        columns = {column.name: column for column in known}
        found: list[tuple[Source, list[Move]]] = []
        for source in files:
            schema = for_readers(source.file.metadata.schema.to_arrow_schema())
            of_file = moves(list(columns.values()), schema, self._learned.targets(table), source.file.metadata)
            if of_file:
                self.learn(table, of_file)
                found.append((source, of_file))
                schema = moved_schema(schema, of_file)
            for field in schema:  # those that the table will have
                columns.setdefault(field.name, Column(field.name, word_of(field.type)))
        for source, of_file in found:
            await self._rewrite(folder, node, source, of_file)
        return bool(found)

    def learn(self, table: TableName, found: Sequence[Move]) -> None:
        """Have the uploader know how later files fit."""
        for move in self._learned.add(table, found):
            if move.table_type:
                what = f"is {move.table_type} in the table and {move.type} in files of this node"
            elif move.present:
                what = f"is a former name of {move.present!r}, and files have both"
            else:
                what = "differs from a column of the table in case only"
            log.warning("%s: the column %r %s: its values go to %r", shown(table), move.column, what, move.target)

    async def _rewrite(self, folder: str, node: str, source: Source, found: Sequence[Move]) -> None:
        place = parse_folder(source.file.key.rpartition("/")[0])
        if place is None:
            raise Odd(source.file.key, "it is in no folder of an hour")
        with closing(await self._fetch(source.file.key, source.file.size)) as spool:
            convert = Conversion(source.file, place, found, self._parquet, self._memory, self._step)
            copy, sums = await asyncio.to_thread(convert.run, spool)
        with closing(copy):
            key = await asyncio.to_thread(_key_of_copy, source.file.key, copy)
            self.record(source, node, folder, key)
            await self.put(key, copy)
            size = copy.size
        try:
            await self.verify(key, size, place, found, sums)
        except Mismatch:
            await self._store.delete(key)
            raise
        self._ready[source.key] = key, size

    def record(self, source: Source, node: str, folder: str, copy: str) -> None:
        """Note durably which copy is about to be put."""
        self._twins.add(source.seq, node, folder, source.key, copy)

    async def put(self, key: str, copy: Spool) -> None:
        """Put a copy."""
        await self._store.abort_uploads(key)
        await self._store.put(key, copy.blob())
        self._step()

    async def verify(self, key: str, size: int, place: Folder, found: Sequence[Move], wanted: Checksums) -> None:
        """Read a copy back, undo the moves, and compare the rows with those of the file.

        Raises:
            Mismatch: they differ.
        """
        sums = Checksums(list(wanted.columns))

        def read(spool: Spool) -> str:
            try:
                with _opened(key, spool, place) as file:
                    for table in file.tables():
                        self._step()
                        sums.add(moved_back(table, found, list(wanted.columns)))
            except Odd as error:
                return str(error)
            except (KeyError, pa.ArrowException) as error:
                return f"it has other columns or values: {error}"
            return wanted.difference(sums)

        with closing(await self._fetch(key, size)) as spool:
            difference = await asyncio.to_thread(read, spool)
        if difference:
            raise Mismatch(
                f"{key} was written in place of a file that does not fit its table, and is not what was read "
                f"({difference}): it is removed. Is the memory of this machine, or its disk, failing?"
            )

    async def _fetch(self, key: str, size: int) -> Spool:
        spool = Spool(self._memory)
        try:
            while spool.size < size and (data := await self._store.read(key, spool.size, _READ_BYTES)):
                await asyncio.to_thread(spool.write, data)
                self._step()
            if spool.size != size:
                raise Odd(key, f"it has {spool.size} bytes, and its footer was that of a file of {size}")
            spool.flush()
        except BaseException:
            spool.close()
            raise
        return spool

    # After a commit

    def unsettled(self, node: str, folder: str, marker: int) -> list[Twin]:
        """Return the files of a table that its marker covers, and whose other objects may still be there."""
        covered = self._twins.covered(node, folder, marker)
        return [twin for twin in covered if self._settled.get(twin.key) != tuple(twin.objects)]

    async def settle(self, twins: Sequence[Twin], held: frozenset[str], former: frozenset[str]) -> None:
        """Keep the objects that the table has, or an earlier state of it; delete the others.

        Args:
            held: the keys of the table's files.
            former: those of its earlier states.
        """
        kept: dict[str, str] = {}
        for twin in twins:
            there = [key for key in twin.objects if key in held] or [key for key in twin.objects if key in former]
            if not there:
                # Its rows went on to other files, or out of the table. Nobody but a person may decide over the last
                # object that has them.
                log.warning("%s is not in its table any more, and stays in the store", twin.objects[-1])
            kept[twin.key] = there[0] if there else twin.objects[-1]
        self._twins.settle(kept)
        await self._store.delete_all([key for twin in twins for key in twin.objects if key != kept[twin.key]])
        for twin in twins:
            self._ready.pop(twin.key, None)
            self._settled[twin.key] = tuple(twin.objects)

    def forget(self, seqs: frozenset[int]) -> None:
        """Forget the files of commit files that are gone.

        Args:
            seqs: the commit files that are there.
        """
        over = {twin.key for twin in self._twins if twin.seq not in seqs}
        if over:
            self._twins.forget(over)
            for key in over:
                self._settled.pop(key, None)
                self._ready.pop(key, None)


class Conversion:
    """A file becomes its copy, row group by row group: no more than one of 131,072 rows is in memory."""

    def __init__(
        self,
        file: NewFile,
        place: Folder,
        found: Sequence[Move],
        parquet: Parquet,
        memory: SpoolMemory,
        step: Callable[[], None],
    ) -> None:
        self._file = file
        self._place = place
        self._found = found
        self._parquet = parquet
        self._memory = memory
        self._step = step

    def run(self, spool: Spool) -> tuple[Spool, Checksums]:
        """Return the copy, and the sums of the file's rows."""
        out: ParquetFile | None = None
        try:
            with _opened(self._file.key, spool, self._place) as file:
                schema = moved_schema(file.schema, self._found)
                sums = Checksums(file.schema.names)
                for rows in file.tables():
                    self._step()
                    sums.add(rows)
                    table = moved(rows, self._found, schema)
                    if out is None:
                        first_us = table.column(TIME)[0].value
                        special = _special(self._file.metadata, self._found)
                        out = ParquetFile(self._parquet, self._memory, schema, first_us, table, special, is_small=False)
                    out.append(table)
            if out is None:
                raise Odd(self._file.key, "it has no rows")
            return out.finish(), sums
        except BaseException:
            if out is not None:
                out.abort()
            raise


@contextmanager
def _opened(key: str, spool: Spool, place: Folder) -> Iterator[InputFile]:
    file = InputFile(key, spool, place)
    try:
        yield file
    finally:
        file.close()


def _special(metadata: Any, found: Sequence[Move]) -> Special:
    """Find the columns that the file has without statistics, and without an encoding of differences."""
    targets = {move.column: [move.target, *([move.column] if move.keeps else [])] for move in found}
    huge: set[str] = set()
    far: set[str] = set()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            names = targets.get(column.path_in_schema, [column.path_in_schema])
            if column.statistics is None:
                huge.update(names)
            if "DELTA_BINARY_PACKED" not in column.encodings:
                far.update(names)
    return Special(frozenset(huge), frozenset(far))


def _key_of_copy(key: str, copy: Spool) -> str:
    """Name a copy by the name of its file and the hash of its content: a late put of it changes nothing."""
    digest = hashlib.sha256()
    for offset in range(0, copy.size, MB):
        digest.update(copy.read_at(offset, min(MB, copy.size - offset)))
    fitted, count = _NAME.subn(rf".fit{digest.hexdigest()[:16]}\1", key)
    assert count == 1, f"BUG: {key} has no name of arcpipe's"
    return fitted
