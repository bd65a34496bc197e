"""Fetch the files of a merge from the store, some of them ahead of the thread that reads them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from arcpipe.compaction.plan import Input
from arcpipe.lake.folders import Folder
from arcpipe.lake.input_file import InputFile, Odd
from arcpipe.lake.spool import Spool, SpoolMemory
from arcpipe.storage import LakeStore
from arcpipe.units import MB

_READ_BYTES: Final = 8 * MB  # of one request
_AHEAD: Final = 8  # inputs that are downloaded at once
_AHEAD_BYTES: Final = 32 * MB  # of them together, or a single one


class Downloads:
    """Fetches files for a thread that reads them one after the other, some of them ahead."""

    def __init__(self, store: LakeStore, loop: asyncio.AbstractEventLoop, spool: str, folder: Folder) -> None:
        self._store = store
        self._loop = loop
        self._memory = SpoolMemory(spool, 48 * MB, 16 * MB)
        self._folder = folder

    def open(self, inputs: list[Input]) -> Iterator[AbstractContextManager[InputFile]]:
        """Yield the files, in their order. Not for the thread of the loop."""
        waiting = deque(inputs)
        running: deque[tuple[Input, Future[Spool]]] = deque()
        try:
            while waiting or running:
                while waiting and self._has_room(running, waiting[0]):
                    one = waiting.popleft()
                    running.append((one, asyncio.run_coroutine_threadsafe(self._fetch(one), self._loop)))
                one, future = running[0]
                spool = future.result()
                running.popleft()
                yield self._opened(one, spool)
        finally:
            for _, future in running:
                future.cancel()
                future.add_done_callback(_close_result)

    @staticmethod
    def _has_room(running: deque[tuple[Input, Future[Spool]]], one: Input) -> bool:
        if not running:
            return True
        return len(running) < _AHEAD and sum(other.size for other, _ in running) + one.size <= _AHEAD_BYTES

    @contextmanager
    def _opened(self, one: Input, spool: Spool) -> Iterator[InputFile]:
        try:
            file = InputFile(one.key, spool, self._folder)
            try:
                yield file
            finally:
                file.close()
        finally:
            spool.close()

    async def _fetch(self, one: Input) -> Spool:
        """Download a file.

        Raises:
            Odd: it is not as long as it was when it was listed.
        """
        spool = Spool(self._memory)
        try:
            while spool.size < one.size and (data := await self._store.read(one.key, spool.size, _READ_BYTES)):
                await asyncio.to_thread(spool.write, data)
            if spool.size != one.size:
                raise Odd(one.key, f"it has {spool.size} bytes, and had {one.size} when it was listed")
            spool.flush()
        except BaseException:
            spool.close()
            raise
        return spool


def _close_result(future: Future[Spool]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
