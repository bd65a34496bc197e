"""The uploader process: completed segments in, Parquet objects out, batch by batch.

One batch at a time goes the whole way: read and convert (threads), upload (this loop), mark, retire. Nothing is ever
given up: whatever fails is tried again with backoff until it succeeds, and the backlog limit guards the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import uvloop

from arcpipe import logs
from arcpipe.allocator import keep_freed_memory
from arcpipe.counters import RETRY_KINDS, UPLOAD_BOUNDS_US, Counters, Uploader, observe
from arcpipe.counters import Node as NodeBlock
from arcpipe.errors import NotAWAL, StorageError
from arcpipe.storage import Blob, MemoryBlob, ObjectStore, open_store
from arcpipe.upload.batch import Batches, Manifest
from arcpipe.upload.parquet import Spool, encode_name
from arcpipe.upload.schema import SchemaRegistry, TableSchema
from arcpipe.upload.tables import BatchTables, DeadLetter
from arcpipe.wal.directory import Node, WALDirectory
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import ScanReport, SegmentScan

if TYPE_CHECKING:
    from arcpipe.config import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

_POLL_SECONDS: Final = 0.1
_BACKOFF_FIRST_SECONDS: Final = 0.2
_BACKOFF_LIMIT_SECONDS: Final = 30.0
_DRAINING_BACKOFF_LIMIT_SECONDS: Final = 1.0
DEAD_LETTER_PREFIX: Final = "_dead_letter"

# Finished files that are smaller than this are put together, if the store is faster so; at most so many bytes at once.
_SMALL_FILE: Final = 256 << 10
_PUT_BYTES: Final = 1 << 20

# Of the heap, once it was needed: conversion takes and frees as much again and again.
KEPT_MEMORY_BYTES: Final = 256 << 20


def run(settings: Settings, directory: WALDirectory, counters: Counters, node: Node) -> int:
    """Ships until SIGTERM, then what is still waiting; the exit code of the process."""
    keep_freed_memory(KEPT_MEMORY_BYTES)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Uploader(settings, directory, counters, node).serve())


class _Uploader:
    def __init__(self, settings: Settings, directory: WALDirectory, counters: Counters, node: Node) -> None:
        self.settings = settings
        self.directory = directory
        self.block = counters.uploader
        self._node_block = counters.node
        self._batches = Batches(directory, node, self.block, settings.storage.url, settings.storage.layout)
        wal = settings.wal
        self._pool = FreePool(directory, wal.free_segments, wal.max_size_mb << 20) if wal.recycle else None
        self.registry = SchemaRegistry.load(os.path.join(directory.path, "schema.json"))
        self._draining = asyncio.Event()
        self.store: ObjectStore

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._draining.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self.block[Uploader.STARTED_US] = time.time_ns() // 1000
        self.store = open_store(self.settings.storage.url, self.settings.storage.s3)
        self.block[Uploader.PID] = os.getpid()
        heartbeat = loop.create_task(self._beat())
        # What was imported and made so far stays for ever: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        try:
            await self.persist("checking the store", self.store.check)
            for manifest in await self.persist("reading the manifests", self._unfinished):
                log.info("batch %s: %s when it was interrupted; finishing it", manifest.batch_id, manifest.state)
                if manifest.state == "planned" and manifest.store != self.settings.storage.url:
                    log.warning(
                        "batch %s was begun in %s and is shipped to %s now: what it left there holds the same rows",
                        manifest.batch_id,
                        manifest.store,
                        self.settings.storage.url,
                    )
                await self._finish(manifest, again=True)
            while True:
                planned = await self.persist("planning a batch", self._plan)
                if planned is not None:
                    await self._finish(planned, again=False)
                elif self._draining.is_set():
                    return 0
                else:
                    await self._pause(_POLL_SECONDS)
        finally:
            heartbeat.cancel()
            await self.store.close()

    async def _unfinished(self) -> list[Manifest]:
        return self._batches.unfinished()

    async def _plan(self) -> Manifest | None:
        return self._batches.plan()

    async def _finish(self, manifest: Manifest, again: bool) -> None:
        """Takes a batch from its present state to its end, however long it takes."""
        last_timestamps: dict[str, int] = {}
        started = time.monotonic()
        rows_before = self.block[Uploader.ROWS]
        if manifest.state == "planned":
            tries = 0

            async def ship() -> _Shipment:
                nonlocal tries
                tries += 1
                shipment = _Shipment(self, manifest)
                await shipment.run()
                if again or tries > 1:
                    await shipment.remove_strays()
                return shipment

            shipped = await self.persist(f"batch {manifest.batch_id}", ship)

            async def mark() -> None:
                self._batches.mark_uploaded(manifest, shipped.reports, shipped.schema)

            await self.persist(f"marking batch {manifest.batch_id} as uploaded", mark)
            reusable = self.settings.wal.max_size_mb << 19
            last_timestamps = {
                name: report.last_timestamp for name, report in shipped.reports.items() if report.size >= reusable
            }

        async def retire() -> None:
            if manifest.schema:
                self.registry.apply(manifest.schema)
                self.registry.save()
            self._batches.retire(manifest, self._pool, last_timestamps)

        await self.persist(f"retiring the segments of batch {manifest.batch_id}", retire)
        self.block[Uploader.BATCHES] += 1
        self.block[Uploader.SEGMENTS] += len(manifest.segments)
        self.block[Uploader.LAST_UPLOAD_US] = time.time_ns() // 1000
        log.info(
            "batch %s: %d segments, %d rows shipped in %.2f s",
            manifest.batch_id,
            len(manifest.segments),
            self.block[Uploader.ROWS] - rows_before,
            time.monotonic() - started,
        )

    async def persist(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Does something until it succeeds: exponential backoff with full jitter, a log line for each failure."""
        tries = 0
        while True:
            self.block[Uploader.STEPS] += 1
            try:
                return await work()
            except Exception as error:  # whatever it is: giving up would lose the batch
                kind = _kind(error)
                if (
                    isinstance(error, OSError)
                    and error.errno in (errno.ENOSPC, errno.EDQUOT)
                    and self._pool is not None
                ):
                    self._pool.give_back()  # nothing may keep the last bytes from being shipped
                self.block[Uploader.RETRIES + RETRY_KINDS.index(kind)] += 1
                tries += 1
                longest = _DRAINING_BACKOFF_LIMIT_SECONDS if self._draining.is_set() else _BACKOFF_LIMIT_SECONDS
                limit = min(_BACKOFF_FIRST_SECONDS * 2.0 ** min(tries, 16), longest)
                delay = random.uniform(_BACKOFF_FIRST_SECONDS / 2, limit)
                log.warning(
                    "%s: %s; trying again in %.1f s",
                    what,
                    error,
                    delay,
                    exc_info=kind == "bug",
                    extra={"fields": {"kind": kind, "tries": tries}},
                )
                await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        """Waits, but no longer once told to drain: there is little time then. One that begins later is a whole one."""
        if self._draining.is_set():
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    async def _beat(self) -> None:
        while True:
            self.block[Uploader.HEARTBEAT_US] = time.time_ns() // 1000
            logs.set_level(self._node_block[NodeBlock.LOG_LEVEL])
            await asyncio.sleep(0.5)


