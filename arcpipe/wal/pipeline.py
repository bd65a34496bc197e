"""The thread that makes a writer's next segment and seals the ones that it has left. Commits wait for neither."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from arcpipe.wal.segment import Segment

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0  # between tries to seal, so that a full disk is not written to without pause


class Pipeline:
    """Makes the next segment before the writer needs it, and seals full ones after the writer has left them.

    At any time one segment is ready, or being made, or asked for: never two.
    """

    def __init__(self, make: Callable[[], Segment], seal: Callable[[Segment], None]) -> None:
        self._make = make
        self._seal = seal
        self._jobs: queue.SimpleQueue[Segment | str] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Segment | BaseException] = queue.SimpleQueue()
        self._crash: BaseException | None = None
        self._seal_errors: dict[Segment, str] = {}  # the last one logged of each segment that waits to be sealed
        self._handed_over = 0  # written by the writer's thread only
        self._sealed = 0  # written by this thread only
        self._thread = threading.Thread(target=self._run, name="segments", daemon=True)
        self._thread.start()
        self._jobs.put("make")

    def take(self) -> Segment:
        """Take the next segment; wait if it is still being made.

        Raises:
            OSError: it could not be made; the next call tries again.
        """
        segment = self._next()
        if isinstance(segment, OSError):
            # This error may be long past; only a new try tells if a segment can be made now.
            segment = self._next()
        if isinstance(segment, BaseException):
            raise segment
        return segment

    def _next(self) -> Segment | BaseException:
        segment = self._take_ready()
        self._jobs.put("make")
        return segment

    def _take_ready(self) -> Segment | BaseException:
        self.check()
        return self._ready.get()

    def make_instead(self, make: Callable[[], Segment]) -> Segment:
        """Make a segment on the calling thread, and discard the ready one: segments must sort in writing order.

        Raises:
            OSError: it could not be made. Nothing is ready then, and the next call makes a segment at once.
        """
        ready = self._take_ready()
        try:
            if isinstance(ready, Segment):
                self.discard(ready)
            elif not isinstance(ready, OSError):
                raise ready
            segment = make()
        except OSError as error:
            self._ready.put(error)
            raise
        self._jobs.put("make")
        return segment

    def check(self) -> None:
        """Raise the exception that ended the thread, if any: a bug must not look like a slow disk."""
        if self._crash is not None:
            raise self._crash

    @property
    def unsealed(self) -> int:
        """Count the segments that were handed over and are not sealed yet."""
        return self._handed_over - self._sealed

    def seal_later(self, segment: Segment) -> None:
        """Have a segment sealed in the background; this is tried until it succeeds."""
        self._handed_over += 1
        self._jobs.put(segment)

    def close(self) -> None:
        """Seal the segments that were handed over (one try each), discard the ready one, and end the thread."""
        self._jobs.put("stop")
        self._thread.join()
        while not self._ready.empty():
            segment = self._ready.get()
            if isinstance(segment, Segment):
                self.discard(segment)

    def discard(self, segment: Segment) -> None:
        """Remove a segment that holds no entry. If that fails, the next start removes it."""
        try:
            segment.discard()
        except OSError as error:
            log.warning("cannot remove the unused segment %s: %s", segment.path, error)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._crash = error
            self._ready.put(error)

    def _work(self) -> None:
        waiting: list[Segment] = []
        retry_at = 0.0  # monotonic seconds
        while True:
            seconds = max(0.0, retry_at - time.monotonic())
            try:
                job = self._jobs.get(timeout=seconds if waiting else None)
            except queue.Empty:
                job = "retry"
            if job == "make":
                try:
                    self._ready.put(self._make())
                except OSError as error:
                    self._ready.put(error)
            elif not isinstance(job, str) and not self._try_seal(job):
                if not waiting:
                    retry_at = time.monotonic() + _RETRY_SECONDS
                waiting.append(job)
            if waiting and (job == "stop" or time.monotonic() >= retry_at):
                waiting = [segment for segment in waiting if not self._try_seal(segment)]
                retry_at = time.monotonic() + _RETRY_SECONDS
            if job == "stop":
                return

    def _try_seal(self, segment: Segment) -> bool:
        try:
            self._seal(segment)
        except OSError as error:
            if str(error) != self._seal_errors.get(segment):  # log each error once, however often it repeats
                self._seal_errors[segment] = str(error)
                log.error(
                    "cannot seal segment %s: %s; its data is safe, trying again every %g s",
                    segment.path,
                    error,
                    _RETRY_SECONDS,
                )
            return False
        self._seal_errors.pop(segment, None)
        self._sealed += 1
        return True
