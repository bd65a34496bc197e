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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np

from arcpipe.codec.arrow.times import MAX_TIME_US
from arcpipe.codec.arrow.values import Ints
from arcpipe.codec.arrow_ipc.columns import stream_columns
from arcpipe.codec.entries import batch_length, batch_parts, decode_entry, split_batch
from arcpipe.codec.envelope import (
    ARROW_KIND,
    KIND_BATCH,
    KIND_COLUMNAR,
    ColumnMap,
    Envelope,
    decode_arrow,
    decode_envelope,
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
from arcpipe.upload.key_record import key_record
from arcpipe.upload.layouts import Layouts
from arcpipe.upload.parquet import OnFile
from arcpipe.upload.runs import LEAST_ENTRIES, Run, RunFinder
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.small_entries import Small, SmallEntries
from arcpipe.upload.staging import GroupKey, group_key
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


Decide = Callable[[Sequence[bytes]], list[bool]]
"""Tells which of some entries count, by their records as `key_record` makes them."""


class _Held(NamedTuple):
    """An entry that waits until it is known whether it counts."""

    record: bytes | None  # None: it has no key
    timestamp_us: int
    payload: bytes | memoryview
    origin: int
    envelope: Envelope | None


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
        self._decide = decide
        self._held: list[_Held] = []  # an entry with a key, and those after it, until `decide` is asked
        self._held_bytes = 0
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
        self._layouts = Layouts()
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
        self._unreleased += len(payload)
        if self._unreleased > self._budget.release_bytes:
            self._unreleased = 0
            self._tables.release()
        if not self._held and self._add_found(timestamp_us, payload, origin):
            return
        envelope = self._envelope(payload)
        learned = envelope is not None and self._layouts.learn(payload, envelope)
        if learned and not self._held and self._add_found(timestamp_us, payload, origin):
            return
        if self._decide is not None and (envelope is None or envelope.meta.key is not None or self._held):
            self._hold(timestamp_us, payload, origin, envelope)
        else:
            self._take(timestamp_us, payload, origin, envelope)

    def _add_found(self, timestamp_us: int, payload: bytes | memoryview, origin: int) -> bool:
        """Take an entry by its layout; return whether it has a known one."""
        found = self._layouts.find(payload)
        if found is None:
            return False
        self._tables.add_found(found, payload, timestamp_us, origin)
        return True

    def _envelope(self, payload: bytes | memoryview) -> Envelope | None:
        """Decode an envelope; None if only the slow road can read it."""
        budget = self._budget
        if len(payload) <= budget.whole_batch_bytes or batch_length(payload) <= budget.whole_batch_maps:
            try:
                return decode_envelope(payload)
            except Exception:  # decode_entry finds out the reason
                return None
        return None

    def _take_block(self) -> None:
        """Take the small entries: runs of one shape together, and the others one by one."""
        if not len(self._small):
            return
        small = self._small.take()
        runs: list[Run] = []
        left = list(range(len(small)))
        if len(small) >= LEAST_ENTRIES and not self._held:
            runs, left = self._runs.find(small.block)
        if runs and left:
            runs, left = self._undivided(runs, left, small)
        runs.sort(key=lambda run: -int(run.numbers[0]))
        for number in (*left, len(small)):  # groups begin in the order of their first entries
            while runs and runs[-1].numbers[0] < number:
                run = runs.pop()
                self._tables.add_run(run, run.piece(small.timestamps_us, small.origins))
            if number < len(small):
                self._add(*small.entry(number))

    def _undivided(self, runs: list[Run], left: list[int], small: Small) -> tuple[list[Run], list[int]]:
        """Give up runs of groups that have other entries in the block, too: the rows of a group keep their order."""
        divided: set[GroupKey] = set()
        for number in left:
            payload = small.block.payload(number)
            envelope = self._envelope(payload)
            if envelope is None and payload[1:2] == ARROW_KIND:
                continue
            body = None if envelope is None else envelope.body
            if envelope is None or body is None or (self._decide is not None and envelope.meta.key is not None):
                return [], list(range(len(small)))  # it may be of any group, or holds back those after it
            maps = body if isinstance(body, list) else [body]
            divided.update(group_key(envelope.database, envelope.meta.precision, columns) for columns in maps)
        kept = [run for run in runs if run.key not in divided]
        if len(kept) < len(runs):
            is_left = np.ones(len(small), np.bool_)
            for run in kept:
                is_left[run.numbers] = False
            left = np.flatnonzero(is_left).tolist()
        return kept, left

    def _take(self, timestamp_us: int, payload: bytes | memoryview, origin: int, envelope: Envelope | None) -> None:
        """Take an entry that counts; without its envelope if only the slow road can read it."""
        size = len(payload)
        budget = self._budget
        if envelope is None:
            if size > budget.whole_batch_bytes and batch_length(payload) > budget.whole_batch_maps:
                with contextlib.suppress(BadPayload):  # raised before anything was taken: below it is a dead letter
                    self._add_parts(timestamp_us, batch_parts(payload), origin)
                    return
            self._add_unusual(timestamp_us, payload, origin)
            return
        body = envelope.body
        meta = envelope.meta
        time_us = meta.time_of(timestamp_us) if meta.clock else timestamp_us
        if envelope.kind == KIND_COLUMNAR and body.__class__ is ColumnMap:
            self._collect(envelope.database, meta.precision, body, size, time_us, origin, 0)
        elif envelope.kind == KIND_BATCH and body.__class__ is list:
            size //= len(body) or 1
            for part, columns in enumerate(body):
                self._collect(envelope.database, meta.precision, columns, size, time_us, origin, part)
        else:
            self._add_unusual(timestamp_us, payload, origin)

    def _hold(self, timestamp_us: int, payload: bytes | memoryview, origin: int, envelope: Envelope | None) -> None:
        """Keep an entry until there are some to decide on together: their order stays as it is."""
        self._held.append(_Held(key_record(timestamp_us, payload, envelope), timestamp_us, payload, origin, envelope))
        self._held_bytes += len(payload)
        budget = self._budget
        if len(self._held) >= budget.held_entries or self._held_bytes >= budget.held_bytes:
            self._settle()

    def _settle(self) -> None:
        """Take the held entries that count."""
        held, self._held = self._held, []
        self._held_bytes = 0
        records = [entry.record for entry in held if entry.record is not None]
        assert self._decide is not None or not held
        counts = iter(self._decide(records) if records and self._decide is not None else ())
        held.reverse()
        while held:
            record, timestamp_us, payload, origin, envelope = held.pop()
            if record is None or next(counts):
                self._take(timestamp_us, payload, origin, envelope)
            del payload, envelope  # a large one makes room for the next

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
