"""The uploader process: sealed segments in, Parquet objects out, batch by batch.

A batch goes the whole way: read and convert (threads), put (this loop), mark, retire. While its last objects are put,
the next one is converted, if one is due (`upload.cadence`, `upload.look_ahead`). Nothing is ever given up: all that
fails is retried with backoff until it succeeds, and the backlog limit guards the disk. A batch or segment that cannot
be read is set aside, with a backoff of its own, while others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import uvloop

from arcpipe.allocator import keep_freed_memory
from arcpipe.child import Fields, living
from arcpipe.clock import steady_us
from arcpipe.counters import BEGUN, Counters, Uploader
from arcpipe.counters import Node as NodeBlock
from arcpipe.errors import StorageError, is_full
from arcpipe.lake.keys import Hidden
from arcpipe.lake.spool import SpoolMemory
from arcpipe.storage import ObjectStore, open_store
from arcpipe.tables.commit_file import FOLDER
from arcpipe.units import MB
from arcpipe.upload.batch import Batch
from arcpipe.upload.batches import Batches
from arcpipe.upload.cadence import Cadence
from arcpipe.upload.context import Context
from arcpipe.upload.handover import TablesBehind, files_of, files_to_hand_over
from arcpipe.upload.isolate import BugWatch, isolate
from arcpipe.upload.key_window import KeyWindow
from arcpipe.upload.lessons import Lessons
from arcpipe.upload.look_ahead import LookAhead
from arcpipe.upload.redo import Replaced, prepare, without
from arcpipe.upload.retry import Backoff, Retry, kind_of
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.segments import UnreadableSegment
from arcpipe.upload.shipment import Shipment
from arcpipe.upload.table_schema import ColumnRules
from arcpipe.upload.threads import in_thread
from arcpipe.upload.unreadable import UnreadableSegments
from arcpipe.wal import findings
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from arcpipe.wal.pool import FreePool

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.1  # between two looks for sealed segments
# Seconds after `shutdown.delay_seconds` at which it stops by itself, if only it was told. Where all processes were told
# at once, the supervisor's own SIGTERM comes earlier, and the supervisor does not take the uploader for dead.
_ALONE_SECONDS: Final = 1.0

# Bytes of freed memory that the heap keeps: conversion takes and frees as much again and again.
KEPT_MEMORY_BYTES: Final = 256 * MB
GARBAGE_OBJECTS: Final = 20_000
"""New containers from which on Python looks for cycles among them. Entries that are collected are thousands, and in no
cycle: with Python's own 700, the looks took 9% of a conversion."""


def run(settings: Settings, directory: WALDirectory, counters: Counters, node: NodeIdentity) -> int:
    """Upload until SIGTERM, then finish the segments that wait. Returns the exit code of the process."""
    keep_freed_memory(KEPT_MEMORY_BYTES)
    gc.set_threshold(GARBAGE_OBJECTS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, directory, counters, node))


async def _run(settings: Settings, directory: WALDirectory, counters: Counters, node: NodeIdentity) -> int:
    loop = asyncio.get_running_loop()
    store = open_store(settings.storage.url, settings.storage.s3, settings.uploader.concurrent_uploads)
    uploader = BatchUploader(settings, directory, counters, node, store)
    was_told = False

    def drain() -> None:
        """Handle SIGTERM. The supervisor sends it when it is time; others may send it to all processes at once."""
        nonlocal was_told
        delay = settings.shutdown.delay_seconds
        if was_told or not delay or counters.node[NodeBlock.DRAINING] >= BEGUN:
            uploader.drain()
        else:
            was_told = True
            loop.call_later(delay + _ALONE_SECONDS, uploader.drain)

    fields = Fields(Uploader.PID, Uploader.STARTED_US, Uploader.HEARTBEAT_US)
    try:
        async with living(counters, counters.uploader, fields, drain):
            return await uploader.serve()
    finally:
        await store.close()


