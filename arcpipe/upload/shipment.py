"""One try at a batch: threads read and convert, the event loop puts what they finish.

Before an object is put, its key is durable in the batch's journal, together with how far the segments were read whose
rows it may hold. Keys that wait share one append and one sync.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from arcpipe import logs
from arcpipe.codec.envelope import decode_envelope
from arcpipe.config.settings import MB, Parquet
from arcpipe.counters import UPLOAD_BOUNDS_US, Uploader, observe
from arcpipe.errors import NotAWAL, StorageError, UnknownVersion
from arcpipe.storage import Blob, MemoryBlob, ObjectStore
from arcpipe.upload import segments
from arcpipe.upload.batch import Batch
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.dead_letters import DeadLetter
from arcpipe.upload.journal import Converted, Isolated, Journal, Key, Misfit, Part, Record, Segment
from arcpipe.upload.keys import encode_name
from arcpipe.upload.parquet import Rows
from arcpipe.upload.retry import Retry
from arcpipe.upload.schema import SchemaRegistry, TableSchema
from arcpipe.upload.spool import Spool
from arcpipe.wal import findings
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import DAMAGED, DEAD_LETTERS, Finding
from arcpipe.wal.reader import ScanReport
from arcpipe.wal.report import damage_count, end_problem

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

DEAD_LETTER_PREFIX: Final = "_dead_letter"

# Bytes below which a finished file is put together with others, if the store is faster so, and bytes of such a put.
_SMALL_FILE: Final = MB // 4
_PUT_BYTES: Final = MB

_MULTIPART_BYTES: Final = 5 * MB  # S3's smallest part: a smaller object never was an upload in parts

# Entries between two steps that are counted: a counter in shared memory costs as much as the rest of the loop.
_STEP_ENTRIES: Final = 64

# Largest file on a full disk, in MB by the number of tries: a finished one has to wait in memory.
_SMALL_FILES_MB: Final = (8, 2, 1)

END: Final = 1 << 62  # an offset after every entry

# Damaged segments of a batch that are told one by one; the journal has room for them on a full disk, too.
_TOLD_SEGMENTS: Final = 50


class Context(NamedTuple):
    """Settings and state that all tries of an uploader share."""

    settings: Settings
    directory: WALDirectory
    block: memoryview
    store: ObjectStore
    registry: SchemaRegistry
    retry: Retry

    def parquet(self, full_disk: int = 0) -> Parquet:
        """The settings of files, smaller ones where the disk was found full that often."""
        parquet = self.settings.parquet
        if not full_disk:
            return parquet
        most = _SMALL_FILES_MB[min(full_disk, len(_SMALL_FILES_MB)) - 1]
        return msgspec.structs.replace(parquet, max_file_mb=min(parquet.max_file_mb, most))


class Origin(NamedTuple):
    """Where an entry stood: names its dead letter, should it become one."""

    segment: str
    offset: int


class _Upload(NamedTuple):
    """What is to be put, and what lets go of its memory afterwards."""

    key: Key
    blob: Blob
    release: Callable[[], None] | None


class _JournalWriter:
    """Appends what waits to a journal, all of it with one sync, in a thread. For the event loop."""

    def __init__(self, journal: Journal, retry: Retry, progress: Callable[[], Iterable[Segment]]) -> None:
        """Args: progress: how far the segments have been read."""
        self._journal = journal
        self._retry = retry
        self._progress = progress
        self._waiting: list[Record] = []
        self._durable = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def add(self, records: Iterable[Record]) -> asyncio.Future[None]:
        """Append records soon. The future is done when they are durable."""
        self._waiting += records
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return self._durable

    async def _run(self) -> None:
        while self._waiting:
            records, self._waiting = self._waiting, []
            durable, self._durable = self._durable, asyncio.get_running_loop().create_future()
            # First how far was read: a row of a finished file was read before.
            append = functools.partial(self._journal.append, [*self._progress(), *records])
            try:
                await self._retry.persist(f"noting {self._journal.path}", lambda: in_thread(append))  # noqa: B023
            except BaseException:  # nobody may wait for what is not appended any more
                durable.cancel()
                self._durable.cancel()
                raise
            if not durable.done():
                durable.set_result(None)
        self._task = None

    async def flush(self) -> None:
        """Wait until everything is durable."""
        while self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Give up what waits, once no thread appends any more."""
        self._waiting = []
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._durable.cancel()


