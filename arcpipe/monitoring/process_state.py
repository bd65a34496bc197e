"""The state of each worker and of the uploader at one moment, from their counters."""

from __future__ import annotations

import os
from functools import cache
from typing import Final

from msgspec import Struct

from arcpipe.counters import (
    GROUP_BOUNDS,
    LATENCY_BOUNDS_US,
    LIMITED_BY,
    LIMITS,
    REFUSAL_CODES,
    RETRY_KINDS,
    UPLOAD_BOUNDS_US,
    Compaction,
    Counters,
    Uploader,
    Worker,
)
from arcpipe.wal.directory import ACTIVE, SegmentName

_MICRO: Final = 1_000_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# A process whose last heartbeat is older hangs, or is gone.
_SILENT_SECONDS: Final = 5.0
COMPACTION_SILENT_SECONDS: Final = 60.0
"""The same for compaction: a step over a wide table may hold its interpreter for some seconds. Nobody waits for it."""


class Distribution(Struct, frozen=True):
    """A histogram. `counts` has one more element than `bounds`, for values above all bounds."""

    bounds: list[float]
    counts: list[int]
    sum: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Estimate a quantile as Prometheus' histogram_quantile does: linearly within a bucket.

        Args:
            share: of the values that lie below the result.

        Returns:
            None without values; infinity above all bounds.
        """
        rank = share * self.count
        if not rank:
            return None
        below = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if rank <= count:
                return below + (bound - below) * rank / count
            rank -= count
            below = bound
        return float("inf")

    def __add__(self, other: Distribution) -> Distribution:
        counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        return Distribution(self.bounds, counts, self.sum + other.sum)

    def __sub__(self, earlier: Distribution) -> Distribution:
        """Return the counts since an earlier reading."""
        counts = [mine - theirs for mine, theirs in zip(self.counts, earlier.counts, strict=True)]
        return Distribution(self.bounds, counts, self.sum - earlier.sum)


class WorkerState(Struct, frozen=True):
    """One ingest worker. A restart of its process does not reset the counters."""

    slot: int
    pid: int
    alive: bool  # its last heartbeat is recent
    failed_starts: int  # consecutive failed starts and early deaths
    uptime_seconds: float
    heartbeat_age_seconds: float
    memory_bytes: int
    connections: int
    max_connections: int  # that it accepts; less than the setting if the limit of open files requires it
    requests: int
    writes_accepted: int
    writes_refused: int
    keyed_writes: int  # written with an idempotency key
    replayed_writes: int  # retries that were answered without being written again
    other_bodies: int  # of these: with another body than the first request
    refused: dict[str, int]  # requests of any kind, by the code of the answer
    limited: dict[str, dict[str, int]]  # requests above a limit, by token or address, then by limit
    limits_untracked: int  # searches for a free meter of a client that found none
    access_log_lines: int
    access_log_dropped: int  # lines that were never written
    records: int
    body_bytes: int
    entries: int
    entry_bytes: int
    commits: int
    syncs: int
    rotations: int
    write_failures: int
    last_failure_age_seconds: float | None
    segment: str  # file name of the active segment
    segment_bytes: int
    segment_entries: int
    segment_age_seconds: float  # since its first entry; 0 if it has none
    ack_seconds: Distribution
    sync_seconds: Distribution
    loop_lag_seconds: Distribution
    group_entries: Distribution


class UploaderState(Struct, frozen=True):
    """The uploader. A restart of its process does not reset the counters."""

    pid: int
    alive: bool
    failed_starts: int  # consecutive failed starts and early deaths
    uptime_seconds: float
    heartbeat_age_seconds: float
    memory_bytes: int
    batches: int
    segments: int
    entries: int
    rows: int
    files: int
    file_bytes: int
    rescued: int
    dead_letters: int
    damaged: int
    lost_segments: int  # vanished, or lost entries, after a batch had included them
    unreadable_segments: int  # sealed ones that cannot be read now
    damaged_manifests: int  # kept aside now
    stopped: bool  # by a manifest or registry of an unknown version
    repeated: int  # entries that were dropped, because an earlier one has their idempotency key
    other_bodies: int  # of these: with another body than the first one
    keys: int  # idempotency keys that are known
    keys_expired: int
    keys_cut: int  # of these: before idempotency.window_seconds was over, because of idempotency.max_keys
    unreadable_key_files: int
    batched_segments: int  # in batches that are under way
    batched_bytes: int
    planned_age_seconds: float | None  # since the last batch was planned
    last_upload_age_seconds: float | None
    denied_age_seconds: float | None  # since the store last refused the credentials
    retries: dict[str, int]
    upload_seconds: Distribution


class CompactionState(Struct, frozen=True):
    """The compaction process. A restart of it does not reset the counters."""

    pid: int
    alive: bool
    failed_starts: int  # consecutive failed starts and early deaths
    restarts: int
    heartbeat_age_seconds: float
    memory_bytes: int
    looks: int  # through the whole lake
    last_look_age_seconds: float | None
    merges: int
    files_in: int
    files_out: int
    bytes_in: int
    bytes_out: int
    rows: int
    superseded: int  # rows that a later one of the same point replaced
    failures: int
    mismatches: int  # merges that wrote other rows than they had read; nothing of them became visible
    waiting_hours: int  # folders that this look has still to merge
    waiting_files: int  # files in them
    left_alone: int  # files that cannot be merged
    stopped: bool  # by a plan that waits for an operator
    expired_hours: int = 0  # hours of a measurement of which retention deleted files
    expired_files: int = 0
    expired_bytes: int = 0
    retention_from: float = 0.0  # seconds since the epoch before which retention deletes nothing; 0 if it does not wait
    failed_looks: int = 0  # consecutive ones that failed, or in which something failed


def compaction_state(counters: Counters, now: int) -> CompactionState:
    """Read the block of the compaction process; `now` is of the steady clock, in µs."""
    block = counters.compaction
    heartbeat, last = age_seconds(block[Compaction.HEARTBEAT_US], now), block[Compaction.LAST_LOOK_US]
    return CompactionState(
        pid=block[Compaction.PID],
        alive=bool(block[Compaction.PID]) and heartbeat < COMPACTION_SILENT_SECONDS,
        failed_starts=block[Compaction.FAILED_STARTS],
        restarts=block[Compaction.RESTARTS],
        heartbeat_age_seconds=heartbeat,
        memory_bytes=memory_bytes(block[Compaction.PID]),
        looks=block[Compaction.LOOKS],
        last_look_age_seconds=age_if_any(last, now),
        merges=block[Compaction.MERGES],
        files_in=block[Compaction.FILES_IN],
        files_out=block[Compaction.FILES_OUT],
        bytes_in=block[Compaction.BYTES_IN],
        bytes_out=block[Compaction.BYTES_OUT],
        rows=block[Compaction.ROWS],
        superseded=block[Compaction.SUPERSEDED],
        failures=block[Compaction.FAILURES],
        mismatches=block[Compaction.MISMATCHES],
        waiting_hours=block[Compaction.WAITING_FOLDERS],
        waiting_files=block[Compaction.WAITING_FILES],
        left_alone=block[Compaction.LEFT_ALONE],
        stopped=bool(block[Compaction.STOPPED]),
        expired_hours=block[Compaction.EXPIRED_HOURS],
        expired_files=block[Compaction.EXPIRED_FILES],
        expired_bytes=block[Compaction.EXPIRED_BYTES],
        retention_from=float(block[Compaction.RETENTION_FROM]),
        failed_looks=block[Compaction.FAILED_LOOKS],
    )


def worker_state(counters: Counters, slot: int, now: int) -> WorkerState:
    """Read the block of a worker; `now` is of the steady clock, in µs."""
    block = counters.worker(slot)
    first, failure = block[Worker.SEGMENT_FIRST_US], block[Worker.LAST_FAILURE_US]
    heartbeat = age_seconds(block[Worker.HEARTBEAT_US], now)
    created, seq = block[Worker.SEGMENT_CREATED_US], block[Worker.SEGMENT_SEQ]
    return WorkerState(
        slot=slot,
        pid=block[Worker.PID],
        alive=bool(block[Worker.PID]) and heartbeat < _SILENT_SECONDS,
        failed_starts=counters.failed_starts[slot],
        uptime_seconds=age_seconds(block[Worker.STARTED_US], now),
        heartbeat_age_seconds=heartbeat,
        memory_bytes=memory_bytes(block[Worker.PID]),
        connections=block[Worker.CONNECTIONS],
        max_connections=block[Worker.MAX_CONNECTIONS],
        requests=block[Worker.REQUESTS],
        writes_accepted=block[Worker.WRITES_ACCEPTED],
        writes_refused=block[Worker.WRITES_REFUSED],
        keyed_writes=block[Worker.KEYED_WRITES],
        replayed_writes=block[Worker.REPLAYED_WRITES],
        other_bodies=block[Worker.OTHER_BODIES],
        refused=dict(zip(REFUSAL_CODES, block[Worker.REFUSED :], strict=False)),
        limited={
            by: dict(zip(LIMITS, block[Worker.LIMITED + number * len(LIMITS) :], strict=False))
            for number, by in enumerate(LIMITED_BY)
        },
        limits_untracked=block[Worker.LIMITS_UNTRACKED],
        access_log_lines=block[Worker.ACCESS_LINES],
        access_log_dropped=block[Worker.ACCESS_LINES_DROPPED],
        records=block[Worker.RECORDS],
        body_bytes=block[Worker.BODY_BYTES],
        entries=block[Worker.WAL_ENTRIES],
        entry_bytes=block[Worker.WAL_BYTES],
        commits=block[Worker.WAL_COMMITS],
        syncs=block[Worker.WAL_SYNCS],
        rotations=block[Worker.WAL_ROTATIONS],
        write_failures=block[Worker.WAL_FAILURES],
        last_failure_age_seconds=age_if_any(failure, now),
        segment=f"{SegmentName.at(slot, created, seq)}{ACTIVE}" if seq else "",
        segment_bytes=block[Worker.SEGMENT_BYTES],
        segment_entries=block[Worker.SEGMENT_ENTRIES],
        segment_age_seconds=age_seconds(first, now) if first else 0.0,
        ack_seconds=_distribution(block, Worker.ACK_US, LATENCY_BOUNDS_US, _MICRO),
        sync_seconds=_distribution(block, Worker.SYNC_US, LATENCY_BOUNDS_US, _MICRO),
        loop_lag_seconds=_distribution(block, Worker.LOOP_LAG_US, LATENCY_BOUNDS_US, _MICRO),
        group_entries=_distribution(block, Worker.GROUP_ENTRIES, GROUP_BOUNDS, 1),
    )


def uploader_state(counters: Counters, now: int) -> UploaderState:
    """Read the block of the uploader; `now` is of the steady clock, in µs."""
    block = counters.uploader
    last, heartbeat = block[Uploader.LAST_UPLOAD_US], age_seconds(block[Uploader.HEARTBEAT_US], now)
    planned = block[Uploader.PLANNED_US]
    return UploaderState(
        pid=block[Uploader.PID],
        alive=bool(block[Uploader.PID]) and heartbeat < _SILENT_SECONDS,
        failed_starts=counters.failed_starts[0],
        uptime_seconds=age_seconds(block[Uploader.STARTED_US], now),
        heartbeat_age_seconds=heartbeat,
        memory_bytes=memory_bytes(block[Uploader.PID]),
        batches=block[Uploader.BATCHES],
        segments=block[Uploader.SEGMENTS],
        entries=block[Uploader.ENTRIES],
        rows=block[Uploader.ROWS],
        files=block[Uploader.FILES],
        file_bytes=block[Uploader.FILE_BYTES],
        rescued=block[Uploader.RESCUED],
        dead_letters=block[Uploader.DEAD_LETTERS],
        damaged=block[Uploader.DAMAGED],
        lost_segments=block[Uploader.LOST_SEGMENTS],
        unreadable_segments=block[Uploader.UNREADABLE_SEGMENTS],
        damaged_manifests=block[Uploader.DAMAGED_MANIFESTS],
        stopped=bool(block[Uploader.STOPPED]),
        repeated=block[Uploader.REPEATED],
        other_bodies=block[Uploader.OTHER_BODIES],
        keys=block[Uploader.KEYS],
        keys_expired=block[Uploader.KEYS_EXPIRED],
        keys_cut=block[Uploader.KEYS_CUT],
        unreadable_key_files=block[Uploader.UNREADABLE_KEY_FILES],
        batched_segments=block[Uploader.BATCHED_SEGMENTS],
        batched_bytes=block[Uploader.BATCHED_BYTES],
        planned_age_seconds=age_if_any(planned, now),
        last_upload_age_seconds=age_if_any(last, now),
        denied_age_seconds=age_if_any(block[Uploader.DENIED_US], now),
        retries={kind: block[Uploader.RETRIES + number] for number, kind in enumerate(RETRY_KINDS)},
        upload_seconds=_distribution(block, Uploader.UPLOAD_US, UPLOAD_BOUNDS_US, _MICRO),
    )


def _distribution(block: memoryview, start: int, bounds: tuple[int, ...], unit: int) -> Distribution:
    end = start + len(bounds) + 1
    return Distribution(_scaled(bounds, unit), block[start:end].tolist(), block[end] / unit)


@cache
def _scaled(bounds: tuple[int, ...], unit: int) -> list[float]:
    return [bound / unit for bound in bounds]


def age_seconds(since: int, now: int) -> float:
    """Return the seconds between two times of the steady clock, in µs; 0 if `since` is 0."""
    return max(0, now - since) / _MICRO if since else 0.0


def age_if_any(since: int, now: int) -> float | None:
    """Return the same; None if `since` is 0."""
    return age_seconds(since, now) if since else None


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
