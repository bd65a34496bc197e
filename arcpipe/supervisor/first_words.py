"""The first log lines of a start: what is not used, derived from the machine, or too large for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from arcpipe import native
from arcpipe.config import cores
from arcpipe.counters import Node
from arcpipe.tables.commit_file import CommitFiles

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)


def say(settings: Settings, workers: int) -> None:
    """Warn of what is not used, and log whether the kernel is, and where the number of workers comes from."""
    for warning in settings.warnings:
        log.warning("%s", warning)
    if native.REFUSAL:
        log.warning("%s", native.REFUSAL)
    elif native.KERNEL is not None:
        log.info("the native kernel is used")
    if settings.server.workers:
        return
    found = cores.available()
    if found.problem:
        log.warning("the CPU quota of the cgroup cannot be read: %s; making one worker per core", found.problem)
    log.info("%d workers: %s", workers, found.reason)


def warn_of_forgotten_tables(settings: Settings) -> None:
    """Warn if batches wait for a commit to tables that the settings do not have any more."""
    if settings.has_tables:
        return
    try:
        waiting = len(CommitFiles(settings.wal.dir).names())
    except OSError:
        return
    if waiting:
        log.warning(
            'tables.format is "none", and %d batches in %s/tables wait for their commit: no table gets them until it '
            "is set again",
            *(waiting, settings.wal.dir),
        )


def warn_of_a_small_disk(settings: Settings, node: memoryview) -> None:
    """Warn if the disk of the WAL fills up before the backlog reaches its limit.

    Args:
        node: the supervisor's block of counters, with measured backlog and disk.
    """
    wal = settings.wal
    total = node[Node.DISK_TOTAL_BYTES]
    # The present backlog counts as room, because it is part of the limit.
    room = node[Node.DISK_FREE_BYTES] + node[Node.BACKLOG_BYTES] - (wal.min_free_mb << 20)
    if total and room < wal.max_backlog_mb << 20:
        log.warning(
            "wal.max_backlog_mb = %d does not fit the disk of %s, which has room for %d MB besides wal.min_free_mb = "
            "%d: above that writes are answered 507. Lower it, free space, or move wal.dir to a larger disk",
            *(wal.max_backlog_mb, wal.dir, max(0, room) >> 20, wal.min_free_mb),
        )
