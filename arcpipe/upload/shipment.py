"""One try at a batch: threads read and convert, the event loop puts what they finish.

Before an object is put, its key is durable in the batch's journal, together with how far the segments were read whose
rows it may hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from arcpipe import logs
from arcpipe.codec.envelope import decode_envelope
from arcpipe.counters import Uploader
from arcpipe.lake.keys import encode_database
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.storage import MemoryBlob
from arcpipe.upload import segments
from arcpipe.upload.batch import Batch
from arcpipe.upload.batch_findings import BatchFindings
from arcpipe.upload.batch_reader import END, BatchReader
from arcpipe.upload.collect import BatchTables, WriterFailed
from arcpipe.upload.context import Context
from arcpipe.upload.dead_letters import DeadLetter
from arcpipe.upload.journal import Converted, Isolated, KeyRecord, MisfitEntry, Part
from arcpipe.upload.journal_writer import JournalWriter
from arcpipe.upload.key_record import key_record
from arcpipe.upload.leftovers import StoreLeftovers
from arcpipe.upload.parquet import Unwritable
from arcpipe.upload.puts import Put, Puts
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import TableName, TableSchema
from arcpipe.upload.threads import in_thread
from arcpipe.wal.findings import Finding
from arcpipe.wal.reader import ScanReport
from arcpipe.wal.stretch import Stretch

log = logging.getLogger(__name__)

DEAD_LETTER_PREFIX: Final = "_dead_letter"


class Shipment:
    """One try at a batch. `reports`, `schema`, `used`, `strays` and `findings` are complete once `run` returned."""

    def __init__(self, context: Context, batch: Batch, full_disk: int = 0) -> None:
        """Make ready for one try. Call it in the event loop.

        Args:
            full_disk: the number of earlier tries that found the disk full.
        """
        self.schema: list[TableSchema] = []
        """The changes of the batch to the registry."""
        self.used: list[TableName] = []
        """The tables that the batch used, where the registry is nearly full."""
        self.drafted: list[TableName] = []
        """The same, however full it is."""
        self.rows = 0

        self._context = context
        self._batch = batch
        self._full_disk = full_disk
        self._skip = frozenset(batch.manifest.skip)
        waiting_files = context.settings.uploader.concurrent_uploads + 2
        self._found = BatchFindings(context.directory, batch.batch_id)
        self._reader = BatchReader(context, batch, self._found)
        self._claims = context.keys.begin(batch.batch_id)
        self._journal = JournalWriter(batch.journal, context.retry, self._reader.progress, self._claims.persist)
        self._puts = Puts(context, self._journal, 2 if full_disk else waiting_files)
        self._leftovers = StoreLeftovers(context, batch, context.slots)

    @property
    def reports(self) -> dict[str, ScanReport]:
        """The reports of the batch's segments, by name."""
        return self._reader.reports

    @property
    def strays(self) -> list[str]:
        """Keys of earlier tries that this one did not make again."""
        return self._leftovers.strays(self._puts.records)

    @property
    def records(self) -> list[KeyRecord]:
        """The records of all objects of this try."""
        return list(self._puts.records.values())

    @property
    def findings(self) -> list[Finding]:
        """Facts that an operator has to know; more as more of the batch is read."""
        return self._found.all()

    async def convert(self) -> None:
        """Convert the batch, and return once the results are durable in its journal. Objects are put meanwhile.

        Raises:
            OSError, StorageError: this try failed; another one makes the same objects.
            UnreadableSegment, MissingSegment: it cannot go on with that segment.
        """
        await self._leftovers.abort_uploads()
        try:
            await in_thread(self._convert)
            await asyncio.shield(self._journal.add([self._converted()]))
        except BaseException:
            await self.close()
            raise

    async def finish(self) -> None:
        """Return once every object of the converted batch is durable.

        Raises:
            OSError, StorageError: this try failed; another one makes the same objects.
        """
        try:
            await self._puts.wait()
            await self._journal.flush()
        finally:
            await self.close()

    async def close(self) -> None:
        """End what is under way: the next try puts the same objects."""
        await self._puts.cancel()
        await self._journal.stop()
        self._puts.release()

    def abandon(self) -> None:
        """Have the conversion fail soon."""
        self._puts.abandon()

    async def remove_strays(self) -> None:
        """Remove objects of earlier tries that this one did not make again."""
        await self._leftovers.remove(self._puts.records)

    def _converted(self) -> Converted:
        archived = [name for name, report in self.reports.items() if segments.keeps_original(report)]
        return Converted(archived, self.schema, self.used, self.strays, self.findings)

    # In a thread

    def _convert(self) -> None:
        registry = self._context.registry
        registry.begin()
        isolated = self._batch.journal.isolated
        if isolated is None:
            parts = [Part(name, 0, END) for name in self._batch.segments]
            self.schema = self._convert_parts(self._batch.batch_id, registry, parts)
        else:
            self._convert_isolated(isolated)
        self._tell_repeated()
        self._puts.add_small_files()
        self.used, self.drafted = registry.used, registry.drafted

    def _convert_parts(self, batch_id: str, registry: SchemaRegistry, parts: Iterable[Part]) -> list[TableSchema]:
        """Convert parts together. Returns what they change in the registry."""
        context = self._context
        tables = BatchTables(
            batch_id,
            self._batch.manifest.layout,
            context.parquet(self._full_disk),
            registry,
            threads=context.settings.uploader.threads,
            spool=context.spool,
            hidden=self._batch.manifest.hidden,
            on_file=self._take_file,
            on_dead_letter=self._take_dead_letter,
            decide=self._claims.decide,
            careful=self._batch.careful,
        )
        try:
            with tables:
                self._read(parts, tables)
                tables.finish()
        except WriterFailed as error:
            if error.tables <= self._batch.careful:  # care does not help: the batch has to be taken apart
                raise Unwritable(str(error)) from error
            self._batch.careful |= error.tables  # for the next try
            raise
        self.rows += tables.rows
        context.block[Uploader.ROWS] += tables.rows
        context.block[Uploader.RESCUED] += tables.rescued
        if tables.rescued:
            log.warning("batch %s: %d values fit no column; they are in _rescued_data", batch_id, tables.rescued)
        return tables.schema_changes

    def _read(self, parts: Iterable[Part], tables: BatchTables) -> None:
        for part in parts:
            for item, origin in self._reader.items(part):
                if isinstance(item, Stretch):
                    tables.add_stretch(item, item.offsets + origin)
                else:
                    tables.add(item.timestamp, item.payload, origin)
                del item  # a large one makes room for the next

    def _convert_isolated(self, isolated: Isolated) -> None:
        """Convert parts one by one, under batch ids of their own, and keep the misfits as they are."""
        registry = self._context.registry.copy()
        changes: dict[TableName, TableSchema] = {}
        for number, part in enumerate(isolated.parts):
            changed = self._convert_parts(f"{self._batch.batch_id}.{number}", registry, [part])
            registry.apply(changed)
            changes |= {(table.database, table.measurement): table for table in changed}
        for misfit in isolated.misfits:
            self._keep_misfit(misfit)
        for name in self._batch.segments:
            if name not in self.reports:  # none of its entries is in a part
                for _ in self._reader.entries(Part(name, END, END)):
                    pass
        self.schema = list(changes.values())

    def _tell_repeated(self) -> None:
        """Count and log the entries that were dropped for their idempotency keys."""
        claims, block = self._claims, self._context.block
        block[Uploader.REPEATED] += claims.repeated
        block[Uploader.OTHER_BODIES] += claims.other_bodies
        if claims.repeated:
            log.info(
                "batch %s: %d entries dropped, because earlier ones have their idempotency keys",
                *(self._batch.batch_id, claims.repeated),
            )
        if claims.example is not None:
            log.warning(
                "batch %s: %d entries had the idempotency key of an earlier one, and another body: one of %d bytes as "
                "encoded, and %d at first; the first ones count",
                *(self._batch.batch_id, claims.other_bodies, *claims.example),
            )

    def _keep_misfit(self, misfit: MisfitEntry) -> None:
        for timestamp, payload, origin in self._reader.entries(Part(misfit.segment, misfit.offset, misfit.offset + 1)):
            record = key_record(timestamp, payload, None)
            if record is not None and not self._claims.decide([record])[0]:
                continue
            try:
                database = decode_envelope(payload).database
            except Exception:
                database = ""
            self._take_dead_letter(DeadLetter(database, bytes(payload), origin, 0, misfit.reason))

    def _take_file(self, key: str, spool: Spool, rows: Rows) -> None:
        if key.rpartition("/")[0] in self._skip:  # an earlier plan put the whole folder
            spool.close()
            return
        record = KeyRecord(key, rows.total, spool.size, rows.min_us, rows.max_us)
        self._puts.add_file(Put(record, spool.blob(), spool.close))

    def _take_dead_letter(self, letter: DeadLetter) -> None:
        segment, offset = self._reader.place(letter.origin)
        stem = segment.partition(".")[0]
        database = encode_database(letter.database or "unknown", self._batch.manifest.hidden)
        # The batch id, because another node may have a segment of the same name.
        key = f"{DEAD_LETTER_PREFIX}/{database}/{stem}_{self._batch.batch_id}_{offset}-{letter.part}.msgpack"
        if key.rpartition("/")[0] in self._skip:
            return
        log.error(
            "entry at offset %d of %s cannot be converted (%s); kept as %s",
            *(offset, segment, letter.reason, key),
            extra=logs.EACH,
        )
        self._context.block[Uploader.DEAD_LETTERS] += 1
        self._found.add_dead_letter(f"{letter.reason}; kept as {key}")
        self._puts.add([Put(KeyRecord(key, 0, len(letter.payload)), MemoryBlob(letter.payload))])
