"""Append records to a batch's journal from the event loop: those that wait share one append and one sync."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable

from arcpipe.upload.journal import Journal, Record, SegmentRecord
from arcpipe.upload.retry import Retry
from arcpipe.upload.threads import in_thread


class JournalWriter:
    """Append records to a journal, in a thread. For the event loop."""

    def __init__(
        self,
        journal: Journal,
        retry: Retry,
        progress: Callable[[], Iterable[SegmentRecord]],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with nothing to append.

        Args:
            progress: tells how far the segments have been read.
            before: called in the thread before each append, to make durable what the records depend on.
        """
        self._before = before
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
            # The progress goes first: the rows of a finished file were read before it was finished.
            append = functools.partial(self._append, [*self._progress(), *records])
            try:
                await self._retry.persist(f"noting {self._journal.path}", functools.partial(in_thread, append))
            except BaseException:  # nobody may wait for what is not appended any more
                durable.cancel()
                self._durable.cancel()
                raise
            if not durable.done():
                durable.set_result(None)
        self._task = None

    def _append(self, records: list[Record]) -> None:
        self._before()
        self._journal.append(records)

    async def flush(self) -> None:
        """Wait until everything is durable."""
        while self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Drop the records that wait, once no thread appends any more."""
        self._waiting = []
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._durable.cancel()