class Shipment:
    """One try at a batch."""

    def __init__(self, context: Context, batch: Batch, full_disk: int = 0) -> None:
        """Args: full_disk: how often the disk was found full by former tries."""
        self._context = context
        self._batch = batch
        self._full_disk = full_disk
        self._loop = asyncio.get_running_loop()
        concurrent = context.settings.uploader.concurrent_uploads
        # Finished files that wait for their upload hold memory: conversion waits when there are enough of them.
        self._waiting = threading.Semaphore(2 if full_disk else concurrent + 2)
        self._uploading = asyncio.Semaphore(concurrent)
        self._uploads: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None  # of the first upload that failed
        self._former = dict(batch.journal.keys)
        self._skip = frozenset(batch.manifest.skip)
        self._keys: set[str] = set()
        # Small files that wait for others, and their bytes.
        self._small: list[_Upload] = []
        self._small_bytes = 0
        self._small_lock = threading.Lock()
        # How far the segments were read: those that were read whole, and the one at hand.
        self._read: deque[Segment] = deque()
        self._position = ("", 0, 0)  # segment, entries, and the offset of the last one: replaced as one
        self._journal = _JournalWriter(batch.journal, context.retry, self._take_progress)
        self.reports: dict[str, ScanReport] = {}  # by segment name
        self._damaged: list[Finding] = []  # a segment each
        self._dead_letters = 0
        self._first_letter = ""
        self._letters_lock = threading.Lock()
        self.schema: list[TableSchema] = []  # what the batch changes in the registry
        self.used: list[tuple[str, str]] = []

    @property
    def strays(self) -> list[str]:
        """Keys of former tries that this one did not make again."""
        return sorted(self._former.keys() - self._keys)

    @property
    def findings(self) -> list[Finding]:
        """What an operator has to know of the batch; more as more of it is read."""
        found = self._damaged[:_TOLD_SEGMENTS]
        if others := self._damaged[_TOLD_SEGMENTS:]:
            count = sum(finding.count for finding in others)
            found.append(Finding(DAMAGED, self._batch.batch_id, count, f"in {len(others)} more segments of the batch"))
        if self._dead_letters:
            found.append(Finding(DEAD_LETTERS, self._batch.batch_id, self._dead_letters, self._first_letter))
        return found

    async def run(self) -> None:
        """Returns once every object is durable; `reports` and `schema` are known then.

        Raises:
            OSError, StorageError: this try failed; another one makes the same objects.
            UnreadableSegment, MissingSegment: it cannot go on with that segment.
        """
        await self._abort_uploads()
        try:
            await in_thread(self._convert)
            self._journal.add([self._converted()])
            while self._uploads:
                await asyncio.wait(self._uploads)
            if self._failure is not None:  # perhaps of an upload that was over long ago
                raise self._failure
            await self._journal.flush()
        finally:
            for upload in self._uploads:
                upload.cancel()
            if self._uploads:  # the next try puts the same objects
                await asyncio.wait(self._uploads)
            await self._journal.stop()
            _release(self._small)

    def _converted(self) -> Converted:
        archived = [name for name, report in self.reports.items() if segments.keeps_original(report)]
        return Converted(archived, self.schema, self.used, self.strays, self.findings)

    async def _abort_uploads(self) -> None:
        """Aborts what a former try left of uploads in parts. They cost space, and nothing else."""
        store = self._context.store

        async def abort(key: str) -> None:
            async with self._uploading:
                try:
                    await store.abort_uploads(key)
                except StorageError as error:
                    log.warning("multipart uploads of %s, if there are any, stay open: %s", key, error)

        large = [record.key for record in self._former.values() if record.bytes >= _MULTIPART_BYTES]
        await asyncio.gather(*map(abort, large))

    async def remove_strays(self) -> None:
        """Removes objects of an earlier try that this one did not make again.

        Both make the same objects unless something that decides where files are split was changed in between: a
        setting, or the library that encodes them.
        """
        await asyncio.gather(*map(self._remove_stray, self.strays))
        if self._batch.has_unlisted_keys and self._batch.is_left_over:
            folders = sorted({key.rpartition("/")[0] + "/" for key in self._keys})
            await asyncio.gather(*map(self._remove_strays_in, folders))

    async def _remove_stray(self, key: str) -> None:
        # Each step is tried again by itself: one failure among thousands of keys must not cost the whole batch.
        context = self._context
        async with self._uploading:
            log.warning("removing %s, which an earlier try of batch %s left", key, self._batch.batch_id)
            await context.retry.persist(f"removing {key}", functools.partial(context.store.delete, key))

    async def _remove_strays_in(self, folder: str) -> None:
        """As well as can be: of a batch whose journal does not have all keys."""
        async with self._uploading:
            try:
                keys = await self._context.store.list_keys(folder)
            except StorageError as error:
                log.warning("objects that an earlier try left in %s, if there are any, stay: %s", folder, error)
                return
        for key in keys:
            if f"_{self._batch.batch_id}_" in key and key not in self._keys:
                await self._remove_stray(key)

    # In a thread

    def _convert(self) -> None:
        self._context.registry.begin()
        isolated = self._batch.journal.isolated
        if isolated is None:
            parts = [Part(name, 0, END) for name in self._batch.segments]
            self.schema = self._convert_parts(self._batch.batch_id, self._context.registry, parts)
        else:
            self._convert_isolated(isolated)
        self._hand_over(self._take_small())
        self.used = self._context.registry.used

    def _convert_parts(self, batch_id: str, registry: SchemaRegistry, parts: Iterable[Part]) -> list[TableSchema]:
        """Converts parts together. Returns what they change in the registry."""
        context = self._context
        tables = BatchTables(
            batch_id,
            self._batch.manifest.layout,
            context.parquet(self._full_disk),
            registry,
            threads=context.settings.uploader.threads,
            spool=context.directory.spool,
            on_file=self._take_file,
            on_dead_letter=self._take_dead_letter,
        )
        with tables:
            for part in parts:
                for timestamp, payload, origin in self._entries(part):
                    tables.add(timestamp, payload, origin)
                    del payload  # a large one makes room for the next
            tables.finish()
        context.block[Uploader.ROWS] += tables.rows
        context.block[Uploader.RESCUED] += tables.rescued
        return tables.schema_changes

    def _convert_isolated(self, isolated: Isolated) -> None:
        """Converts parts one by one, under names of their own, and keeps the misfits as they are."""
        registry = self._context.registry.copy()
        changes: dict[tuple[str, str], TableSchema] = {}
        for number, part in enumerate(isolated.parts):
            changed = self._convert_parts(f"{self._batch.batch_id}.{number}", registry, [part])
            registry.apply(changed)
            changes |= {(table.database, table.measurement): table for table in changed}
        for misfit in isolated.misfits:
            self._keep_misfit(misfit)
        for name in self._batch.segments:  # what is in none of the parts
            if name not in self.reports:
                for _ in self._entries(Part(name, END, END)):
                    pass
        self.schema = list(changes.values())

    def _keep_misfit(self, misfit: Misfit) -> None:
        for _, payload, origin in self._entries(Part(misfit.segment, misfit.offset, misfit.offset + 1)):
            try:
                database = decode_envelope(payload).database
            except Exception:
                database = ""
            self._take_dead_letter(DeadLetter(database, bytes(payload), origin, 0, misfit.reason))

    def _entries(self, part: Part) -> Iterator[tuple[int, memoryview, Origin]]:
        """The entries of a part: timestamp, payload and origin. Judges the segment when it was read to its end."""
        context, name = self._context, part.segment
        entries = 0
        try:
            scan = segments.open_scan(context.directory, name)
            for offset, timestamp, payload in scan:
                entries += 1
                if not entries % _STEP_ENTRIES:
                    context.block[Uploader.STEPS] += 1
                if offset < part.start:
                    continue
                if offset >= part.stop:
                    return
                self._position = (name, entries, offset)
                yield timestamp, payload, Origin(name, offset)
                del payload  # as in the caller
        except FileNotFoundError as error:
            if not os.path.exists(os.path.join(context.directory.quarantine, name)):  # by an earlier try
                raise segments.MissingSegment(f"segment {name} of batch {self._batch.batch_id} is gone") from error
        except NotAWAL as error:
            segments.quarantine(context.directory, name, error)
            context.block[Uploader.DAMAGED] += 1
        except OSError as error:
            raise segments.UnreadableSegment(name, error) from error
        else:
            self._judge(name, scan.report)

    def _judge(self, name: str, report: ScanReport) -> None:
        block = self._context.block
        if name in self.reports:  # read in parts
            return
        problem = end_problem(report, was_active=False)
        block[Uploader.DAMAGED] += damage_count(report, problem)
        for damage in report.damage:
            log.error(
                "segment %s: %s at offset %d; skipped %d bytes",
                *(name, damage.reason, damage.offset, damage.length),
                extra=logs.EACH,
            )
        if problem:
            log.error("segment %s: %s", name, problem, extra=logs.EACH)
        block[Uploader.STEPS] += 1
        block[Uploader.ENTRIES] += report.entries
        self.reports[name] = report
        self._read.append(Segment(name, report.entries, report.end_offset, True))
        if report.damage or problem:
            reason = f"{report.damage[0].reason} at offset {report.damage[0].offset}" if report.damage else problem
            # As recovery counts the places of a segment that it seals as it is: without its missing end.
            self._damaged.append(Finding(DAMAGED, name.partition(".")[0], len(report.damage) or 1, reason))
        if self.findings:
            self._note_early()

    def _note_early(self) -> None:
        """Note what was found so far, as the batch may wait for its store for long. Its end makes sure of it."""
        try:
            findings.note(self._context.directory, self.findings)
        except (OSError, UnknownVersion) as error:
            log.warning("cannot note yet what was found in batch %s: %s", self._batch.batch_id, error)

    def _take_file(self, key: str, spool: Spool, rows: Rows) -> None:
        if key.rpartition("/")[0] in self._skip:  # what a former plan put is whole there
            spool.close()
            return
        record = Key(key, rows.total, spool.size, rows.min_us, rows.max_us)
        upload = _Upload(record, spool, spool.close)
        at_once = self._context.store.objects_at_once
        if at_once == 1 or spool.size >= _SMALL_FILE:
            self._hand_over([upload])
            return
        with self._small_lock:
            self._small.append(upload)
            self._small_bytes += spool.size
            if len(self._small) < at_once and self._small_bytes < _PUT_BYTES:
                return
            uploads = self._take_small()
        self._hand_over(uploads)

    def _take_small(self) -> list[_Upload]:
        uploads, self._small, self._small_bytes = self._small, [], 0
        return uploads

    def _hand_over(self, uploads: list[_Upload]) -> None:
        if uploads:
            self._waiting.acquire()
            self._loop.call_soon_threadsafe(self._start_upload, uploads)

    def _take_dead_letter(self, letter: DeadLetter) -> None:
        assert isinstance(letter.origin, Origin)
        segment, offset = letter.origin
        stem = segment.partition(".")[0]
        database = encode_name(letter.database or "unknown")
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
        with self._letters_lock:
            self._dead_letters += 1
            self._first_letter = self._first_letter or f"{letter.reason}; kept as {key}"
        self._hand_over([_Upload(Key(key, 0, len(letter.payload)), MemoryBlob(letter.payload), None)])

    # In the loop

    def _take_progress(self) -> list[Segment]:
        """How far the segments have been read by now."""
        name, entries, offset = self._position
        done = [Segment(name, entries, offset, False)] if entries else []
        while self._read:
            done.append(self._read.popleft())
        return done

    def _start_upload(self, uploads: list[_Upload]) -> None:
        self._keys.update(upload.key.key for upload in uploads)
        durable = self._journal.add([upload.key for upload in uploads])
        task = self._loop.create_task(self._upload(uploads, durable))
        self._uploads.add(task)
        task.add_done_callback(self._end_upload)

    def _end_upload(self, task: asyncio.Task[None]) -> None:
        self._uploads.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    async def _upload(self, uploads: list[_Upload], durable: asyncio.Future[None]) -> None:
        context = self._context
        objects = [(upload.key.key, upload.blob) for upload in uploads]
        what = f"uploading {objects[0][0]}" + (f" and {len(uploads) - 1} others" if len(uploads) > 1 else "")
        try:
            await asyncio.shield(durable)
            async with self._uploading:
                started = time.perf_counter()
                await context.retry.persist(what, lambda: context.store.put_all(objects))
                duration_us = int((time.perf_counter() - started) * 1e6)
        finally:
            self._waiting.release()
            _release(uploads)
        for _, blob in objects:
            observe(context.block, Uploader.UPLOAD_US, UPLOAD_BOUNDS_US, duration_us)
            context.block[Uploader.FILES] += 1
            context.block[Uploader.FILE_BYTES] += blob.size


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread. Ends only when the thread is done with it, also when cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([future])
        raise


def _release(uploads: list[_Upload]) -> None:
    for upload in uploads:
        if upload.release is not None:
            upload.release()
