"""The entries of one batch -> Parquet files.

The calling thread reads the entries' envelopes and collects their columns by table (`collected_tables`). Small entries
are taken block by block: runs of one shape are found without decoding each (`runs`). A block ends after a number of
entries or bytes, counted from the batch's first entry, so a batch that is done again has the same blocks. A pool of
threads converts and writes them (`conversion_jobs`). Everything is bounded: collected entries and jobs (`Budget`), open
files (`OpenFiles`) and finished bytes (`SpoolMemory`).

The content of each file follows from the entries, their order and these bounds, never from time, threads or free
memory: a batch that is done again makes the same files.

This module knows of the WAL only its stretches. It must not know object stores or an event loop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType

import numpy as np

from arcpipe.codec.arrow.times import MAX_TIME_US
from arcpipe.codec.arrow.values import Ints
from arcpipe.codec.arrow_ipc.columns import stream_columns
from arcpipe.codec.entries import batch_length, batch_parts, decode_entry, split_batch
from arcpipe.codec.envelope import (
    KIND_BATCH,
    KIND_COLUMNAR,
    ColumnMap,
    decode_arrow,
)
from arcpipe.config.settings import Parquet
from arcpipe.errors import ArcpipeError, BadPayload
from arcpipe.lake.keys import Hidden, Layout
from arcpipe.lake.open_files import OPEN_FILES, OpenFiles
from arcpipe.lake.spool import SpoolMemory
from arcpipe.upload.arrow_entries import ArrowEntry
from arcpipe.upload.budget import BUDGET, Budget
from arcpipe.upload.collected_tables import CollectedTables
from arcpipe.upload.conversion_jobs import ConversionJobs
from arcpipe.upload.dead_letters import DeadLetter, DeadLetters, OnDeadLetter
from arcpipe.upload.file_settings import FileSettings
from arcpipe.upload.key_decisions import Decide, KeyDecisions
from arcpipe.upload.layouts import Found
from arcpipe.upload.opened import Opened, OpenedBlock, Opener, groups_of
from arcpipe.upload.parquet import OnFile
from arcpipe.upload.runs import LEAST_ENTRIES, Run, RunFinder
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.small_entries import SmallEntries
from arcpipe.upload.staging import GroupKey
from arcpipe.upload.table_schema import TableName, TableSchema
from arcpipe.wal.stretch import MOST_BYTES, Stretch


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
            f"{reasons[self.table]}. Refused entries will be kept as dead letters"
        )


class BatchTables:
    """Take the entries of a batch in their order and hand out finished Parquet files.

    Use it in a `with` block, whose end waits for the threads. `add` and `finish` are for one thread and may block while
    the pool is busy; they raise what a callback or a full disk raised in the pool. The callbacks are called from
    several threads, `on_dead_letter` never twice at once; they may block. After `finish`, `rows`, `rescued`,
    `dead_letters` and `schema_changes` have the results.
    """

    def __init__(
        self,
        batch_id: str,
        layout: Layout,
        parquet: Parquet,
        registry: SchemaRegistry,
        *,
        threads: int,
        spool: str | os.PathLike[str] | SpoolMemory,
        on_file: OnFile,
        on_dead_letter: OnDeadLetter,
        decide: Decide | None = None,
        hidden: Hidden = "._",
        careful: Collection[TableName] = (),
        open_files: OpenFiles = OPEN_FILES,
        budget: Budget = BUDGET,
    ) -> None:
        """Make ready for a batch.

        Args:
            spool: the directory for finished bytes that are too many for memory, or bounds that several batches share.
            decide: tells which entries with an idempotency key count; by default all do.
            hidden: as in the batch's manifest.
            careful: the tables whose rows the Parquet writer refused in an earlier pass; unknown ones are ignored.

        Files depend on `careful`, `open_files` and `budget`: pass the same ones to get the same files.
        """
        self.schema_changes: list[TableSchema] = []
        """The tables that `registry.apply` is to take over, once the batch is uploaded."""

        self._registry = registry
        self._budget = budget
        self._decisions = KeyDecisions(decide, budget)
        self._unreleased = 0  # bytes of payloads since the last release
        rules = registry.rules._replace(hive=layout == "hive", keep_nanoseconds=parquet.keep_nanoseconds)
        memory = spool if isinstance(spool, SpoolMemory) else SpoolMemory(spool)
        files = FileSettings(
            batch_id, layout, parquet, memory, open_files, budget.huge_value_bytes, columns=rules, hidden=hidden
        )
        self._letters = DeadLetters(on_dead_letter)
        self._jobs = ConversionJobs(files, budget, self._letters, on_file, threads)
        self._tables = CollectedTables(
            self._jobs, self._letters, registry, budget, open_files, parquet.row_group_rows, careful
        )
        self._collect = self._tables.add
        self._runs = RunFinder()
        self._opener = Opener(budget)
        self._small = SmallEntries(budget.block_entries, budget.block_bytes)

    def __enter__(self) -> BatchTables:
        self._jobs.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._jobs.fail(error)
        self._jobs.stop()
        self._tables.abort()

    @property
    def rows(self) -> int:
        """Rows in files that were handed out."""
        return self._jobs.rows

    @property
    def rescued(self) -> int:
        """Values that fit no column."""
        return self._jobs.rescued

    @property
    def dead_letters(self) -> int:
        return self._letters.count

    def add(self, timestamp_us: int, payload: bytes | memoryview, origin: int) -> None:
        """Take a WAL entry. `origin` is the caller's number of it, for dead letters.

        The memory of `payload` must not change while there are references to it, which may be long.
        """
        if self._jobs.error is not None:
            raise self._jobs.error
        if len(payload) <= MOST_BYTES:
            self._small.add(timestamp_us, payload, origin)
            if self._small.is_block:
                self._take_block()
            return
        if len(self._small):
            self._take_block()
        self._add(timestamp_us, payload, origin)

    def add_stretch(self, stretch: Stretch, origins: Ints) -> None:
        """Take the WAL entries of a stretch, as `add` does."""
        if self._jobs.error is not None:
            raise self._jobs.error
        while len(origins):
            count = self._small.add_stretch(stretch, origins)
            if self._small.is_block:
                self._take_block()
            stretch, origins = stretch.cut(count, len(origins)), origins[count:]

    def _add(self, timestamp_us: int, payload: bytes | memoryview, origin: int) -> None:
        """Take one entry by itself."""
        opened = self._opener.open(payload)
        if not self._decisions.hold(timestamp_us, payload, origin, opened):
            self._take(timestamp_us, payload, origin, opened)
        elif self._decisions.are_due:
            self._settle()

    def _settle(self) -> None:
        """Take the entries that waited, and count."""
        for held in self._decisions.settle():
            self._take(held.timestamp_us, held.payload, held.origin, held.opened)
            del held

    def _take_block(self) -> None:
        """Take the small entries: runs of one shape together, and the others one by one."""
        if not len(self._small):
            return
        small = self._small.take()
        fronted = self._runs.fronts(small.block) if len(small) >= LEAST_ENTRIES else []
        if not fronted:  # then there are no runs, either
            for number in range(len(small)):
                self._add(*small.entry(number))
            return
        self._settle()
        block = OpenedBlock(small, self._opener)
        counts = self._decisions.of_block(block, fronted)
        if not counts.all():
            fronted = [(front, numbers[counts[numbers]]) for front, numbers in fronted]
        runs, left = self._runs.find(small.block, fronted)
        if not counts.all():
            left = [number for number in left if counts[number]]
        if runs and left:
            runs = _undivided(runs, left, block)
            for run in runs:
                counts[run.numbers] = False
            left = np.flatnonzero(counts).tolist()
        runs.sort(key=lambda run: -int(run.numbers[0]))
        for number in (*left, len(small)):  # groups begin in the order of their first entries
            while runs and runs[-1].numbers[0] < number:
                run = runs.pop()
                self._tables.add_run(run, run.piece(small.timestamps_us, small.origins))
            if number < len(small):
                self._take(*block.take(number))

    def _take(self, timestamp_us: int, payload: bytes | memoryview, origin: int, opened: Opened) -> None:
        """Take an entry that counts."""
        size = len(payload)
        budget = self._budget
        self._unreleased += size
        if self._unreleased > budget.release_bytes:
            self._unreleased = 0
            self._tables.release()
        if isinstance(opened, Found):
            self._tables.add_found(opened, payload, timestamp_us, origin)
            return
        if opened is None:
            if size > budget.whole_batch_bytes and batch_length(payload) > budget.whole_batch_maps:
                with contextlib.suppress(BadPayload):  # raised before anything was taken: below it is a dead letter
                    self._add_parts(timestamp_us, batch_parts(payload), origin)
                    return
            self._add_unusual(timestamp_us, payload, origin)
            return
        body = opened.body
        meta = opened.meta
        time_us = meta.time_of(timestamp_us) if meta.clock else timestamp_us
        if opened.kind == KIND_COLUMNAR and body.__class__ is ColumnMap:
            self._collect(opened.database, meta.precision, body, size, time_us, origin, 0)
        elif opened.kind == KIND_BATCH and body.__class__ is list:
            size //= len(body) or 1
            for part, columns in enumerate(body):
                self._collect(opened.database, meta.precision, columns, size, time_us, origin, part)
        else:
            self._add_unusual(timestamp_us, payload, origin)

    def _add_unusual(self, timestamp_us: int, payload: bytes | memoryview, origin: int) -> None:
        """Take a payload that is not of columns, or that only the slow road can read: Arc's, or one with a bad part."""
        if self._add_arrow(timestamp_us, payload, origin):
            return
        try:
            entry = decode_entry(payload)
        except BadPayload as error:
            parts = split_batch(payload)
            if len(parts) == 1:
                self._letters.add(DeadLetter("", bytes(payload), origin, 0, str(error)))
                return
        else:
            size = len(payload) // (len(entry.maps) or 1)
            time_us = entry.meta.time_of(timestamp_us)
            for number, (database, columns) in enumerate(entry.maps):
                self._collect(database, entry.meta.precision, columns, size, time_us, origin, number)
            return
        self._add_parts(timestamp_us, parts, origin)

    def _add_arrow(self, timestamp_us: int, payload: bytes | memoryview, origin: int) -> bool:
        """Take a payload that is an Arrow IPC stream; return whether it is one that can be read."""
        decoded = decode_arrow(payload)
        if decoded is None:
            return False
        database, meta, body = decoded
        try:
            names = stream_columns(body)
        except BadPayload:
            return False  # `decode_entry` fails, too, and tells why
        entry = ArrowEntry(
            database, meta.precision, body, payload, min(meta.time_of(timestamp_us), MAX_TIME_US), origin
        )
        self._tables.add_arrow(entry, names)
        return True

    def _add_parts(self, timestamp_us: int, parts: Iterable[bytes], origin: int) -> None:
        """Take the maps of a batch entry one by one."""
        for number, part in enumerate(parts):
            try:
                entry = decode_entry(part)
            except BadPayload as error:
                self._letters.add(DeadLetter("", part, origin, number, str(error)))
                continue
            time_us = entry.meta.time_of(timestamp_us)
            for database, columns in entry.maps:
                self._collect(database, entry.meta.precision, columns, len(part), time_us, origin, number)

    def finish(self) -> None:
        """Convert and write what is left, and wait until every file was handed out.

        Raises:
            WriterFailed: the Parquet writer refused rows. The files of other tables are the same next time.
        """
        self._take_block()
        self._settle()
        self._tables.flush_all()
        self._jobs.wait()
        if self._jobs.error is not None:
            raise self._jobs.error
        if self._jobs.refused:
            raise WriterFailed(self._jobs.refused)
        self.schema_changes = self._registry.changed(self._tables.schemas())


def _undivided(runs: list[Run], left: list[int], block: OpenedBlock) -> list[Run]:
    """Give up runs of groups that have other entries in the block, too: the rows of a group keep their order."""
    divided: set[GroupKey] = set()
    for number in left:
        groups = groups_of(*block.open(number))
        if groups is None:
            return []
        divided.update(groups)
    return [run for run in runs if run.key not in divided]
