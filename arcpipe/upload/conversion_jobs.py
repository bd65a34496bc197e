"""Collected entries -> Parquet files: the jobs that the lanes of the pool run, and their results.

Each table has two lanes, one that converts and one that writes, so that one table alone keeps two threads busy. Small
tables share a job, a bundle, which does both: one alone costs more to hand over than to convert.

The content of each file follows from the submitted jobs and their order, never from time, threads or free memory: a
batch that is done again makes the same files.

An entry that cannot be converted alone is a dead letter. When the Parquet writer refuses rows, they have been joined
with others, and their entry is not known any more. Then the whole table ends, and its name is among `refused`. In a
`careful` table, all rows are written for trial as soon as they are converted. So an entry that fails alone is a dead
letter there, too.

This module must not know the WAL, envelopes, object stores or an event loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TypeAlias

import numpy as np

from arcpipe.codec.arrow_ipc.columns import column_maps, maps_of
from arcpipe.codec.entries import array_length
from arcpipe.codec.envelope import ColumnMap
from arcpipe.lake.file_schema import HOUR_US
from arcpipe.lake.open_files import Quota, open_file_cost, row_group_cost
from arcpipe.upload.arrow_entries import ArrowEntry, ArrowGroup
from arcpipe.upload.budget import DECODED_BYTES, Budget
from arcpipe.upload.conversion_pool import FileCost, InHand, Lane, Pool
from arcpipe.upload.convert import ConvertedRows, TooManyRescued, convert
from arcpipe.upload.convert_arrow import TooMany, convert_arrow, convert_parts, parts_of, slices_of
from arcpipe.upload.dead_letters import DeadLetter, DeadLetters
from arcpipe.upload.file_settings import FileSettings
from arcpipe.upload.parquet import OnFile, PartitionWriters, Unwritable
from arcpipe.upload.staging import EntryGroup, EntryShape, Piece, whole_piece
from arcpipe.upload.table_schema import TableName, TableSchema


class TableOutput:
    """The way of one table's rows into files: its schema, its open files, and a lane for each step.

    `schema` belongs to the lane that converts and `writers` to the one that writes, while jobs are under way.
    """

    __slots__ = ("bundle", "careful", "converting", "file_cost", "schema", "writers", "writing")

    def __init__(self, schema: TableSchema, writers: PartitionWriters, pool: Pool, careful: bool) -> None:
        self.careful = careful
        self.file_cost = FileCost()
        self.bundle = 0  # the last one that it was in
        self.schema = schema
        self.writers = writers
        self.converting = Lane(pool)
        self.writing = Lane(pool)

    @property
    def name(self) -> TableName:
        return self.writers.database, self.writers.measurement


Group: TypeAlias = EntryGroup | ArrowGroup

Bundle: TypeAlias = list[tuple[TableOutput, list[Group]]]
"""The collected entries of several small tables."""


class ConversionJobs:
    """Run the jobs of one batch on a pool of threads.

    One thread submits; it blocks while the pool has too much in hand. The first exception that is not a bad entry's is
    kept in `error`, and everything that is submitted afterwards is dropped. `rows`, `rescued`, `refused` and `error`
    are complete once `wait` has returned.
    """

    def __init__(
        self, files: FileSettings, budget: Budget, letters: DeadLetters, on_file: OnFile, threads: int
    ) -> None:
        self.rows = 0
        self.rescued = 0
        self.refused: dict[TableName, str] = {}
        """Why the Parquet writer refuses rows, by table."""
        self.error: BaseException | None = None

        self._files = files
        self._budget = budget
        self._letters = letters
        self._on_file = on_file
        self._small_quota = files.open_files.quota(files.open_files.tables)  # of a small table, while it is written
        self._pool = Pool(threads, "convert", self.fail)
        self._small = Lane(self._pool)  # for bundles: two threads would only slow each other down
        self._bundles = 0
        self._in_hand = InHand(files.open_files.cost, budget.jobs, budget.jobs_bytes)
        self._lock = Lock()  # of the results

    # The calling thread

    def start(self) -> None:
        """Start the threads. Raises OSError."""
        self._pool.start()

    def stop(self) -> None:
        """Wait until all jobs are done and the threads have ended."""
        self._in_hand.wait()
        self._pool.stop()

    def wait(self) -> None:
        """Wait until all jobs are done."""
        self._in_hand.wait()

    def fail(self, error: BaseException) -> None:
        """End the batch: jobs that have not begun do nothing."""
        with self._lock:
            if self.error is None:
                self.error = error

    def output(self, schema: TableSchema, careful: bool) -> TableOutput:
        """Make ready for the rows of one table."""
        writers = PartitionWriters(self._files, schema.database, schema.measurement, self._on_file)
        return TableOutput(schema, writers, self._pool, careful)

    def submit(
        self, output: TableOutput, groups: list[Group], cost: int, width: int, quota: Quota | None, *, close: bool
    ) -> None:
        """Convert and write the entries of a table, once the pool has room for them.

        Args:
            cost: the bytes of memory that the groups cost.
            width: the number of columns of all groups.
            quota: the table's share of open files from now on; None while it was granted none.
            close: finish the table's files afterwards.
        """
        self._in_hand.wait_for_bundle(output.bundle)
        quota = quota or self._small_quota
        growth = 0
        if groups:
            width = max(width, output.writers.width)
            growth = quota.files * (open_file_cost(width) + row_group_cost(width))
        self._in_hand.begin_writing(cost, output.file_cost, growth, quota.cost)
        output.converting.submit(lambda: self._convert_job(output, groups, cost, quota, close))

    def submit_bundle(self, bundle: Bundle, cost: int) -> None:
        """Convert and write the entries of small tables in one job, which finishes their files."""
        self._bundles += 1
        for output, _ in bundle:
            output.bundle = self._bundles
        self._in_hand.begin(cost)
        self._small.submit(lambda: self._bundle_job(bundle, cost))

    # The pool

    def _convert_job(self, output: TableOutput, groups: list[Group], cost: int, quota: Quota, close: bool) -> None:
        converted: list[ConvertedRows] = []
        size = 0
        try:
            if self._goes_on(output):
                if self._is_large(groups):  # nothing else is under way, so it is written here, and not held
                    for part in self._convert_groups(output, groups):
                        self._write(output, [part], quota, close=False)
                else:
                    converted = list(self._convert_groups(output, groups))
                size = sum(part.table.nbytes for part in converted)
        except BaseException as error:
            self.fail(error)
            converted.clear()
        self._in_hand.change(size - cost)
        output.writing.submit(lambda: self._write_job(output, converted, size, quota, close))

    def _write_job(
        self, output: TableOutput, converted: list[ConvertedRows], cost: int, quota: Quota, close: bool
    ) -> None:
        try:
            if self._goes_on(output):
                self._write(output, converted, quota, close)
        except BaseException as error:
            self.fail(error)
        finally:
            converted.clear()
            self._in_hand.end_writing(cost, output.file_cost, output.writers.cost)

    def _bundle_job(self, bundle: Bundle, cost: int) -> None:
        try:
            for output, groups in bundle:
                if self._goes_on(output):
                    converted = list(self._convert_groups(output, groups))
                    self._write(output, converted, self._small_quota, close=True)
        except BaseException as error:
            self.fail(error)
        finally:
            bundle.clear()
            self._in_hand.end_bundle(cost)

    def _goes_on(self, output: TableOutput) -> bool:
        return self.error is None and output.name not in self.refused

    def _convert_groups(self, output: TableOutput, groups: list[Group]) -> Iterator[ConvertedRows]:
        """Convert the entries of groups, which end here."""
        pieces = self._pieces(groups)
        entries = [entry for group in groups if isinstance(group, ArrowGroup) for entry in group.entries]
        is_large = self._is_large(groups)
        groups.clear()
        yield from self._convert(output, pieces)
        del pieces
        if len(entries) == 1 and is_large:
            yield from self._convert_large(output, entries[0])
        elif entries:
            yield from self._convert_arrow(output, entries)

    def _is_large(self, groups: list[Group]) -> bool:
        """Tell whether these are one stream that is converted slice by slice."""
        most = self._budget.table_bytes
        return any(
            isinstance(group, ArrowGroup) and len(group.entries) == 1 and group.entries[0].size_bytes > most
            for group in groups
        )

    def _pieces(self, groups: list[Group]) -> list[Piece]:
        pieces = []
        for group in groups:
            if isinstance(group, ArrowGroup):
                continue
            piece, misfits = group.take()
            if piece is not None:
                pieces.append(piece)
            for misfit in misfits:
                self._letters.add_misfit(group.shape, misfit)
        return pieces

    def _convert(self, output: TableOutput, pieces: Sequence[Piece]) -> Iterator[ConvertedRows]:
        """Convert all of the pieces, together or, where that fails or exceeds a bound, by halves.

        An entry that fails alone is a dead letter. It must neither stop the batch nor take other entries with it.
        """
        rows = sum(piece.total_rows for piece in pieces)
        if not rows:
            return
        if self._may_convert_together(pieces, rows):
            schema = output.schema.copy()
            try:
                converted = convert(pieces, schema, self._files.columns, self._budget)
                if output.careful:
                    self._try_to_write(output, converted)
            except (MemoryError, OSError):
                raise
            except TooManyRescued:
                pass
            except Exception as error:
                if len(pieces) == 1 and len(pieces[0].rows) == 1:
                    self._give_up(pieces[0], error)
                    return
            else:
                output.schema = schema
                yield converted
                return
        for half in _halves(pieces):
            yield from self._convert(output, half)

    def _convert_arrow(self, output: TableOutput, entries: Sequence[ArrowEntry]) -> Iterator[ConvertedRows]:
        """Convert streams, together or, where that fails, by halves, and then by their values."""
        schema = output.schema.copy()
        try:
            converted = convert_arrow(entries, schema, self._files.columns, self._budget.converted_bytes)
            if output.careful:
                self._try_to_write(output, converted)
        except (MemoryError, OSError):
            raise
        except TooMany:
            alone = self._convert_large
        except Exception:
            alone = self._convert_slowly
        else:
            output.schema = schema
            yield converted
            return
        # From here on nothing keeps the exception, whose traceback has what was converted so far.
        if len(entries) == 1:
            yield from alone(output, entries[0])
            return
        middle = len(entries) // 2
        yield from self._convert_arrow(output, entries[:middle])
        yield from self._convert_arrow(output, entries[middle:])

    def _convert_large(self, output: TableOutput, entry: ArrowEntry) -> Iterator[ConvertedRows]:
        """Convert a large stream slice by slice, so that memory is bounded.

        All of it is read once before: what cannot be read is a dead letter as a whole, and none of it is written.
        """
        try:
            for _ in parts_of(entry):
                pass
        except (MemoryError, OSError):
            raise
        except Exception as error:
            self._give_up_stream(entry, error)
            return
        numbers = itertools.count()
        for parts in slices_of(entry, self._budget.slice_bytes):
            schema = output.schema.copy()
            try:
                converted = convert_parts(parts, schema, self._files.columns)
                if output.careful:
                    self._try_to_write(output, converted)
            except (MemoryError, OSError):
                raise
            except Exception:
                converted = None
            if converted is not None:
                output.schema = schema
                yield converted
                continue
            for columns in (one for part in parts for one in maps_of(part.batch, part.plan, part.rule)):
                yield from self._convert(output, [_piece_of(entry, next(numbers), columns)])

    def _give_up_stream(self, entry: ArrowEntry, error: Exception) -> None:
        """Make a dead letter of a stream."""
        reason = f"{type(error).__name__}: {error}"
        self._letters.add(DeadLetter(entry.database, bytes(entry.payload), entry.origin, 0, reason))

    def _convert_slowly(self, output: TableOutput, entry: ArrowEntry) -> Iterator[ConvertedRows]:
        """Convert a stream as columnar maps. One that cannot be read is a dead letter."""
        try:
            pieces = list(_arrow_pieces(entry))
        except (MemoryError, OSError):
            raise
        except Exception as error:
            self._give_up_stream(entry, error)
            return
        for piece in pieces:
            yield from self._convert(output, [piece])

    def _may_convert_together(self, pieces: Sequence[Piece], rows: int) -> bool:
        names = {name for piece in pieces for name in piece.shape.index}
        most = min(2 * self._files.parquet.row_group_rows, self._budget.converted_bytes // (DECODED_BYTES * len(names)))
        return rows <= max(most, 1) and (len(names) <= self._budget.converted_columns or len(pieces) == 1)

    def _give_up(self, piece: Piece, error: Exception) -> None:
        """Make a dead letter of a piece of one entry."""
        kind = "the Parquet writer refuses it" if isinstance(error, Unwritable) else type(error).__name__
        reason = f"{kind}: {error}"
        letter = DeadLetter(piece.shape.database, piece.payload(0), int(piece.origins[0]), int(piece.parts[0]), reason)
        self._letters.add(letter)

    def _try_to_write(self, output: TableOutput, converted: ConvertedRows) -> None:
        """Write rows as `_write` does for a careful table, and drop the files. Raises Unwritable."""
        trial = PartitionWriters(self._files, *output.name, lambda key, spool, rows: spool.close())
        try:
            _append_hours(trial, converted, last=True)
        except BaseException:
            trial.abort()
            raise

    def _write(self, output: TableOutput, converted: Sequence[ConvertedRows], quota: Quota, close: bool) -> None:
        writers = output.writers
        try:
            writers.limit(quota)
            for part in converted:
                _append_hours(writers, part, last=output.careful or (close and len(converted) == 1))
            if close:
                writers.close()
        except Unwritable as error:
            writers.abort()
            with self._lock:
                self.refused[output.name] = str(error)
            return
        with self._lock:
            self.rows += sum(len(part.table) for part in converted)
            self.rescued += sum(part.rescued for part in converted)


def _arrow_pieces(entry: ArrowEntry) -> Iterator[Piece]:
    for number, columns in enumerate(column_maps(entry.body, entry.precision)):
        yield _piece_of(entry, number, columns)


def _piece_of(entry: ArrowEntry, number: int, columns: ColumnMap) -> Piece:
    """Make rows of a stream, as a columnar map, a piece."""
    raws = list(columns.columns.values())
    rows = array_length(memoryview(raws[0]))[0]
    shape = EntryShape(entry.database, None, columns)
    return whole_piece(shape, (rows, entry.timestamp_us, entry.origin, number, *raws))


def _halves(pieces: Sequence[Piece]) -> Sequence[Sequence[Piece]]:
    """Cut pieces into two lists, or the only one into its halves."""
    if len(pieces) == 1:
        return [[piece] for piece in pieces[0].halves()]
    middle = len(pieces) // 2
    return pieces[:middle], pieces[middle:]


def _append_hours(writers: PartitionWriters, part: ConvertedRows, *, last: bool) -> None:
    """Write rows hour by hour; `last` says that no more of these hours come."""
    first_us, last_us = int(part.times_us[0]), int(part.times_us[-1])
    if first_us // HOUR_US == last_us // HOUR_US:
        writers.append(first_us // HOUR_US * HOUR_US, part.table, first_us, last=last)
        return
    hours = part.times_us // HOUR_US
    starts = [0, *(np.flatnonzero(hours[1:] != hours[:-1]) + 1).tolist(), len(hours)]
    for start, stop in itertools.pairwise(starts):
        rows_of_hour = part.table.slice(start, stop - start)
        writers.append(int(hours[start]) * HOUR_US, rows_of_hour, int(part.times_us[start]), last=last)
