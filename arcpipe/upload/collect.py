"""The entries of one batch -> Parquet files: who collects what, when it is converted, and by which thread.

The calling thread cuts entries into columns and collects them by table; everything after that is done by a pool, of
each table in order: converting and writing are two lanes, so that one table alone keeps two threads busy.

What goes into which file is decided by the calling thread alone, from the order and the sizes of what it was given, or
by a lane, from what went through it before. Never by time, threads or memory that happens to be free: doing a batch
again makes the same files. Everything is bounded: what is collected (the tables that cost most go first), what the
pool has in hand, open files, and, in `parquet.SpoolMemory`, finished bytes.

What cannot be converted alone is a dead letter. What the Parquet writer refuses was joined with other rows before, and
is not known by then: `finish` raises WriterFailed, and the batch is to be done again with the table in `careful`. There
everything is written for trial as soon as it is converted, so that what fails alone is a dead letter, too.

This module must not know the log, object stores or an event loop.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from arcpipe.codec.envelope import (
    KIND_BATCH,
    KIND_COLUMNAR,
    ColumnMap,
    array_length,
    batch_length,
    batch_parts,
    decode_entry,
    decode_envelope,
    encode_entry,
    split_batch,
)
from arcpipe.config.settings import MB, Parquet
from arcpipe.errors import ArcpipeError, BadPayload
from arcpipe.upload.conversion_pool import FileCost, InHand, Lane, Pool
from arcpipe.upload.convert import Converted, TooManyRescued, convert
from arcpipe.upload.keys import Layout
from arcpipe.upload.open_files import OPEN_FILES, OpenFiles, Quota, open_file_cost, row_group_cost
from arcpipe.upload.parquet import HOUR_US, FileSettings, OnFile, PartitionWriters, Unwritable
from arcpipe.upload.schema import SchemaRegistry, TableSchema
from arcpipe.upload.spool import SpoolMemory
from arcpipe.upload.staging import Group, Misfit, Piece, Shape, Staged, entry_payload, whole_piece


class DeadLetter(NamedTuple):
    """What cannot be converted: a log entry, or one columnar map of an entry that has several."""

    database: str  # empty where that is not known either
    payload: bytes  # of an entry that holds this and nothing else
    origin: object  # what the caller called the entry
    part: int  # the number of the map in its entry: (origin, part) comes once
    reason: str


OnDeadLetter = Callable[[DeadLetter], None]

TableName: TypeAlias = tuple[str, str]
"""The database and the measurement."""


class WriterFailed(ArcpipeError):
    """The Parquet writer refused rows of some tables: do the batch again with these among the `careful` ones.

    Attributes:
        table: the first of them by name.
        tables: all of them.
    """

    def __init__(self, reasons: Mapping[TableName, str]) -> None:
        self.tables = frozenset(reasons)
        self.table = min(reasons)
        database, measurement = self.table
        others = f" and of {len(reasons) - 1} other tables" if len(reasons) > 1 else ""
        super().__init__(
            f"the Parquet writer refuses rows of {measurement!r} in database {database!r}{others}: "
            f"{reasons[self.table]}. What it refuses will be kept as dead letters"
        )


# Costs, in bytes of memory: what is collected together, and in one table.
_MAX_COLLECTED: Final = 64 * MB
_MAX_TABLE: Final = 48 * MB
_MAX_CONVERTED: Final = 128 * MB  # at once
_MAX_COLUMNS: Final = 1 << 16  # at once, of entries with different ones: each costs about a kilobyte beside its values
_MAX_RESCUED: Final = 32 * MB  # of one table, as JSON

# An entry that costs more than _MAX_TABLE goes to the pool by slices of at most so many rows and bytes.
_SLICE_ROWS: Final = 1 << 18
_SLICE_BYTES: Final = 16 * MB
_NAME: Final = 16  # what each column costs per row, at most, beside its name, should the values be rescued
_MAX_NAMES: Final = 48 * MB

# A batch entry of so many maps, and bytes, is read map by map.
_MANY_MAPS: Final = 64
_LARGE_BATCH: Final = 4 * MB

_DECODED: Final = 8  # what a number costs once it is decoded, however few bytes it had

# What an entry costs beside its values while it is staged, and once it is compacted.
_STAGED_ENTRY: Final = 200
_STAGED_COLUMN: Final = 80
_COMPACT_ENTRY: Final = 100
_COMPACT_COLUMN: Final = 4
# What the first entry of a shape costs beside that: names, and where each column is.
_SHAPE: Final = 1_000
_SHAPE_COLUMN: Final = 250
_PIECE: Final = 500
_PIECE_COLUMN: Final = 350

_COMPACT_ENTRIES: Final = 1_024  # so many staged entries of a group are compacted
_SMALL_ENTRY: Final = 4_096  # if their payloads are smaller than this
_COMPACT_EARLY: Final = 4  # fewer are not worth it even when memory is short
_RELEASE_BYTES: Final = 48 * MB  # views keep at most the last two times as many bytes of payloads alive

_SMALL_TABLE: Final = MB  # tables that cost less are not worth a thread

_NO_ARRAY: Final = 0xC1
_NO_VIEW: Final = memoryview(b"")

_GroupKey: TypeAlias = tuple[object, ...]


def _rows(columns: ColumnMap) -> int:
    """The rows of a columnar map by its first column; 0 only if there are none in any. Raises BadPayload."""
    lengths = [array_length(memoryview(array))[0] for array in columns.columns.values()]
    if not lengths:
        raise BadPayload("there are no columns")
    if not lengths[0] and any(lengths):
        raise BadPayload(f"columns have {lengths} values")
    return lengths[0]


class _Table:
    """What belongs to one (database, measurement): what is collected, and where it goes. There may be 100,000."""

    __slots__ = (
        "bundle",
        "careful",
        "converting",
        "cost",
        "file_cost",
        "flushed",
        "groups",
        "max_rows",
        "names",
        "quota",
        "rows",
        "schema",
        "writers",
        "writing",
    )

    def __init__(self, schema: TableSchema, pool: Pool, files: FileSettings, on_file: OnFile, careful: bool) -> None:
        self.groups: dict[_GroupKey, Group] = {}
        self.names: set[str] = set()
        self.rows = 0
        self.max_rows = 0
        self.cost = 0
        self.flushed = False  # before the batch's end
        self.careful = careful
        self.quota: Quota | None = None  # open files that it was last granted
        self.file_cost = FileCost()
        self.bundle = 0  # the last one that it was in
        # Used by one lane each.
        self.schema = schema
        self.writers = PartitionWriters(files, schema.database, schema.measurement, on_file)
        self.converting = Lane(pool)
        self.writing = Lane(pool)

    @property
    def name(self) -> TableName:
        return self.writers.database, self.writers.measurement


_Bundle: TypeAlias = list[tuple[_Table, list[Group]]]
"""What was collected for several tables."""


def _append_hours(writers: PartitionWriters, part: Converted, *, last: bool) -> None:
    """Write rows hour by hour; `last` says that no more of these hours come."""
    hours = part.times_us // HOUR_US
    starts = [0, *(np.flatnonzero(hours[1:] != hours[:-1]) + 1).tolist(), len(hours)]
    for start, stop in itertools.pairwise(starts):
        whole = stop - start == len(hours)
        rows_of_hour = part.table if whole else part.table.slice(start, stop - start)
        writers.append(int(hours[start]) * HOUR_US, rows_of_hour, int(part.times_us[start]), last=last)


class BatchTables:
    """Takes the entries of a batch in their order and hands out finished Parquet files.

    Use it in a `with` block, whose end waits for the threads. `add` and `finish` are for one thread and may block while
    the pool is busy; they raise what a callback or a full disk raised in the pool. The callbacks are called from
    several threads, `on_dead_letter` never twice at once; they may block. After `finish`, `rows`, `rescued`,
    `dead_letters` and `schema_changes` tell what became of the batch.
    """

    def __init__(
        self,
        batch_id: str,
        layout: Layout,
        parquet: Parquet,
        registry: SchemaRegistry,
        *,
        threads: int,
        spool: str | os.PathLike[str],
        on_file: OnFile,
        on_dead_letter: OnDeadLetter,
        careful: Collection[TableName] = (),
        open_files: OpenFiles = OPEN_FILES,
    ) -> None:
        """Make ready for a batch.

        Args:
            spool: the directory for finished bytes that are too many for memory.
            careful: the tables whose rows the Parquet writer refused in an earlier pass; unknown ones do no harm. They
                decide what goes into which file: every pass that is to make the same files gets the same ones.
        """
        self.rows = 0
        self.rescued = 0
        self.dead_letters = 0
        self.schema_changes: list[TableSchema] = []
        """What `registry.apply` is to take over, once the batch is uploaded."""

        self._registry = registry
        self._careful = frozenset(careful)
        self._open_files = open_files
        self._small_quota = open_files.quota(open_files.tables)  # of a small table, while it is written
        self._files = FileSettings(batch_id, layout, parquet, SpoolMemory(spool), open_files)
        self._on_file = on_file
        self._on_dead_letter = on_dead_letter
        self._letter_lock = Lock()

        self._tables: dict[TableName, _Table] = {}
        self._groups: dict[_GroupKey, tuple[_Table, Group]] = {}
        self._collected = 0
        self._unreleased = 0
        self._with_files: OrderedDict[_Table, None] = OrderedDict()  # granted open files; used longest ago first

        self._pool = Pool(threads, "convert", self._fail)
        self._small = Lane(self._pool)  # of bundles
        self._bundles = 0
        self._in_hand = InHand(open_files.cost)
        self._result_lock = Lock()
        self._error: BaseException | None = None
        self._refused: dict[TableName, str] = {}

    def __enter__(self) -> BatchTables:
        self._pool.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)
        self._in_hand.wait()
        self._pool.stop()
        for table in self._tables.values():
            table.writers.abort()

    # The calling thread

    def add(self, timestamp_us: int, payload: bytes | memoryview, origin: object) -> None:
        """Take a log entry. `origin` is what the caller calls it, for dead letters.

        The memory of `payload` must not change as long as there are references to it, which is for a while.
        """
        if self._error is not None:
            raise self._error
        size = len(payload)
        self._unreleased += size
        if self._unreleased > _RELEASE_BYTES:
            self._release()
        if size > _LARGE_BATCH and batch_length(payload) > _MANY_MAPS:
            with contextlib.suppress(BadPayload):  # raised before anything was taken: below it is a dead letter
                self._add_parts(timestamp_us, batch_parts(payload), origin)
                return
        try:
            envelope = decode_envelope(payload)
        except Exception:  # decode_entry finds out what it is
            self._add_unusual(timestamp_us, payload, origin)
            return
        body = envelope.body
        meta = envelope.meta
        time_us = meta.time_of(timestamp_us) if meta.clock else timestamp_us
        if envelope.kind == KIND_COLUMNAR and body.__class__ is ColumnMap:
            self._append(envelope.database, meta.precision, body, size, time_us, origin, 0)
        elif envelope.kind == KIND_BATCH and body.__class__ is list:
            size //= len(body) or 1
            for part, columns in enumerate(body):
                self._append(envelope.database, meta.precision, columns, size, time_us, origin, part)
        else:
            self._add_unusual(timestamp_us, payload, origin)

    def _add_unusual(self, timestamp_us: int, payload: bytes | memoryview, origin: object) -> None:
        """Take what only the slow road can read: Arc's payloads, deep nesting, and a batch with a part that is bad."""
        try:
            entry = decode_entry(payload)
        except BadPayload as error:
            parts = split_batch(payload)
            if len(parts) == 1:
                self._dead_letter(DeadLetter("", bytes(payload), origin, 0, str(error)))
                return
        else:
            size = len(payload) // (len(entry.maps) or 1)
            time_us = entry.meta.time_of(timestamp_us)
            for number, (database, columns) in enumerate(entry.maps):
                self._append(database, entry.meta.precision, columns, size, time_us, origin, number)
            return
        self._add_parts(timestamp_us, parts, origin)

    def _add_parts(self, timestamp_us: int, parts: Iterable[bytes], origin: object) -> None:
        """Take the maps of a batch entry one by one."""
        for number, part in enumerate(parts):
            try:
                entry = decode_entry(part)
            except BadPayload as error:
                self._dead_letter(DeadLetter("", part, origin, number, str(error)))
                continue
            time_us = entry.meta.time_of(timestamp_us)
            for database, columns in entry.maps:
                self._append(database, entry.meta.precision, columns, len(part), time_us, origin, number)

    def _append(
        self,
        database: str,
        precision: str | None,
        columns: ColumnMap,
        size: int,
        timestamp_us: int,
        origin: object,
        part: int,
    ) -> None:
        arrays = columns.columns
        types = columns.types
        key = (database, columns.m, precision, columns.tags, types and tuple(types.items()), *arrays)
        found = self._groups.get(key)
        for array in arrays.values():  # the first one tells how many rows there are
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
            try:
                rows = _rows(columns)
            except BadPayload as error:
                payload = encode_entry(database, precision, columns)
                self._dead_letter(DeadLetter(database, payload, origin, part, str(error)))
                return
            if not rows:
                return
        if found is None:
            found = self._new_group(key, Shape(database, precision, columns), rows)
        table, group = found
        width = len(arrays)
        decoded = _DECODED * rows * width
        cost = (size if size > decoded else decoded) + _STAGED_ENTRY + _STAGED_COLUMN * width
        entry = (rows, timestamp_us, origin, part, *arrays.values())
        if table.cost + cost > _MAX_TABLE:
            if table.rows:
                self._flush(table)
                self._append(database, precision, columns, size, timestamp_us, origin, part)
                return
            self._add_large(table, group.shape, entry)
            return
        staged = group.staged
        staged.append(entry)
        table.rows += rows
        table.cost += cost
        self._collected += cost
        if table.rows >= table.max_rows:
            self._flush(table)
        elif size < _SMALL_ENTRY and len(staged) >= _COMPACT_ENTRIES:
            self._compact(table, group)
        elif self._collected >= _MAX_COLLECTED:
            self._relieve()

    def _add_large(self, table: _Table, shape: Shape, entry: Staged) -> None:
        """Convert one enormous entry slice by slice, with nothing else in memory that can wait or be let go of."""
        for other, group in self._groups.values():
            self._compact(other, group)
        self._grant_files(table)
        self._shrink_files(table)
        self._in_hand.wait()
        try:
            self._submit_slices(table, shape, whole_piece(shape, entry))
        except BadPayload as error:
            _, _, origin, part, *raws = entry
            self._misfit(shape, Misfit(origin, part, entry_payload(shape, raws), str(error)))
        self._take(table)  # nothing but shapes, which have a cost
        self._in_hand.wait()  # the memory of the payload is let go of

    def _submit_slices(self, table: _Table, shape: Shape, piece: Piece) -> None:
        width = len(shape.index)
        names = sum(len(name.encode()) + _NAME for name in shape.index)
        most_rows = max(1, min(_SLICE_ROWS, _SLICE_BYTES // (_DECODED * width), _MAX_NAMES // names))
        for part in piece.slices(most_rows, _SLICE_BYTES):
            if self._error is not None:
                break
            group = Group(shape)
            group.hold(part)
            size = sum(len(column.data) for column in part.columns)
            cost = max(size, _DECODED * part.total_rows * width) + _PIECE + _PIECE_COLUMN * width
            self._submit(table, [group], cost, width)

    def _new_group(self, key: _GroupKey, shape: Shape, rows: int) -> tuple[_Table, Group]:
        name = shape.database, shape.measurement
        table = self._tables.get(name)
        if table is None:
            schema = self._registry.draft(*name)
            table = _Table(schema, self._pool, self._files, self._on_file, name in self._careful)
            self._tables[name] = table
        # Rows that have not the new columns will have nulls there.
        if table.rows and table.rows + rows > self._max_rows(table.names.union(shape.index)):
            self._flush(table)
        table.names.update(shape.index)
        table.max_rows = self._max_rows(table.names)
        group = table.groups[key] = Group(shape)
        self._groups[key] = table, group
        cost = _SHAPE + _SHAPE_COLUMN * len(shape.index)
        table.cost += cost
        self._collected += cost
        return table, group

    def _max_rows(self, names: set[str]) -> int:
        """The rows that a table of these columns is converted by."""
        return min(self._files.parquet.row_group_rows, _MAX_TABLE // (_DECODED * len(names)) or 1)

    def _compact(self, table: _Table, group: Group) -> None:
        entries, width, pieces = len(group.staged), len(group.shape.index), len(group.pieces)
        for misfit in group.compact():
            self._misfit(group.shape, misfit)
        saved = entries * (_STAGED_ENTRY - _COMPACT_ENTRY + (_STAGED_COLUMN - _COMPACT_COLUMN) * width)
        saved -= (len(group.pieces) - pieces) * (_PIECE + _PIECE_COLUMN * width)
        table.cost -= saved
        self._collected -= saved

    def _release(self) -> None:
        """Let go of old payloads, so that views of a few bytes do not keep whole segments in memory."""
        self._unreleased = 0
        for _, group in self._groups.values():
            group.release()

    def _relieve(self) -> None:
        """Make the collected entries smaller, or fewer: tables that cost most first."""
        for table, group in self._groups.values():
            if len(group.staged) >= _COMPACT_EARLY:
                self._compact(table, group)
        if self._collected < _MAX_COLLECTED * 3 // 4:
            return
        # Sorting is stable, and tables are in the order of their first entries.
        left = self._collected
        small = []
        for table in sorted(self._tables.values(), key=lambda table: -table.cost):
            if left <= _MAX_COLLECTED // 2:
                break
            left -= table.cost
            if table.flushed or table.cost > _SMALL_TABLE:
                self._flush(table)
            else:
                small.append(table)
        self._flush_small(small)

    def _flush(self, table: _Table) -> None:
        """Hand what is collected for a table to the pool; its files stay open for more."""
        self._grant_files(table)
        width = len(table.names)
        groups, cost = self._take(table)
        self._submit(table, groups, cost, width)

    def _flush_small(self, tables: Iterable[_Table]) -> None:
        """Hand what is collected for small tables to the pool, which finishes their files.

        They are converted and written by one thread, many in a job: one alone costs more to hand over than to convert,
        and two threads would only get in each other's way.
        """
        bundle: _Bundle = []
        cost = 0
        for table in tables:
            groups, cost_of_table = self._take(table)
            bundle.append((table, groups))
            cost += cost_of_table
            if cost > _SMALL_TABLE:
                self._submit_bundle(bundle, cost)
                bundle, cost = [], 0
        if bundle:
            self._submit_bundle(bundle, cost)

    def _submit_bundle(self, bundle: _Bundle, cost: int) -> None:
        self._bundles += 1
        for table, _ in bundle:
            table.bundle = self._bundles
        self._in_hand.begin(cost)
        self._small.submit(lambda: self._bundle_job(bundle, cost))

    def _grant_files(self, table: _Table) -> None:
        """Give a table its share of the open files."""
        table.flushed = True
        self._with_files[table] = None
        self._with_files.move_to_end(table)
        if len(self._with_files) > self._open_files.tables:
            oldest, _ = self._with_files.popitem(last=False)
            self._submit(oldest, [], 0, 0, close=True)
        quota = self._open_files.quota(len(self._with_files))
        table.quota = quota
        for other in self._with_files:
            self._set_quota(other, quota)

    def _shrink_files(self, table: _Table) -> None:
        """Leave little memory to open files: an enormous entry of this table is next."""
        count = len(self._with_files)
        quota = self._open_files.quota(count)
        self._set_quota(table, quota._replace(cost=min(quota.cost, self._open_files.file_cost)))
        for other in self._with_files:
            if other is not table:
                self._set_quota(other, quota._replace(cost=self._open_files.cost_beside_large // count))

    def _set_quota(self, table: _Table, quota: Quota) -> None:
        if table.quota != quota:
            table.quota = quota
            self._submit(table, [], 0, 0)

    def _take(self, table: _Table) -> tuple[list[Group], int]:
        groups, cost = list(table.groups.values()), table.cost
        for key in table.groups:
            del self._groups[key]
        self._collected -= cost
        table.groups.clear()
        table.names.clear()
        table.rows = table.cost = 0
        return groups, cost

    def finish(self) -> None:
        """Convert and write what is left, and wait until every file was handed out.

        Raises:
            WriterFailed: the Parquet writer refused rows. The files of other tables are the same next time.
        """
        small = []
        for table in self._tables.values():
            if table.flushed or table.cost > _SMALL_TABLE:
                width = len(table.names)
                groups, cost = self._take(table)
                self._submit(table, groups, cost, width, close=True)
            else:
                small.append(table)
        self._flush_small(small)
        self._in_hand.wait()
        if self._error is not None:
            raise self._error
        if self._refused:
            raise WriterFailed(self._refused)
        self.schema_changes = self._registry.changed(table.schema for table in self._tables.values())

    def _submit(self, table: _Table, groups: list[Group], cost: int, width: int, *, close: bool = False) -> None:
        """Hand entries of so many columns to the pool, and close the table's files afterwards if told so."""
        self._in_hand.wait_for_bundle(table.bundle)
        quota = table.quota or self._small_quota
        growth = 0
        if groups:
            width = max(width, table.writers.width)
            growth = quota.files * (open_file_cost(width) + row_group_cost(width))
        self._in_hand.begin_writing(cost, table.file_cost, growth, quota.cost)
        table.converting.submit(lambda: self._convert_job(table, groups, cost, quota, close))

    # The pool

    def _convert_job(self, table: _Table, groups: list[Group], cost: int, quota: Quota, close: bool) -> None:
        converted: list[Converted] = []
        size = 0
        try:
            if self._goes_on(table):
                pieces = self._pieces(groups)
                groups.clear()
                converted = list(self._convert(table, pieces))
                del pieces
                size = sum(part.table.nbytes for part in converted)
        except BaseException as error:
            self._fail(error)
            converted.clear()
        self._in_hand.change(size - cost)
        table.writing.submit(lambda: self._write_job(table, converted, size, quota, close))

    def _write_job(self, table: _Table, converted: list[Converted], cost: int, quota: Quota, close: bool) -> None:
        try:
            if self._goes_on(table):
                self._write(table, converted, quota, close)
        except BaseException as error:
            self._fail(error)
        finally:
            converted.clear()
            self._in_hand.end_writing(cost, table.file_cost, table.writers.cost)

    def _bundle_job(self, bundle: _Bundle, cost: int) -> None:
        try:
            for table, groups in bundle:
                if self._goes_on(table):
                    converted = list(self._convert(table, self._pieces(groups)))
                    self._write(table, converted, self._small_quota, close=True)
        except BaseException as error:
            self._fail(error)
        finally:
            bundle.clear()
            self._in_hand.end_bundle(cost)

    def _goes_on(self, table: _Table) -> bool:
        return self._error is None and table.name not in self._refused

    def _pieces(self, groups: list[Group]) -> list[Piece]:
        pieces = []
        for group in groups:
            piece, misfits = group.take()
            if piece is not None:
                pieces.append(piece)
            for misfit in misfits:
                self._misfit(group.shape, misfit)
        return pieces

    def _convert(self, table: _Table, pieces: Sequence[Piece]) -> Iterator[Converted]:
        """Convert all of the pieces, together or, where that fails or would be too large, by halves.

        What fails alone is a dead letter; it must neither stop the batch nor take others with it.
        """
        rows = sum(piece.total_rows for piece in pieces)
        if not rows:
            return
        names = {name for piece in pieces for name in piece.shape.index}
        most = min(2 * self._files.parquet.row_group_rows, _MAX_CONVERTED // (_DECODED * len(names)))
        if rows <= max(most, 1) and (len(names) <= _MAX_COLUMNS or len(pieces) == 1):
            schema = table.schema.copy()
            try:
                converted = convert(pieces, schema, self._files.parquet.keep_nanoseconds, _MAX_RESCUED)
                if table.careful:
                    self._try_to_write(table, converted)
            except (MemoryError, OSError):
                raise
            except TooManyRescued:
                pass
            except Exception as error:
                if len(pieces) == 1 and len(pieces[0].rows) == 1:
                    piece = pieces[0]
                    kind = "the Parquet writer refuses it" if isinstance(error, Unwritable) else type(error).__name__
                    reason = f"{kind}: {error}"
                    payload, origin, part = piece.payload(0), piece.origins[0], int(piece.parts[0])
                    self._dead_letter(DeadLetter(piece.shape.database, payload, origin, part, reason))
                    return
            else:
                table.schema = schema
                yield converted
                return
        if len(pieces) > 1:
            middle = len(pieces) // 2
            halves: Sequence[Sequence[Piece]] = (pieces[:middle], pieces[middle:])
        else:
            halves = [[piece] for piece in pieces[0].halves()]
        for half in halves:
            yield from self._convert(table, half)

    def _try_to_write(self, table: _Table, converted: Converted) -> None:
        """Write rows as `_write` does for a careful table, and drop the files. Raises Unwritable."""
        trial = PartitionWriters(self._files, *table.name, lambda key, spool, rows: spool.close())
        try:
            _append_hours(trial, converted, last=True)
        except BaseException:
            trial.abort()
            raise

    def _write(self, table: _Table, converted: Sequence[Converted], quota: Quota, close: bool) -> None:
        writers = table.writers
        try:
            writers.limit(quota)
            for part in converted:
                _append_hours(writers, part, last=table.careful or (close and len(converted) == 1))
            if close:
                writers.close()
        except Unwritable as error:
            writers.abort()
            with self._result_lock:
                self._refused[table.name] = str(error)
            return
        with self._result_lock:
            self.rows += sum(len(part.table) for part in converted)
            self.rescued += sum(part.rescued for part in converted)

    def _misfit(self, shape: Shape, misfit: Misfit) -> None:
        self._dead_letter(DeadLetter(shape.database, misfit.payload, misfit.origin, misfit.part, misfit.reason))

    def _dead_letter(self, letter: DeadLetter) -> None:
        with self._letter_lock:
            self.dead_letters += 1
            self._on_dead_letter(letter)

    def _fail(self, error: BaseException) -> None:
        with self._result_lock:
            if self._error is None:
                self._error = error
