"""The entries of one batch -> Parquet files: who collects what, when it is converted, and by which thread.

The calling thread cuts entries into columns and collects them by table; everything after that is done by a pool, of
each table in order: converting and writing are two lanes, so that one table alone keeps two threads busy.

What goes into which file is decided by the calling thread alone, from the order and the sizes of what it was given, or
by a lane, from what went through it before. Never by time, threads or memory that happens to be free: doing a batch
again makes the same files. Everything is bounded: what is collected (the tables that cost most go first), what the
pool has in hand, open files, and, in `parquet.SpoolMemory`, finished bytes.

This module must not know the log, object stores or an event loop.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition, Lock
from types import TracebackType
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from arcpipe.codec.entries import (
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
from arcpipe.config import MB, Parquet
from arcpipe.errors import BadPayload
from arcpipe.upload.convert import Converted, TooManyRescued, convert
from arcpipe.upload.parquet import HOUR_US, FileSettings, Layout, OnFile, PartitionWriters, SpoolMemory
from arcpipe.upload.schema import SchemaRegistry, TableSchema
from arcpipe.upload.staging import Group, Misfit, Piece, Shape, Staged, entry_payload, whole_piece


class DeadLetter(NamedTuple):
    """What cannot be converted: a log entry, or one columnar map of an entry that has several."""

    database: str  # empty where that is not known either
    payload: bytes  # of an entry that holds this and nothing else
    origin: object  # what the caller called the entry
    part: int  # the number of the map in its entry: (origin, part) comes once
    reason: str


OnDeadLetter = Callable[[DeadLetter], None]

# Costs, in bytes of memory: what is collected together, in one table, and what the pool has in hand.
_MAX_COLLECTED: Final = 64 * MB
_MAX_TABLE: Final = 48 * MB
_MAX_IN_HAND: Final = 96 * MB
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
_MAX_JOBS: Final = 64

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

# Open files of all tables together, and the tables that may have any.
_MAX_FILES: Final = 64
_MAX_FILE_TABLES: Final = 16
_SMALL_QUOTA: Final = _MAX_FILES // _MAX_FILE_TABLES  # of a small table, while it is written

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


class _Lane:
    """Runs jobs one at a time, in the order in which they come, on a shared pool. Jobs must not raise."""

    __slots__ = ("_lock", "_pool", "_running", "_waiting")

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = Lock()
        self._waiting: list[Callable[[], None]] = []  # few, and an empty deque has 600 bytes
        self._running = False

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append(job)
            if self._running:
                return
            self._running = True
        self._pool.submit(self._run)

    def _run(self) -> None:
        with self._lock:
            job = self._waiting.pop(0)
        job()
        with self._lock:
            self._running = bool(self._waiting)
            if self._running:  # behind the jobs of other lanes
                self._pool.submit(self._run)


class _Table:
    """What belongs to one (database, measurement): what is collected, and where it goes. There may be 100,000."""

    __slots__ = (
        "bundle",
        "converting",
        "cost",
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

    def __init__(self, schema: TableSchema, pool: ThreadPoolExecutor, files: FileSettings, on_file: OnFile) -> None:
        self.groups: dict[_GroupKey, Group] = {}
        self.names: set[str] = set()
        self.rows = 0
        self.max_rows = 0
        self.cost = 0
        self.flushed = False  # before the batch's end
        self.quota = 0  # open files that it was last granted
        self.bundle = 0  # the last one that it was in
        # Used by one lane each.
        self.schema = schema
        self.writers = PartitionWriters(files, schema.database, schema.measurement, on_file)
        self.converting = _Lane(pool)
        self.writing = _Lane(pool)


_Bundle: TypeAlias = list[tuple[_Table, list[Group]]]
"""What was collected for several tables."""


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
    ) -> None:
        """`spool` is the directory for finished bytes that are too many for memory."""
        self.rows = 0
        self.rescued = 0
        self.dead_letters = 0
        self.schema_changes: list[TableSchema] = []
        """What `registry.apply` is to take over, once the batch is uploaded."""

        self._registry = registry
        self._files = FileSettings(batch_id, layout, parquet, SpoolMemory(spool))
        self._on_file = on_file
        self._on_dead_letter = on_dead_letter
        self._letter_lock = Lock()

        self._tables: dict[tuple[str, str], _Table] = {}
        self._groups: dict[_GroupKey, tuple[_Table, Group]] = {}
        self._collected = 0
        self._unreleased = 0
        self._with_files: OrderedDict[_Table, None] = OrderedDict()  # granted open files; used longest ago first

        self._pool = ThreadPoolExecutor(threads, "convert")
        self._small = _Lane(self._pool)  # of bundles
        self._bundles = 0
        self._idle = Condition()
        self._bundles_done = 0
        self._jobs = 0
        self._in_hand = 0
        self._error: BaseException | None = None

    def __enter__(self) -> BatchTables:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)
        self._wait()
        self._pool.shutdown()
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
        if envelope.kind == KIND_COLUMNAR and body.__class__ is ColumnMap:
            self._append(envelope.database, envelope.meta.precision, body, size, timestamp_us, origin, 0)
        elif envelope.kind == KIND_BATCH and body.__class__ is list:
            size //= len(body) or 1
            for part, columns in enumerate(body):
                self._append(envelope.database, envelope.meta.precision, columns, size, timestamp_us, origin, part)
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
            for number, (database, columns) in enumerate(entry.maps):
                self._append(database, entry.precision, columns, size, timestamp_us, origin, number)
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
            for database, columns in entry.maps:
                self._append(database, entry.precision, columns, len(part), timestamp_us, origin, number)

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
        self._wait()
        self._grant_files(table)
        try:
            self._submit_slices(table, shape, whole_piece(shape, entry))
        except BadPayload as error:
            _, _, origin, part, *raws = entry
            self._misfit(shape, Misfit(origin, part, entry_payload(shape, raws), str(error)))
        self._take(table)  # nothing but shapes, which have a cost
        self._wait()  # the memory of the payload is let go of

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
            self._submit(table, [group], cost, close=False)

    def _wait(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._jobs)

    def _new_group(self, key: _GroupKey, shape: Shape, rows: int) -> tuple[_Table, Group]:
        table = self._tables.get((shape.database, shape.measurement))
        if table is None:
            schema = self._registry.draft(shape.database, shape.measurement)
            table = self._tables[shape.database, shape.measurement] = _Table(
                schema, self._pool, self._files, self._on_file
            )
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
        groups, cost = self._take(table)
        self._submit(table, groups, cost, close=False)

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
        self._begin(cost)
        self._small.submit(lambda: self._bundle_job(bundle, cost))

    def _grant_files(self, table: _Table) -> None:
        """Give a table its share of the open files."""
        table.flushed = True
        self._with_files[table] = None
        self._with_files.move_to_end(table)
        if len(self._with_files) > _MAX_FILE_TABLES:
            oldest, _ = self._with_files.popitem(last=False)
            self._submit(oldest, [], 0, close=True)
        quota = _MAX_FILES // len(self._with_files)
        for other in self._with_files:
            if other.quota != quota:
                other.quota = quota
                if other is not table:
                    self._submit(other, [], 0, close=False)

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
        """Convert and write what is left, and wait until every file was handed out."""
        small = []
        for table in self._tables.values():
            table.quota = table.quota or _SMALL_QUOTA
            if table.flushed or table.cost > _SMALL_TABLE:
                groups, cost = self._take(table)
                self._submit(table, groups, cost, close=True)
            else:
                small.append(table)
        self._flush_small(small)
        self._wait()
        if self._error is not None:
            raise self._error
        self.schema_changes = self._registry.changed(table.schema for table in self._tables.values())

    def _submit(self, table: _Table, groups: list[Group], cost: int, *, close: bool) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._bundles_done >= table.bundle)
        self._begin(cost)
        quota = table.quota
        table.converting.submit(lambda: self._convert_job(table, groups, cost, quota, close))

    def _begin(self, cost: int) -> None:
        """Count a job that is to be submitted, once the pool has room for it."""
        with self._idle:
            self._idle.wait_for(
                lambda: not self._jobs or (self._jobs < _MAX_JOBS and self._in_hand + cost <= _MAX_IN_HAND)
            )
            self._jobs += 1
            self._in_hand += cost

    # The pool

    def _convert_job(self, table: _Table, groups: list[Group], cost: int, quota: int, close: bool) -> None:
        converted: list[Converted] = []
        try:
            if self._error is None:
                pieces = self._pieces(groups)
                groups.clear()
                converted = list(self._convert(table, pieces))
                del pieces
        except BaseException as error:
            self._fail(error)
        size = sum(part.table.nbytes for part in converted)
        self._done(0, cost - size)
        table.writing.submit(lambda: self._write_job(table, converted, size, quota, close))

    def _write_job(self, table: _Table, converted: list[Converted], cost: int, quota: int, close: bool) -> None:
        try:
            if self._error is None:
                self._write(table, converted, quota, close)
        except BaseException as error:
            self._fail(error)
        finally:
            converted.clear()
            self._done(1, cost)

    def _bundle_job(self, bundle: _Bundle, cost: int) -> None:
        try:
            for table, groups in bundle:
                if self._error is None:
                    self._write(table, list(self._convert(table, self._pieces(groups))), _SMALL_QUOTA, close=True)
        except BaseException as error:
            self._fail(error)
        finally:
            bundle.clear()
            with self._idle:
                self._bundles_done += 1
            self._done(1, cost)

    def _done(self, jobs: int, cost: int) -> None:
        with self._idle:
            self._jobs -= jobs
            self._in_hand -= cost
            self._idle.notify_all()

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
            except (MemoryError, OSError):
                raise
            except TooManyRescued:
                pass
            except Exception as error:
                if len(pieces) == 1 and len(pieces[0].rows) == 1:
                    piece = pieces[0]
                    reason = f"{type(error).__name__}: {error}"
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

    def _write(self, table: _Table, converted: Sequence[Converted], quota: int, close: bool) -> None:
        rows = rescued = 0
        for part in converted:
            rows += len(part.table)
            rescued += part.rescued
            hours = part.times_us // HOUR_US
            starts = [0, *(np.flatnonzero(hours[1:] != hours[:-1]) + 1).tolist(), len(hours)]
            for start, stop in itertools.pairwise(starts):
                whole = stop - start == len(hours)
                rows_of_hour = part.table if whole else part.table.slice(start, stop - start)
                first_us = int(part.times_us[start])
                table.writers.append(
                    int(hours[start]) * HOUR_US, rows_of_hour, first_us, last=close and len(converted) == 1
                )
                table.writers.trim(quota)
        if close:
            table.writers.close()
        with self._idle:
            self.rows += rows
            self.rescued += rescued

    def _misfit(self, shape: Shape, misfit: Misfit) -> None:
        self._dead_letter(DeadLetter(shape.database, misfit.payload, misfit.origin, misfit.part, misfit.reason))

    def _dead_letter(self, letter: DeadLetter) -> None:
        with self._letter_lock:
            self.dead_letters += 1
            self._on_dead_letter(letter)

    def _fail(self, error: BaseException) -> None:
        with self._idle:
            if self._error is None:
                self._error = error
