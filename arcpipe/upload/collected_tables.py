"""Collect the columnar maps of a batch by table and shape, and decide when they are converted.

Maps of one shape make a group, and the groups of a measurement a table. A table is handed to `conversion_jobs` when it
has enough rows for a row group, when it or all tables together cost too much memory, and at the end. All of this is for
one thread, and follows from the order and the sizes of the maps alone.

This module must not know envelopes, the WAL, Arrow or object stores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

import numpy as np

from arcpipe.codec.entries import array_length
from arcpipe.codec.envelope import ColumnMap, encode_entry
from arcpipe.errors import BadPayload
from arcpipe.lake.open_files import OpenFiles
from arcpipe.upload.arrow_entries import ArrowEntry, ArrowGroup
from arcpipe.upload.budget import DECODED_BYTES, Budget
from arcpipe.upload.conversion_jobs import Bundle, ConversionJobs, Group
from arcpipe.upload.dead_letters import DeadLetter, DeadLetters
from arcpipe.upload.layouts import Found
from arcpipe.upload.runs import Run
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.staging import (
    EntryGroup,
    EntryShape,
    GroupKey,
    Misfit,
    Piece,
    Staged,
    entry_payload,
    group_key,
    whole_piece,
    with_columns,
)
from arcpipe.upload.table_jobs import CollectedTable, TableJobs
from arcpipe.upload.table_schema import TableName, TableSchema

# Bytes of memory that an entry, and each column of it, costs besides its values: first staged, then compacted.
_STAGED_ENTRY: Final = 200
_STAGED_COLUMN: Final = 80
_COMPACT_ENTRY: Final = 100
_COMPACT_COLUMN: Final = 4
# Bytes that the first entry of a shape, and each column of it, costs besides: names, and places of columns.
_SHAPE: Final = 1_000
_SHAPE_COLUMN: Final = 250
# Bytes that each piece of compacted entries, and each column of it, costs besides its values.
_PIECE: Final = 500
_PIECE_COLUMN: Final = 350
# Most bytes of JSON that a column costs per row besides its name, should its values be rescued.
_RESCUED_COLUMN: Final = 16

_NO_ARRAY: Final = 0xC1  # a marker that MessagePack never uses
_NO_VIEW: Final = memoryview(b"")


class CollectedTables:
    """Collect columnar maps and hand them to the jobs of the batch; blocks while the pool is busy."""

    def __init__(
        self,
        jobs: ConversionJobs,
        letters: DeadLetters,
        registry: SchemaRegistry,
        budget: Budget,
        open_files: OpenFiles,
        row_group_rows: int,
        careful: Collection[TableName],
    ) -> None:
        self._jobs = jobs
        self._letters = letters
        self._registry = registry
        self._budget = budget
        self._row_group_rows = row_group_rows
        self._careful = frozenset(careful)

        self._tables: dict[TableName, CollectedTable] = {}
        self._groups: dict[GroupKey, tuple[CollectedTable, EntryGroup]] = {}
        self._cost = 0
        self._table_jobs = TableJobs(jobs, open_files)
        self._most_with_files = open_files.tables

    def add(
        self,
        database: str,
        precision: str | None,
        columns: ColumnMap,
        size: int,
        timestamp_us: int,
        origin: int,
        part: int,
    ) -> None:
        """Take a columnar map that has `size` bytes and is number `part` of its entry.

        Rows without a time get `timestamp_us`. `origin` is the caller's number of the entry, for dead letters.
        """
        arrays = columns.columns
        key = group_key(database, precision, columns)
        found = self._groups.get(key)
        for array in arrays.values():  # the first one tells the number of rows
            first = memoryview(array)
            marker = first[0]
            break
        else:
            first, marker = _NO_VIEW, _NO_ARRAY
        rows = 0
        if 0x90 < marker <= 0x9F:
            rows = marker & 15
        elif marker == 0xDC:
            rows = first[1] << 8 | first[2]
        if not rows:
            rows = self._count_rows(database, precision, columns, origin, part)
            if not rows:
                return
        shape = EntryShape(database, precision, columns) if found is None else found[1].shape
        self._stage(key, shape, (rows, timestamp_us, origin, part, *arrays.values()), size)

    def add_found(self, found: Found, payload: bytes | memoryview, timestamp_us: int, origin: int) -> None:
        """Take a columnar map that is the only one of its entry, and whose columns are found. Otherwise as `add`."""
        entry = (found.rows, timestamp_us, origin, 0, found.places, payload)
        self._stage(found.key, found.shape, entry, len(payload))

    def _stage(self, key: GroupKey, shape: EntryShape, entry: Staged, size: int) -> None:
        rows = entry[0]
        table, group = self._groups.get(key) or self._new_group(key, shape, rows)
        width = len(shape.index)
        decoded = DECODED_BYTES * rows * width
        cost = (size if size > decoded else decoded) + _STAGED_ENTRY + _STAGED_COLUMN * width
        budget = self._budget
        if table.cost + cost > budget.table_bytes:
            if table.rows:
                self._flush(table)
                self._stage(key, shape, entry, size)
            else:
                self._add_large(table, shape, entry)
            return
        staged = group.staged
        staged.append(entry)
        table.rows += rows
        table.cost += cost
        self._cost += cost
        if table.rows >= table.max_rows:
            self._flush(table)
        elif size < budget.compact_entry_bytes and len(staged) >= budget.compact_entries:
            self._compact(table, group)
        elif self._cost >= budget.collected_bytes:
            self._relieve()

    def add_run(self, run: Run, piece: Piece) -> None:
        """Take a run, and the piece that its entries are."""
        width = len(run.shape.index)
        rows = np.cumsum(run.rows, dtype=np.int64)
        costs = np.cumsum(
            np.maximum(run.sizes, DECODED_BYTES * width * run.rows.astype(np.int64))
            + (_COMPACT_ENTRY + _COMPACT_COLUMN * width)
        )
        budget = self._budget
        start = rows_before = cost_before = 0
        while start < len(rows):
            table, group = self._groups.get(run.key) or self._new_group(run.key, run.shape, int(run.rows[start]))
            room = budget.table_bytes - table.cost
            if table.rows and costs[start] - cost_before > room:
                self._flush(table)
                continue
            stop = min(
                int(np.searchsorted(rows, rows_before + table.max_rows - table.rows)) + 1,
                int(np.searchsorted(costs, cost_before + min(room, budget.collected_bytes - self._cost), "right")),
                len(rows),
            )
            stop = max(stop, start + 1)
            if group.staged:
                self._compact(table, group)
            pieces = len(group.pieces)
            group.hold(piece.cut(start, stop))
            cost = int(costs[stop - 1]) - cost_before + (len(group.pieces) - pieces) * (_PIECE + _PIECE_COLUMN * width)
            table.rows += int(rows[stop - 1]) - rows_before
            table.cost += cost
            self._cost += cost
            start, rows_before, cost_before = stop, int(rows[stop - 1]), int(costs[stop - 1])
            if table.rows >= table.max_rows:
                self._flush(table)
            elif self._cost >= budget.collected_bytes:
                self._relieve()

    def add_arrow(self, entry: ArrowEntry, names: Collection[str]) -> None:
        """Take an entry that is an Arrow IPC stream with columns of these names."""
        table = self._table((entry.database, entry.body.m))
        budget = self._budget
        cost = entry.size_bytes + _STAGED_ENTRY
        if table.rows and table.cost + cost > min(budget.stream_bytes, budget.table_bytes):
            self._flush(table)
        is_large = cost > budget.table_bytes
        if is_large:  # with as little else in memory as possible
            self._jobs.wait()
        table.arrow.entries.append(entry)
        table.names.update(names)
        table.max_rows = self._max_rows(table.names)
        table.rows += entry.body.rows
        table.cost += cost
        self._cost += cost
        if is_large or table.rows >= table.max_rows:
            self._flush(table)
        elif self._cost >= budget.collected_bytes:
            self._relieve()
        if is_large:
            self._jobs.wait()

    def release(self) -> None:
        """Release old payloads, so that views of a few bytes do not keep whole segments in memory."""
        for _, group in self._groups.values():
            group.release()
        for table in self._tables.values():
            table.arrow.release()

    def flush_all(self) -> None:
        """Hand everything that is left to the pool, and have all files finished."""
        small = []
        for table in self._tables.values():
            if table.flushed or table.cost > self._budget.small_table_bytes:
                width = len(table.names)
                groups, cost = self._take(table)
                self._table_jobs.submit(table, groups, cost, width, close=True)
            else:
                small.append(table)
        self._flush_small(small)

    def schemas(self) -> Iterator[TableSchema]:
        """Yield the schema of each table, once all jobs are done."""
        return (table.output.schema for table in self._tables.values())

    def abort(self) -> None:
        """Abort the files that are open, once all jobs are done."""
        for table in self._tables.values():
            table.output.writers.abort()

    def _count_rows(self, database: str, precision: str | None, columns: ColumnMap, origin: int, part: int) -> int:
        """Count the rows of any columnar map. One without valid rows becomes a dead letter, and has 0."""
        try:
            return _rows(columns)
        except BadPayload as error:
            payload = encode_entry(database, precision, columns)
            self._letters.add(DeadLetter(database, payload, origin, part, str(error)))
            return 0

    # New groups

    def _table(self, name: TableName) -> CollectedTable:
        table = self._tables.get(name)
        if table is None:
            output = self._jobs.output(self._registry.draft(*name), name in self._careful)
            table = self._tables[name] = CollectedTable(output)
        return table

    def _new_group(self, key: GroupKey, shape: EntryShape, rows: int) -> tuple[CollectedTable, EntryGroup]:
        table = self._table((shape.database, shape.measurement))
        # Rows without the new columns get nulls there.
        if table.rows and table.rows + rows > self._max_rows(table.names.union(shape.index)):
            self._flush(table)
        table.names.update(shape.index)
        table.max_rows = self._max_rows(table.names)
        group = table.groups[key] = EntryGroup(shape)
        self._groups[key] = table, group
        cost = _SHAPE + _SHAPE_COLUMN * len(shape.index)
        table.cost += cost
        self._cost += cost
        return table, group

    def _max_rows(self, names: set[str]) -> int:
        """Compute the rows at which a table of these columns is converted."""
        return min(self._row_group_rows, self._budget.table_bytes // (DECODED_BYTES * len(names)) or 1)

    # Entries above `table_bytes`

    def _add_large(self, table: CollectedTable, shape: EntryShape, entry: Staged) -> None:
        """Convert one enormous entry slice by slice, with as little else in memory as possible."""
        for other, group in self._groups.values():
            self._compact(other, group)
        self._table_jobs.grant_files(table)
        self._table_jobs.shrink_files(table)
        self._jobs.wait()
        try:
            self._submit_slices(table, shape, whole_piece(shape, entry))
        except BadPayload as error:
            _, _, origin, part, *raws = with_columns(entry)
            self._letters.add_misfit(shape, Misfit(origin, part, entry_payload(shape, raws), str(error)))
        self._take(table)  # nothing but shapes, which have a cost
        self._jobs.wait()  # then nothing refers to the payload

    def _submit_slices(self, table: CollectedTable, shape: EntryShape, piece: Piece) -> None:
        budget = self._budget
        width = len(shape.index)
        row_cost = DECODED_BYTES * width
        names = sum(len(name.encode()) + _RESCUED_COLUMN for name in shape.index)
        most = min(budget.slice_rows, budget.slice_bytes // row_cost, budget.slice_names_bytes // names)
        for part in piece.slices(max(1, most), budget.slice_bytes):
            if self._jobs.error is not None:
                break
            group = EntryGroup(shape)
            group.hold(part)
            size = sum(len(column.data) for column in part.columns)
            cost = max(size, row_cost * part.total_rows) + _PIECE + _PIECE_COLUMN * width
            self._table_jobs.submit(table, [group], cost, width)

    # Memory

    def _compact(self, table: CollectedTable, group: EntryGroup) -> None:
        entries, width, pieces = len(group.staged), len(group.shape.index), len(group.pieces)
        for misfit in group.compact():
            self._letters.add_misfit(group.shape, misfit)
        saved = entries * (_STAGED_ENTRY - _COMPACT_ENTRY + (_STAGED_COLUMN - _COMPACT_COLUMN) * width)
        saved -= (len(group.pieces) - pieces) * (_PIECE + _PIECE_COLUMN * width)
        table.cost -= saved
        self._cost -= saved

    def _relieve(self) -> None:
        """Compact the collected entries, or convert those of the tables that cost most."""
        budget = self._budget
        for table, group in self._groups.values():
            if len(group.staged) >= budget.compact_early_entries:
                self._compact(table, group)
        if self._cost < budget.collected_bytes * 3 // 4:
            return
        # Sorting is stable, and tables are in the order of their first entries.
        left = self._cost
        least = budget.small_table_bytes if len(self._tables) > self._most_with_files else 0
        small = []
        for table in sorted(self._tables.values(), key=lambda table: -table.cost):
            if left <= budget.collected_bytes // 2:
                break
            left -= table.cost
            if table.flushed or table.cost > least:
                self._flush(table)
            else:
                small.append(table)
        self._flush_small(small)

    # To the pool

    def _flush(self, table: CollectedTable) -> None:
        """Hand a table's collected entries to the pool; its files stay open for more."""
        self._table_jobs.grant_files(table)
        width = len(table.names)
        groups, cost = self._take(table)
        self._table_jobs.submit(table, groups, cost, width)

    def _flush_small(self, tables: Iterable[CollectedTable]) -> None:
        """Hand the collected entries of small tables to the pool, many in a job, which finishes their files."""
        bundle: Bundle = []
        cost = 0
        for table in tables:
            groups, cost_of_table = self._take(table)
            bundle.append((table.output, groups))
            cost += cost_of_table
            if cost > self._budget.small_table_bytes:
                self._jobs.submit_bundle(bundle, cost)
                bundle, cost = [], 0
        if bundle:
            self._jobs.submit_bundle(bundle, cost)

    def _take(self, table: CollectedTable) -> tuple[list[Group], int]:
        groups: list[Group] = list(table.groups.values())
        cost = table.cost
        if table.arrow.entries:
            groups.append(table.arrow)
            table.arrow = ArrowGroup()
        for key in table.groups:
            del self._groups[key]
        self._cost -= cost
        table.groups.clear()
        table.names.clear()
        table.rows = table.cost = 0
        return groups, cost


def _rows(columns: ColumnMap) -> int:
    """Count the rows of a columnar map by its first column; 0 only if no column has any. Raises BadPayload."""
    lengths = [array_length(memoryview(array))[0] for array in columns.columns.values()]
    if not lengths:
        raise BadPayload("there are no columns")
    if not lengths[0] and any(lengths):
        raise BadPayload(f"columns have {lengths} values")
    return lengths[0]