def _kind(error: Exception) -> str:
    """The word of RETRY_KINDS for a failure."""
    if isinstance(error, StorageError):
        return error.kind if error.kind in RETRY_KINDS else "other"
    return "disk" if isinstance(error, OSError) else "bug"


class _Origin(NamedTuple):
    """Where an entry stood: names its dead letter, should it become one."""

    segment: str
    offset: int


class _Upload(NamedTuple):
    """What is to be put, and what lets go of its memory afterwards."""

    key: str
    blob: Blob
    release: Callable[[], None] | None


class _Shipment:
    """One try at shipping a batch: threads read and convert, the event loop uploads what they finish."""

    def __init__(self, uploader: _Uploader, manifest: Manifest) -> None:
        self._uploader = uploader
        self._manifest = manifest
        self._loop = asyncio.get_running_loop()
        # Finished files that wait for their upload hold memory: conversion waits when there are enough of them.
        self._waiting = threading.Semaphore(uploader.settings.uploader.concurrent_uploads + 2)
        self._uploading = asyncio.Semaphore(uploader.settings.uploader.concurrent_uploads)
        self._uploads: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None  # of the first upload that failed
        self._keys: set[str] = set()
        # Small files that wait for others, and their bytes.
        self._small: list[_Upload] = []
        self._small_bytes = 0
        self._small_lock = threading.Lock()
        self.reports: dict[str, ScanReport] = {}  # by segment name
        self.schema: list[TableSchema] = []  # what the batch changes in the registry

    async def run(self) -> None:
        """Returns once every object is durable; `reports` and `schema` are known then.

        Raises:
            OSError, StorageError: this try failed; another one makes the same objects.
        """
        try:
            await self._loop.run_in_executor(None, self._convert)
            while self._uploads:
                await asyncio.wait(self._uploads)
            if self._failure is not None:  # perhaps of an upload that was over long ago
                raise self._failure
        finally:
            for upload in self._uploads:
                upload.cancel()
            if self._uploads:  # the next try puts the same objects
                await asyncio.wait(self._uploads)
            _release(self._small)

    async def remove_strays(self) -> None:
        """Removes objects of an earlier try that this one did not make again.

        Both make the same objects unless something that decides where files are split was changed in between: a
        setting, or the library that encodes them.
        """
        folders = sorted({key.rpartition("/")[0] + "/" for key in self._keys})
        await asyncio.gather(*map(self._remove_strays_in, folders))

    async def _remove_strays_in(self, folder: str) -> None:
        # Each step is tried again by itself: one failure among thousands of folders must not cost the whole batch.
        uploader, batch_id = self._uploader, self._manifest.batch_id
        async with self._uploading:
            keys = await uploader.persist(f"listing {folder}", lambda: uploader.store.list_keys(folder))
            for key in keys:
                if f"_{batch_id}_" in key and key not in self._keys:
                    log.warning("removing %s, which an earlier try of batch %s left", key, batch_id)
                    await uploader.persist(f"removing {key}", functools.partial(uploader.store.delete, key))

    # In a thread

    def _convert(self) -> None:
        uploader, manifest = self._uploader, self._manifest
        tables = BatchTables(
            manifest.batch_id,
            manifest.layout,
            uploader.settings.parquet,
            uploader.registry,
            threads=uploader.settings.uploader.threads,
            spool=uploader.directory.spool,
            on_file=self._take_file,
            on_dead_letter=self._take_dead_letter,
        )
        with tables:
            for name in manifest.segments:
                self._read(name, tables)
            tables.finish()
        self._hand_over(self._take_small())
        self.schema = tables.schema_changes
        uploader.block[Uploader.ROWS] += tables.rows
        uploader.block[Uploader.RESCUED] += tables.rescued

    def _read(self, name: str, tables: BatchTables) -> None:
        path = os.path.join(self._uploader.directory.path, name)
        quarantined = os.path.join(self._uploader.directory.quarantine, name)
        try:
            scan = SegmentScan(path, gently=True)
        except FileNotFoundError:
            if os.path.exists(quarantined):  # by an earlier try
                return
            log.error("segment %s of batch %s was removed by somebody else", name, self._manifest.batch_id)
            return
        except NotAWAL as error:
            log.error("%s; moved to %s", error, self._uploader.directory.quarantine)
            os.rename(path, quarantined)
            return
        for offset, timestamp, payload in scan:
            self._uploader.block[Uploader.STEPS] += 1
            tables.add(timestamp, payload, _Origin(name, offset))
            del payload  # a large one makes room for the next
        report = scan.report
        for damage in report.damage:
            self._uploader.block[Uploader.DAMAGED] += 1
            log.error(
                "segment %s: %s at offset %d; skipped %d bytes", name, damage.reason, damage.offset, damage.length
            )
        self._uploader.block[Uploader.ENTRIES] += report.entries
        self.reports[name] = report

    def _take_file(self, key: str, spool: Spool, rows: int) -> None:
        upload = _Upload(key, spool, spool.close)
        at_once = self._uploader.store.objects_at_once
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
        assert isinstance(letter.origin, _Origin)
        segment, offset = letter.origin
        stem = segment.partition(".")[0]
        database = encode_name(letter.database or "unknown")
        # The batch id, because another node may have a segment of the same name.
        key = f"{DEAD_LETTER_PREFIX}/{database}/{stem}_{self._manifest.batch_id}_{offset}-{letter.part}.msgpack"
        log.error("entry at offset %d of %s cannot be converted (%s); kept as %s", offset, segment, letter.reason, key)
        self._uploader.block[Uploader.DEAD_LETTERS] += 1
        self._hand_over([_Upload(key, MemoryBlob(letter.payload), None)])

    # In the loop

    def _start_upload(self, uploads: list[_Upload]) -> None:
        task = self._loop.create_task(self._upload(uploads))
        self._uploads.add(task)
        task.add_done_callback(self._end_upload)

    def _end_upload(self, task: asyncio.Task[None]) -> None:
        self._uploads.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    async def _upload(self, uploads: list[_Upload]) -> None:
        uploader = self._uploader
        what = f"uploading {uploads[0].key}" + (f" and {len(uploads) - 1} others" if len(uploads) > 1 else "")
        objects = [(upload.key, upload.blob) for upload in uploads]
        try:
            async with self._uploading:
                started = time.perf_counter()
                await uploader.persist(what, lambda: uploader.store.put_all(objects))
                duration_us = int((time.perf_counter() - started) * 1e6)
        finally:
            self._waiting.release()
            _release(uploads)
        for key, blob in objects:
            self._keys.add(key)
            observe(uploader.block, Uploader.UPLOAD_US, UPLOAD_BOUNDS_US, duration_us)
            uploader.block[Uploader.FILES] += 1
            uploader.block[Uploader.FILE_BYTES] += blob.size


def _release(uploads: list[_Upload]) -> None:
    for upload in uploads:
        if upload.release is not None:
            upload.release()