class BatchUploader:
    """Take batches to their end, one after the other. For one event loop.

    `serve` does so until `drain` was called and nothing is left; `work_once` does a single batch.
    """

    def __init__(
        self,
        settings: Settings,
        directory: WALDirectory,
        counters: Counters,
        node: NodeIdentity,
        store: ObjectStore,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        clock: Callable[[], int] = steady_us,
    ) -> None:
        """Make ready.

        Args:
            sleep: waits the seconds between two tries; tests pass one that does not wait.
            clock: the steady clock of the cadence, in µs.
        """
        self._settings = settings
        self._directory = directory
        self._store = store
        self._block = counters.uploader
        for gauge in (Uploader.UNREADABLE_SEGMENTS, Uploader.DAMAGED_MANIFESTS, Uploader.STOPPED, Uploader.HELD_BACK):
            self._block[gauge] = 0
        wal = settings.wal
        self._pool = FreePool(directory, wal.free_segments, wal.max_size_mb * MB) if wal.recycle else None
        self._retry = Retry(self._block, self._make_space, sleep)
        storage, batch_bytes = settings.storage, settings.uploader.batch_mb * MB
        uncommitted_bytes = settings.tables.max_uncommitted_mb * MB if settings.has_tables else 0
        # Readers of Delta find no table below a folder with a percent sign.
        hidden: Hidden = "._~" if settings.tables.format == "delta" else "._"
        self._batches = Batches(
            *(directory, node, self._block, storage.url, storage.layout, batch_bytes, uncommitted_bytes, hidden)
        )
        self._cadence = Cadence(settings, directory, counters, self._retry.draining.is_set, clock)
        keys = settings.idempotency
        self._keys = KeyWindow(directory, self._block, keys.window_seconds, keys.max_keys)
        self._context: Context | None = None  # once the registry is loaded
        self._todo: deque[Batch] = deque()
        # Set aside: batches of which a part was put. Segments of which nothing was put are in `_unreadable`.
        self._waiting: dict[str, tuple[Batch, Backoff, str]] = {}  # by batch id; with the segment at fault, or ""
        self._unreadable = UnreadableSegments(directory, self._block, self._retry)
        self._ahead = LookAhead(
            lambda: self._plan_now(may_use_spares=False),
            self._ship,
            lambda what, error: self._retry.note(what, error, 1),
        )
        self._looks_ahead = False
        self._lessons = Lessons(os.path.join(directory.path, FOLDER), directory.disk)

    def drain(self) -> None:
        """Stop waiting for new segments. May be called by a signal handler of the loop."""
        self._retry.draining.set()

    async def serve(self) -> int:
        """Upload until nothing is left after `drain`. Returns the exit code of the process."""
        await self._retry.persist("checking the store", self._store.check)
        self._looks_ahead = True
        while True:
            if await self.work_once():
                continue
            if self._retry.draining.is_set() and not self._has_more:
                self._cadence.end()
                return 0
            await self._retry.pause(_POLL_SECONDS)

    @property
    def _has_more(self) -> bool:
        """Whether any known work waits for this process."""
        return bool(self._todo or self._waiting or self._unreadable or self._batches.has_kept or self._ahead.is_begun)

    async def work_once(self) -> bool:
        """Take one batch to its end, or as far as it goes: unfinished ones first, then a new one.

        Returns:
            True if there was a batch.
        """
        if self._context is None:
            await self._begin()
        ahead = await self._ahead.take()
        if ahead is not None:
            await self._work(*ahead)
            return True
        if await self._unreadable.probe():
            self._count_unreadable()
        batch = self._next_unfinished()
        if batch is None:
            await self._retry.persist("saving the types of tables", self._learn)
            batch = await self._retry.persist("planning a batch", self._plan)
        if batch is None:
            return False
        await self._work(batch)
        return True

    async def _begin(self) -> None:
        """Read the registry and the batches that an earlier process left; retry until they can be read."""
        directory = self._directory

        async def load() -> SchemaRegistry:
            return SchemaRegistry.load(
                os.path.join(directory.path, "schema.json"), directory.disk, directory.quarantine
            )

        async def unfinished() -> list[Batch]:
            return self._batches.unfinished()

        registry = await self._retry.persist("reading the schema registry", load)
        schema = self._settings.schema
        registry.rules = ColumnRules(schema.untyped_integers, tuple(schema.types.items()))
        for batch in await self._retry.persist("reading the manifests", unfinished):
            log.info("batch %s: %s when it was interrupted; finishing it", batch.batch_id, batch.state)
            if batch.state == "planned" and batch.manifest.store != self._settings.storage.url:
                log.warning(
                    "batch %s was begun in %s and is uploaded to %s now: objects in the old store are duplicates",
                    batch.batch_id,
                    batch.manifest.store,
                    self._settings.storage.url,
                )
            self._todo.append(batch)
        replaced = {batch.batch_id: batch.manifest.replaces for batch in self._todo}
        await in_thread(lambda: self._keys.load(replaced, self._batches.kept))
        slots = asyncio.Semaphore(self._settings.uploader.concurrent_uploads)
        spool = SpoolMemory(directory.spool)
        self._context = Context(
            self._settings, directory, self._block, self._store, registry, self._keys, self._retry, slots, spool
        )

    def _next_unfinished(self) -> Batch | None:
        if self._todo:
            return self._todo.popleft()
        for batch_id, (batch, backoff, _) in self._waiting.items():
            if backoff.is_due:
                self._todo.append(batch)
                self._count_unreadable(without_batch=batch_id)
                return self._todo.popleft()
        return None

    async def _plan(self) -> Batch | None:
        return self._plan_now()

    def _plan_now(self, may_use_spares: bool = True) -> Batch | None:
        self._batches.set_aside = self._unreadable.names
        batch = self._batches.plan(self._cadence.is_due, may_use_spares)
        if batch is not None:
            self._cadence.note_planned()
        return batch

    async def _learn(self) -> None:
        """Follow the types of tables that the committer met, while no batch is begun."""
        assert self._context is not None
        self._lessons.refresh()
        if self._lessons.are_new:
            self._lessons.teach(self._context.registry)
            try:
                self._context.registry.save()
            except OSError as error:
                if not is_full(error):
                    raise
                return  # the end of a batch makes space, and saves it
            self._lessons.are_new = False

    def _ship(self, batch: Batch, registry: SchemaRegistry) -> Shipment:
        assert self._context is not None
        return Shipment(self._context._replace(registry=registry), batch)

    # One batch

    async def _work(self, batch: Batch, converted: Shipment | None = None) -> None:
        """Take a batch to its end, or as far as it goes.

        Args:
            converted: a try whose conversion is done, ahead of the batch's turn.
        """
        started = time.monotonic()
        batch.journal.may_use_spares = True  # no older batch needs them
        shipment = None
        if batch.state == "planned":
            watch = BugWatch()
            full_disk = 0

            async def attempt() -> Shipment | None:
                nonlocal full_disk, converted
                try:
                    if converted is not None:
                        begun, converted = converted, None
                        return await self._finish(batch, begun)
                    batch.tries += 1
                    return await self._attempt(batch, full_disk)
                except Exception as error:
                    full_disk += is_full(error)
                    if kind_of(error) == "bug" and batch.journal.isolated is None and watch.note(error):
                        await self._isolate(batch)
                    raise

            shipment = await self._retry.persist(f"batch {batch.batch_id}", attempt)
            if shipment is None and batch.state == "planned":  # set aside, or planned anew
                return
        await self._end(batch, shipment)
        log.info(
            "batch %s: %d segments, %d rows uploaded in %.2f s",
            batch.batch_id,
            len(batch.segments),
            shipment.rows if shipment is not None else 0,
            time.monotonic() - started,
        )

    async def _attempt(self, batch: Batch, full_disk: int) -> Shipment | None:
        """Try a batch once. None if it was set aside or planned anew, or is uploaded already."""
        assert self._context is not None
        try:
            await prepare(self._context, self._batches, batch)
            if batch.state == "uploaded":
                return None
            shipment = Shipment(self._context, batch, full_disk)
            await shipment.convert()
            return await self._finish(batch, shipment, full_disk)
        except Replaced as replaced:
            self._waiting.pop(batch.batch_id, None)
            new = replaced.batch
            if new is not None:
                self._todo.appendleft(new)
            await self._retry.persist("handing idempotency keys over", lambda: self._pass_keys_on(batch, new))
            return None
        except UnreadableSegment as error:
            self._set_aside(batch, error)
            return None
        except StorageError as error:  # of `prepare`, or of finished bytes that cannot be read: puts are retried
            self._wait(batch, error, "")
            return None

    async def _finish(self, batch: Batch, shipment: Shipment, full_disk: int = 0) -> Shipment:
        """Wait for the objects of a converted batch. Meanwhile the next one is converted, if one is due."""
        assert self._context is not None
        if self._looks_ahead and not self._todo and not full_disk:
            self._lessons.refresh()
            self._ahead.begin(self._context.registry, shipment, self._lessons.teach)
        try:
            await shipment.finish()
            if batch.tries > 1 or batch.is_left_over:
                await shipment.remove_strays()
        except BaseException:
            following = await self._ahead.give_up()
            if following is not None:  # it was converted with changes that this batch may not make again
                self._todo.appendleft(following)
            raise
        return shipment

    async def _isolate(self, batch: Batch) -> None:
        assert self._context is not None
        context = self._context
        found = await in_thread(functools.partial(isolate, context, batch))
        batch.journal.append([found])

    def _set_aside(self, batch: Batch, error: UnreadableSegment) -> None:
        """Let other segments go on while one cannot be read. A batch of which a part was put waits as a whole."""
        if batch.journal.has_keys or batch.manifest.version == 1:
            self._wait(batch, error, error.name)
            return
        self._keys.forget(batch.batch_id)  # first: the segment's own keys must not count as known
        new = self._batches.replace(batch, without(batch, error.name))
        if new is not None:
            self._todo.appendleft(new)
        self._unreadable.add(error)
        self._count_unreadable()

    def _wait(self, batch: Batch, error: Exception, name: str) -> None:
        backoff = self._waiting[batch.batch_id][1] if batch.batch_id in self._waiting else Backoff(self._retry)
        backoff.note(f"batch {batch.batch_id} is set aside while others go on", error)
        self._waiting[batch.batch_id] = batch, backoff, name
        batch.journal.close()
        self._count_unreadable()

    def _count_unreadable(self, without_batch: str = "") -> None:
        waiting = {name for batch_id, (_, _, name) in self._waiting.items() if name and batch_id != without_batch}
        self._block[Uploader.UNREADABLE_SEGMENTS] = len(waiting | self._unreadable.names)

    async def _end(self, batch: Batch, shipment: Shipment | None) -> None:
        """Mark a batch as uploaded and let its segments go."""
        assert self._context is not None
        registry = self._context.registry
        last_timestamps: dict[str, int] = {}
        if shipment is not None:

            async def mark() -> None:
                assert shipment is not None
                found = (shipment.schema, shipment.used, shipment.strays, shipment.findings)
                self._batches.mark_uploaded(batch, shipment.reports, *found)

            await self._retry.persist(f"marking batch {batch.batch_id} as uploaded", mark)
        if self._batches.handover is not None:
            await self._retry.persist(
                f"handing over batch {batch.batch_id} to tables", lambda: self._hand_over(batch, shipment)
            )
        if shipment is not None:
            reusable = self._settings.wal.max_size_mb * MB // 2
            last_timestamps = {
                name: report.last_timestamp for name, report in shipment.reports.items() if report.size >= reusable
            }
        await self._retry.persist(f"keeping the keys of batch {batch.batch_id}", lambda: self._keep_keys(batch))
        converted = batch.converted
        used = converted.used or (shipment.drafted if shipment is not None else [])

        def save() -> None:
            self._keys.finish(batch.batch_id)  # for the case that only now the disk has room for them
            findings.note(self._directory, converted.findings)
            registry.apply(converted.schema, used)
            self._lessons.teach(registry)
            if converted.schema or self._lessons.are_new:
                registry.save()
                self._lessons.are_new = False

        async def retire() -> None:
            self._batches.retire(batch, self._pool, last_timestamps, save)

        await self._retry.persist(f"retiring the segments of batch {batch.batch_id}", retire)
        self._waiting.pop(batch.batch_id, None)
        self._count_unreadable()
        self._block[Uploader.BATCHES] += 1
        self._block[Uploader.SEGMENTS] += len(batch.segments)
        self._block[Uploader.LAST_UPLOAD_US] = steady_us()

    async def _pass_keys_on(self, batch: Batch, new: Batch | None) -> None:
        if new is None:
            self._keys.forget(batch.batch_id)
        else:
            self._keys.hand_over(batch.batch_id, new.batch_id)

    async def _keep_keys(self, batch: Batch) -> None:
        try:
            await in_thread(lambda: self._keys.finish(batch.batch_id))
        except OSError as error:
            if not is_full(error):
                raise
            self._make_space()
            log.error("idempotency keys of batch %s wait until its segments are gone: %s", batch.batch_id, error)

    async def _hand_over(self, batch: Batch, shipment: Shipment | None) -> None:
        """Make an uploaded batch a part of tables."""
        handover = self._batches.handover
        assert handover is not None
        if shipment is not None:
            files, store = files_of(shipment.records), self._settings.storage.url
        else:
            files, store = await files_to_hand_over(batch, self._store), batch.manifest.store
        try:
            is_new = await in_thread(lambda: handover.hand_over(batch.batch_id, store, files))
        except TablesBehind:
            self._block[Uploader.HELD_BACK] = 1
            raise
        self._block[Uploader.HELD_BACK] = 0
        self._block[Uploader.HANDED_OVER] += is_new

    def _make_space(self) -> None:
        if self._pool is not None:
            with contextlib.suppress(OSError):
                self._pool.give_back()
