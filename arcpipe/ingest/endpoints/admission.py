"""Admission: whether the worker takes writes at all, by free space and backlog."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from arcpipe.clock import monotonic_us
from arcpipe.counters import FIGURES_SECONDS, Node, figures_hold_seconds
from arcpipe.ingest.http import responses
from arcpipe.units import MB

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings


class Admission:
    """Refuses all writes while the disk is nearly full, or the backlog too large.

    The supervisor measures both and shares the figures, so a look costs three reads of memory. Writes are refused, too,
    while it cannot measure, or has not measured for some seconds. `tick` finds that out.
    """

    def __init__(self, settings: Settings, node: memoryview, now_us: Callable[[], int] = monotonic_us) -> None:
        """Judge by the settings and the figures of the supervisor.

        Args:
            now_us: the monotonic clock, by which the supervisor notes when it measured.
        """
        self._node = node
        self._now_us = now_us
        self._max_backlog = settings.wal.max_backlog_mb * MB
        self._min_free = settings.wal.min_free_mb * MB
        self._unlisted = responses.error(
            503,
            "log_failure",
            "the WAL directory cannot be looked at, so nobody knows its backlog and space; nothing was written",
            b"Retry-After: 5\r\n",
        )
        self._stale = responses.error(
            503,
            "log_failure",
            f"backlog and disk were not measured for {FIGURES_SECONDS:g} s (the supervisor hangs); nothing was written",
            b"Retry-After: 5\r\n",
        )
        self._untrusted: bytes | None = None  # the answer while the figures cannot be trusted
        self._was_stale = False  # at the last tick
        self._no_space = responses.error(
            507,
            "no_space",
            f"less than wal.min_free_mb = {settings.wal.min_free_mb} MB is free on the WAL's disk; nothing was written",
            b"Retry-After: 10\r\n",
        )
        self._backlog = responses.error(
            503,
            "backlog",
            f"more than wal.max_backlog_mb = {settings.wal.max_backlog_mb} MB wait to be uploaded; nothing was written",
            b"Retry-After: 10\r\n",
        )

    def tick(self) -> None:
        """Judge whether the figures can be trusted. Call it a few times a second."""
        node = self._node
        measured = node[Node.MEASURED_US]
        is_stale = measured > 0 and self._now_us() - measured > figures_hold_seconds(node) * 1e6
        self._untrusted = None
        if node[Node.UNLISTED]:
            self._untrusted = self._unlisted
        elif is_stale and self._was_stale:  # not the first time: the whole machine may have stood still
            self._untrusted = self._stale
        self._was_stale = is_stale

    def refusal(self) -> bytes | None:
        """Return the answer to give instead of writing; None if writes are taken."""
        if self._untrusted is not None:
            return self._untrusted
        if self._node[Node.DISK_FREE_BYTES] < self._min_free:
            return self._no_space
        if self._node[Node.BACKLOG_BYTES] > self._max_backlog:
            return self._backlog
        return None
