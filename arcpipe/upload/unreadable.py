"""Sealed segments that cannot be read, and of which nothing was put: they are set aside while others go on."""

from __future__ import annotations

import functools
import logging

from arcpipe import logs
from arcpipe.counters import Uploader
from arcpipe.errors import ArcpipeError
from arcpipe.upload import segments
from arcpipe.upload.retry import Backoff, Retry
from arcpipe.upload.segments import UnreadableSegment
from arcpipe.upload.threads import in_thread
from arcpipe.wal import findings
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import LOST_SEGMENTS, Finding

log = logging.getLogger(__name__)


class UnreadableSegments:
    """The segments that are set aside, and the time of the next try of each."""

    def __init__(self, directory: WALDirectory, block: memoryview, retry: Retry) -> None:
        self._directory = directory
        self._block = block
        self._retry = retry
        self._backoffs: dict[str, Backoff] = {}

    def __len__(self) -> int:
        return len(self._backoffs)

    @property
    def names(self) -> set[str]:
        """The file names of these segments."""
        return set(self._backoffs)

    def add(self, error: UnreadableSegment) -> None:
        """Set a segment aside."""
        backoff = self._backoffs.setdefault(error.name, Backoff(self._retry))
        backoff.note("it is set aside while others go on", error)

    async def probe(self) -> bool:
        """Read the segments that are due. Those that can be read, or are gone, are no longer set aside.

        Returns:
            True if there were such.
        """
        before = len(self._backoffs)
        for name, backoff in list(self._backoffs.items()):
            if backoff.is_due and await self._is_over(name, backoff):
                del self._backoffs[name]
        return len(self._backoffs) < before

    async def _is_over(self, name: str, backoff: Backoff) -> bool:
        self._block[Uploader.STEPS] += 1
        try:
            gone = segments.missing(self._directory, [name], {})
            await in_thread(functools.partial(segments.probe, self._directory, name))
        except (UnreadableSegment, OSError) as error:
            backoff.note("it is set aside while others go on", error)
            return False
        if gone:
            lost = Finding(LOST_SEGMENTS, name.partition(".")[0], 1, "it could not be read, and is gone")
            try:
                await in_thread(functools.partial(findings.note, self._directory, [lost]))
            except (OSError, ArcpipeError) as error:
                backoff.note("noting that it is gone", error)
                return False
            self._block[Uploader.LOST_SEGMENTS] += 1
            log.error("segment %s, which could not be read, is gone: what was in it is lost", name, extra=logs.EACH)
        return True
