"""Files ready to be written: the free pool of retired segments, and the thread that works ahead of the writer."""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from arcpipe.wal.directory import ACTIVE, WALDirectory

if TYPE_CHECKING:
    from arcpipe.wal.segment import Segment

log = logging.getLogger(__name__)

_FREE_NAME = re.compile(r"(\d{20})-.+\.wal\Z")
_RETRY_SECONDS = 1.0


class FreePool:
    """Retired segments below `free/`, named by the last timestamp that they ever held.

    Processes share it without a lock: taking a file is a rename, and only one of two renames finds it.
    """

    def __init__(self, directory: WALDirectory, limit: int) -> None:
        self._directory = directory
        self._limit = limit

    def take(self, slot: int, below_us: int) -> str | None:
        """A file for `slot` to write over whose last timestamp (µs) lies below that, or None.

        Others are too young: writing over them would mean timestamps that run ahead of the clock.
        """
        with os.scandir(self._directory.free) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            match = _FREE_NAME.match(name)
            if match is None:
                continue
            if int(match[1]) >= below_us:  # and so are all that follow
                return None
            claimed = os.path.join(self._directory.free, f"claimed-{slot}-{name}")
            try:
                self._directory.disk.rename(os.path.join(self._directory.free, name), claimed)
            except FileNotFoundError:  # another worker was quicker
                continue
            return claimed
        return None

    def put(self, path: str, last_timestamp_us: int) -> bool:
        """Moves a shipped segment into the pool; False if there is no place for it."""
        with os.scandir(self._directory.free) as entries:
            held = sum(1 for _ in entries)
        if held >= self._limit:
            return False
        stem = os.path.basename(path).split(".")[0]
        target = os.path.join(self._directory.free, f"{last_timestamp_us:020d}-{stem}{ACTIVE}")
        self._directory.disk.rename(path, target)
        return True

    def give_back(self) -> None:
        """Removes the files that nobody has taken yet: their space is needed more."""
        with os.scandir(self._directory.free) as entries:
            names = [entry.name for entry in entries if _FREE_NAME.match(entry.name)]
        for name in names:
            self._directory.disk.unlink(os.path.join(self._directory.free, name))

    def clear(self, slot: int | None = None) -> None:
        """Empties the pool; with a slot, only what a worker of that slot left half-made."""
        with os.scandir(self._directory.free) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if slot is None or name.startswith((f"claimed-{slot}-", f"new-{slot}-")):
                self._directory.disk.unlink(os.path.join(self._directory.free, name))


class Pipeline:
    """Works ahead of and behind one writer: the next segment is ready before it is needed, and a full one is
    sealed after it was left, so that neither stalls a commit."""

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
        """The next segment; waits if it is still being made.

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
        self.check()
        segment = self._ready.get()
        self._jobs.put("make")
        return segment

    def check(self) -> None:
        """Raises what ended the thread, if anything but `close` did: a bug must not look like a slow disk."""
        if self._crash is not None:
            raise self._crash

    @property
    def unsealed(self) -> int:
        """Segments that were left and still have to get their final name."""
        return self._handed_over - self._completed

    def complete(self, segment: Segment) -> None:
        """Hands over a segment to be sealed in the background, as often as it takes."""
        self._handed_over += 1
        self._jobs.put(segment)

    def close(self) -> None:
        """Seals what was handed over (one try each), discards what was made ready, ends the thread."""
        self._jobs.put("stop")
        self._thread.join()
        while not self._ready.empty():
            segment = self._ready.get()
            if isinstance(segment, BaseException):
                continue
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
