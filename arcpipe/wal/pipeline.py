"""The thread that makes a writer's next segment and seals the ones that it left. Commits wait for neither."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from arcpipe.wal.segment import Segment

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0  # between tries to seal: a full disk is not asked more often


class Pipeline:
    """Works before and after one writer: the next segment is ready before it is needed, and a full one is sealed
    after it was left, so that neither stalls a commit.

    At any time one segment is ready, or being made, or asked for: never two.
    """

    def __init__(self, make: Callable[[], Segment], seal: Callable[[Segment], None]) -> None:
        self._make = make
        self._seal = seal
        self._jobs: queue.SimpleQueue[Segment | str] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Segment | BaseException] = queue.SimpleQueue()
        self._crash: BaseException | None = None
        self._seal_error = ""  # the last one logged
        self._handed_over = 0  # written by the writer's thread only
        self._completed = 0  # written by this thread only
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
            # Of whenever it was tried, perhaps long ago: what counts is whether it can be made now.
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
        """Make a segment here and now; the one that is ready is discarded, because names sort as they are written.

        Raises:
            OSError: it could not be made; nothing is ready then, and the next call makes it at once.
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
        """Raise what ended the thread, if anything but `close` did: a bug must not look like a slow disk."""
        if self._crash is not None:
            raise self._crash

    @property
    def unsealed(self) -> int:
        """Count the segments that were left and still have to get their final name."""
        return self._handed_over - self._completed

    def complete(self, segment: Segment) -> None:
        """Hand over a segment to be sealed in the background, as often as it takes."""
        self._handed_over += 1
        self._jobs.put(segment)

    def close(self) -> None:
        """Seal what was handed over (one try each), discard what was made ready, end the thread."""
        self._jobs.put("stop")
        self._thread.join()
        while not self._ready.empty():
            segment = self._ready.get()
            if isinstance(segment, Segment):
                self.discard(segment)

    def discard(self, segment: Segment) -> None:
        """Remove a segment that holds no entry; a file that stays is the next start's to remove."""
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
        while True:
            try:
                job = self._jobs.get(timeout=_RETRY_SECONDS if waiting else None)
            except queue.Empty:
                job = "retry"
            if job == "make":
                try:
                    self._ready.put(self._make())
                except OSError as error:
                    self._ready.put(error)
            elif not isinstance(job, str):
                waiting.append(job)
            waiting = [segment for segment in waiting if not self._try_seal(segment)]
            if job == "stop":
                return

    def _try_seal(self, segment: Segment) -> bool:
        try:
            self._seal(segment)
        except OSError as error:
            if str(error) != self._seal_error:  # once, however often it is tried
                self._seal_error = str(error)
                log.error(
                    "cannot complete segment %s: %s; its data is safe, trying again every %g s",
                    segment.path,
                    error,
                    _RETRY_SECONDS,
                )
            return False
        self._seal_error = ""
        self._completed += 1
        return True
