"""Retry all that fails, with exponential backoff and full jitter, until it succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from arcpipe.clock import steady_us
from arcpipe.counters import RETRY_KINDS, Uploader
from arcpipe.errors import ArcpipeError, StorageError, UnknownVersion, is_full, lacks_room

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds: the mean of the first wait, the longest wait, and the longest one while draining, when time is short.
_FIRST_SECONDS: Final = 0.2
_LIMIT_SECONDS: Final = 30.0
_DRAINING_LIMIT_SECONDS: Final = 1.0


class Retry:
    """Retry work until it succeeds, for one uploader."""

    def __init__(
        self,
        block: memoryview,
        make_space: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        """Make ready.

        Args:
            block: the uploader's counters.
            make_space: called when the disk is full.
            sleep: waits the seconds between two tries; by default not longer than until draining begins.
        """
        self.draining = asyncio.Event()
        self._block = block
        self._make_space = make_space
        self._sleep = sleep or self._sleep_or_drain

    async def persist(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do work until it succeeds, with a log line for each failure. `what` names it there."""
        tries = 0
        while True:
            self._block[Uploader.STEPS] += 1
            try:
                result = await work()
            except Exception as error:  # any kind: giving up would lose the batch
                tries += 1
                await self.pause(self.note(what, error, tries))
            else:
                self._block[Uploader.STOPPED] = 0
                return result

    def note(self, what: str, error: Exception, tries: int) -> float:
        """Count and log a failure. Returns the seconds to wait before the retry."""
        kind = kind_of(error)
        if is_full(error) or (error.__cause__ is not None and is_full(error.__cause__)):
            # The uploads, which free the disk, need the last bytes; a local store may be on the same one.
            self._make_space()
        if isinstance(error, UnknownVersion):
            self._block[Uploader.STOPPED] = 1
        if kind == "credentials":
            self._block[Uploader.DENIED_US] = steady_us()
        self._block[Uploader.RETRIES + RETRY_KINDS.index(kind)] += 1
        delay = self.delay(tries)
        log.warning(
            "%s: %s; trying again in %.1f s",
            what,
            error,
            delay,
            exc_info=kind == "bug",
            extra={"fields": {"kind": kind, "tries": tries}},
        )
        return delay

    def delay(self, tries: int) -> float:
        """Choose the seconds to wait after this number of failures."""
        longest = _DRAINING_LIMIT_SECONDS if self.draining.is_set() else _LIMIT_SECONDS
        return random.uniform(_FIRST_SECONDS / 2, min(_FIRST_SECONDS * 2.0 ** min(tries, 16), longest))

    async def pause(self, seconds: float) -> None:
        """Wait, but at most until draining begins: time is short then. A wait that begins later is not cut."""
        await self._sleep(seconds)

    async def _sleep_or_drain(self, seconds: float) -> None:
        if self.draining.is_set():
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.draining.wait(), seconds)


class Backoff:
    """The time of the next try of a batch or segment that was set aside while others go on."""

    def __init__(self, retry: Retry, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry = retry
        self._clock = clock
        self._tries = 0
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        return self._clock() >= self._due

    def note(self, what: str, error: Exception) -> None:
        """Count and log a failure, and wait longer."""
        self._tries += 1
        self._due = self._clock() + self._retry.note(what, error, self._tries)


def kind_of(error: Exception) -> str:
    """Return the word of RETRY_KINDS for a failure."""
    if isinstance(error, StorageError):
        return error.kind if error.kind in RETRY_KINDS else "other"
    if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        return "disk"
    return "other" if isinstance(error, ArcpipeError) or lacks_room(error) else "bug"
