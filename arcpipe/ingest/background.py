"""What would hold up a worker's loop: large bodies, decoded or encoded on threads of their own.

A loop that stands still answers nobody and gives no sign of life. So whatever may take long is done apart, one piece at
a time, in the order of arrival; nobody but the senders of such bodies waits for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class _Piece(NamedTuple):
    size_bytes: int
    work: Callable[[], None]
    done: Callable[[Exception | None], None]


class Background:
    """Work that waits for its thread. `held_bytes` is the size of what waits or is being worked on."""

    def __init__(self, name: str, may_start: Callable[[], bool], on_change: Callable[[], None]) -> None:
        """
        Args:
            may_start: whether the worker has room for what comes out of another piece at the moment.
            on_change: called in the loop when `held_bytes` has changed.
        """
        self.held_bytes = 0
        self._may_start = may_start
        self._on_change = on_change
        self._waiting: deque[_Piece] = deque()
        self._running = False
        self._thread = ThreadPoolExecutor(1, name)

    def add(self, size_bytes: int, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Has `work` done on the thread; `done` is called in the loop with what it raised, if anything."""
        self.held_bytes += size_bytes
        self._waiting.append(_Piece(size_bytes, work, done))
        self.proceed()
        self._on_change()

    def proceed(self) -> None:
        """Starts with the next piece if there is one and it may be. To be called when bytes have left the worker."""
        if self._running or not self._waiting or not self._may_start():
            return
        self._running = True
        piece = self._waiting.popleft()

        def finished(future: asyncio.Future[None]) -> None:
            self._running = False
            self.held_bytes -= piece.size_bytes
            error = future.exception()
            assert error is None or isinstance(error, Exception)
            try:
                piece.done(error)
            finally:
                self.proceed()
                self._on_change()

        asyncio.get_running_loop().run_in_executor(self._thread, piece.work).add_done_callback(finished)
