"""The objects of one try on their way to the store: threads hand them over, the event loop puts them.

Before an object is put, its key is durable in the batch's journal. Conversion waits while enough finished files wait
for their upload. Where the store is faster so, small files share a put.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from arcpipe.counters import UPLOAD_BOUNDS_US, Uploader, observe
from arcpipe.errors import UnreadableBlob
from arcpipe.storage import Blob
from arcpipe.units import KB, MB
from arcpipe.upload.context import Context
from arcpipe.upload.journal import KeyRecord
from arcpipe.upload.journal_writer import JournalWriter

_SMALL_FILE: Final = 256 * KB  # bytes below which a finished file shares a put, if the store is faster so
_PUT_BYTES: Final = MB  # bytes of files that share a put

# Reads of finished files that may fail before the try is given up: those files may be on a bad part of the disk.
_BLOB_TRIES: Final = 3

# More than there are threads that hand over files: `uploader.threads` is at most 256.
_ALL_THREADS: Final = 1_024


class Abandoned(Exception):
    """The try was given up while it was under way."""


class Put(NamedTuple):
    """An object for the store."""

    key: KeyRecord
    blob: Blob
    release: Callable[[], None] | None = None  # gives its memory back once it is put


class Puts:
    """Put the objects of one try. `records` are those of the objects that were started, by key."""

    def __init__(self, context: Context, journal: JournalWriter, waiting_files: int) -> None:
        """Begin with nothing to put. Call it in the event loop.

        Args:
            waiting_files: puts that may wait for a slot or run: they hold memory, so conversion waits for the others.
        """
        self.records: dict[str, KeyRecord] = {}
        self._context = context
        self._journal = journal
        self._slots = context.slots
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(waiting_files)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None  # of the first put that failed
        self._is_abandoned = False
        self._unreadable = 0  # reads of finished files that failed
        self._small: list[Put] = []  # files that wait for others to share a put
        self._small_bytes = 0
        self._small_lock = threading.Lock()

    # In a thread

    def add_file(self, put: Put) -> None:
        """Hand over a finished file, at once or with other small ones. Blocks while enough files wait."""
        at_once = self._context.store.objects_at_once
        if at_once == 1 or put.blob.size >= _SMALL_FILE:
            self.add([put])
            return
        with self._small_lock:
            self._small.append(put)
            self._small_bytes += put.blob.size
            if len(self._small) < at_once and self._small_bytes < _PUT_BYTES:
                return
            puts = self._take_small()
        self.add(puts)

    def add_small_files(self) -> None:
        """Hand over the small files that wait for others."""
        self.add(self._take_small())

    def _take_small(self) -> list[Put]:
        puts, self._small, self._small_bytes = self._small, [], 0
        return puts

    def add(self, puts: list[Put]) -> None:
        """Hand over objects that share a put. Blocks while enough files wait."""
        if puts:
            self._room.acquire()
            if self._is_abandoned:
                _release(puts)
                raise Abandoned
            self._loop.call_soon_threadsafe(self._start, puts)

    # In the loop

    def abandon(self) -> None:
        """Refuse what is handed over from now on, so that no thread waits for a store that does not answer."""
        self._is_abandoned = True
        self._room.release(_ALL_THREADS)

    async def wait(self) -> None:
        """Wait until everything that was handed over is put. Raises what the first failed put raised."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._failure is not None:  # perhaps of a put that was over long ago
            raise self._failure

    async def cancel(self) -> None:
        """End what is under way: the next try puts the same objects."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def release(self) -> None:
        """Give the memory of small files back that wait for others."""
        _release(self._small)

    def _start(self, puts: list[Put]) -> None:
        self.records.update((put.key.key, put.key) for put in puts)
        durable = self._journal.add([put.key for put in puts])
        task = self._loop.create_task(self._put(puts, durable))
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    async def _put(self, puts: list[Put], durable: asyncio.Future[None]) -> None:
        context = self._context
        objects = [(put.key.key, put.blob) for put in puts]
        what = f"uploading {objects[0][0]}" + (f" and {len(puts) - 1} others" if len(puts) > 1 else "")
        try:
            await asyncio.shield(durable)
            async with self._slots:
                started = time.perf_counter()
                problem = await context.retry.persist(what, lambda: self._put_all(objects))
                if problem is not None:
                    raise problem
                duration_us = int((time.perf_counter() - started) * 1e6)
        finally:
            self._room.release()
            _release(puts)
        for _, blob in objects:
            observe(context.block, Uploader.UPLOAD_US, UPLOAD_BOUNDS_US, duration_us)
            context.block[Uploader.FILES] += 1
            context.block[Uploader.FILE_BYTES] += blob.size

    async def _put_all(self, objects: Sequence[tuple[str, Blob]]) -> UnreadableBlob | None:
        """Put objects. Returns an error that another try would meet again: the next try of the batch has new bytes."""
        try:
            await self._context.store.put_all(objects)
        except UnreadableBlob as error:
            self._unreadable += 1
            if self._unreadable < _BLOB_TRIES:
                raise
            return error
        return None


def _release(puts: list[Put]) -> None:
    for put in puts:
        if put.release is not None:
            put.release()
