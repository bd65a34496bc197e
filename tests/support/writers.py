"""Threads that write until they are told to stop, each request with a number of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Self

from tests.support.waiting import WAIT_SECONDS


class Writers:
    """The base of a load. Entering the block starts the threads, leaving it stops them."""

    def __init__(self, runs: Iterable[Callable[[], None]]) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next_request = 0
        self._threads = [threading.Thread(target=run, daemon=True) for run in runs]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Wait for the answers to the last requests, and for the end of the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()

    def _next_number(self) -> int:
        with self._lock:
            self._next_request += 1
            return self._next_request - 1
