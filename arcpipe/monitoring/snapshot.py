"""One look at the whole instance: the counters of all processes and the files of the log, as plain data.

Everything that shows how arcpipe is doing (`/metrics`, `/api/wal/*`, the status page, `arcpipe status`) is made from
this and so tells the same story, whichever process looks. Only reads; knows nothing of HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from arcpipe import __version__
from arcpipe.clock import steady_us
from arcpipe.counters import (
    ANNOUNCED,
    BEGUN,
    ENDINGS,
    GROUP_BOUNDS,
    LATENCY_BOUNDS_US,
    LIMITED_BY,
    LIMITS,
    REFUSAL_CODES,
    RETRY_KINDS,
    STATUSES,
    UPLOAD_BOUNDS_US,
    Counters,
    Endings,
    Uploader,
    Usage,
    Worker,
    figures_hold_seconds,
    unpack_name,
    unpack_usage,
)
from arcpipe.counters import Node as NodeBlock
from arcpipe.monitoring import directory_look
from arcpipe.monitoring.directory_look import DirectoryLook, FileCount, Unacknowledged
from arcpipe.monitoring.process_figures import ProcessFigures, look_at
from arcpipe.wal.directory import ACTIVE, SegmentName, WALDirectory

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

_MICRO: Final = 1_000_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Distribution(Struct, frozen=True):
    """A histogram. `counts` has one more element than `bounds`: what lies above them all."""

    bounds: list[float]
    counts: list[int]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The value below which that share of the values lies, as Prometheus' histogram_quantile guesses it: linear
        within a bucket. None without values, infinity above all bounds."""
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
        """What was counted since then."""
        counts = [mine - theirs for mine, theirs in zip(self.counts, earlier.counts, strict=True)]
        return Distribution(self.bounds, counts, self.sum - earlier.sum)


class WorkerState(Struct, frozen=True):
    """One ingest worker. Counters go on over a restart of its process."""

    slot: int
    pid: int
    alive: bool  # its event loop has moved within the last seconds
    failed_starts: int  # in a row: those that failed, and lives that ended soon
    uptime_seconds: float
    heartbeat_age_seconds: float
    memory_bytes: int
    connections: int
    max_connections: int  # the most that it takes: fewer than the setting, if it may open fewer files
    requests: int
    writes_accepted: int
    writes_refused: int
    refused: dict[str, int]  # requests of any kind, by the code of the answer
    limited: dict[str, dict[str, int]]  # those above a limit: of a token or an address, and which limit
    limits_untracked: int  # looks for a place to count a client over all workers that found none
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
    segment_age_seconds: float  # since its first entry; 0 while it has none
    ack_seconds: Distribution
    sync_seconds: Distribution
    loop_lag_seconds: Distribution
    group_entries: Distribution


class UploaderState(Struct, frozen=True):
    """The uploader. Counters go on over a restart of its process."""

    pid: int
    alive: bool
    failed_starts: int  # in a row: those that failed, and lives that ended soon
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
    lost_segments: int  # of batches that were done again
    unreadable_segments: int  # completed ones that cannot be read now
    damaged_manifests: int  # that are kept aside now
    stopped: bool  # by a manifest or registry of an unknown version
    last_upload_age_seconds: float | None
    retries: dict[str, int]
    upload_seconds: Distribution


class Warning(Struct, frozen=True):
    """A line of the log."""

    time: float  # seconds since the epoch
    level: str
    process: str
    text: str


UNSHIPPED_SECONDS: Final = 300.0
"""What an upload may take, from when a segment is sealed."""


class Ending(Struct, frozen=True):
    """Something that expires. Times are seconds since the epoch."""

    name: str  # of the setting, the authority, or the token's id
    ends: float
    warn_from: float


class Snapshot(Struct, frozen=True):
    """The instance at one moment."""

    version: str
    time: float  # seconds since the epoch
    uptime_seconds: float
    draining: bool
    wal_enabled: bool
    sync_mode: str
    wal_dir: str
    max_size_bytes: int
    max_age_seconds: float
    store: str
    workers: list[WorkerState]
    uploader: UploaderState
    segments: dict[str, FileCount]  # by state: active, completed, recovered, free, quarantine; those that can be listed
    wal_dir_problem: str  # why not all of them can; empty if they can
    wal_unlisted: bool  # the supervisor cannot list it either, so that writes are refused
    unrecovered_segments: int  # of dead workers, still to be recovered; part of the backlog
    unrecovered_bytes: int
    unrecovered_first: str  # the first one's file name
    databases: dict[str, Usage]
    requests: dict[str, dict[str, int]]  # answers by route and status; route "other" for paths that lead nowhere
    backlog_bytes: int
    backlog_segments: int
    max_backlog_bytes: int
    oldest_unshipped_seconds: float  # age of the oldest record that is not in the store yet; 0 without one
    disk_free_bytes: int
    min_free_bytes: int
    disk_total_bytes: int
    worker_restarts: int
    uploader_restarts: int
    warnings: list[Warning]  # the latest, newest first
    supervisor_alive: bool = True  # it has measured within the last seconds; else writes are refused
    measured_age_seconds: float = 0.0  # since backlog and disk were measured
    wal_unlocked: bool = False  # its lock was taken away
    wal_replaced: bool = False  # wal.dir is not the directory any more that it was at the start
    unacknowledged: dict[str, Unacknowledged] = {}  # by the code of the issue: found, and acknowledged by nobody
    findings_problem: str = ""  # why that is not known; empty if it is
    processes: dict[str, ProcessFigures] = {}  # "supervisor", "uploader", "ingest 1" and so on; those that are there
    endings: dict[str, Ending] = {}  # by kind: certificate, client_ca, token; of each the one to be renewed first
    tokens: dict[str, int] = {}  # by state: active, expired, revoked; empty without auth.enabled
    unshipped_limit_seconds: float = UNSHIPPED_SECONDS  # above which the oldest record waits for too long


_LEVELS: Final = {30: "warning", 40: "error", 50: "critical"}
_WARNINGS: Final = 50
# A process whose last sign of life is older is hung, or gone.
_SILENT_SECONDS: Final = 5.0


def take(settings: Settings, counters: Counters, routes: Sequence[str], look: DirectoryLook | None = None) -> Snapshot:
    """Looks at everything once; about a millisecond.

    Args:
        routes: the paths of the router's table, in its order.
        look: what was seen of the WAL directory; by default that is looked at now, however long its disk takes.
    """
    now = steady_us()
    node = counters.node
    workers = [_worker(counters, slot, now) for slot in range(1, counters.workers + 1)]
    oldest = [node[NodeBlock.OLDEST_BACKLOG_US]]
    oldest += [counters.worker(slot)[Worker.SEGMENT_FIRST_US] for slot in range(1, counters.workers + 1)]
    waiting = [us for us in oldest if us]
    wal = settings.wal
    look = look or directory_look.look(WALDirectory(wal.dir))
    measured = node[NodeBlock.MEASURED_US]
    measured_age = (time.monotonic_ns() // 1000 - measured) / _MICRO if measured else 0.0
    return Snapshot(
        version=__version__,
        time=time.time(),
        uptime_seconds=_age(node[NodeBlock.STARTED_US], now),
        draining=node[NodeBlock.DRAINING] in (ANNOUNCED, BEGUN),
        wal_enabled=wal.enabled,
        sync_mode=wal.sync_mode if wal.enabled else "off",
        wal_dir=wal.dir,
        max_size_bytes=wal.max_size_mb << 20,
        max_age_seconds=wal.max_age_seconds,
        store=next(str(item.value) for item in settings.effective() if item.key == "storage.url"),
        workers=workers,
        uploader=_uploader(counters, now),
        segments=look.segments,
        wal_dir_problem=look.problem,
        wal_unlisted=bool(node[NodeBlock.UNLISTED]),
        unrecovered_segments=node[NodeBlock.UNRECOVERED_SEGMENTS],
        unrecovered_bytes=node[NodeBlock.UNRECOVERED_BYTES],
        unrecovered_first=unpack_name(node, NodeBlock.UNRECOVERED_NAME),
        databases=_databases(counters),
        requests=_requests(counters, routes),
        backlog_bytes=node[NodeBlock.BACKLOG_BYTES],
        backlog_segments=node[NodeBlock.BACKLOG_SEGMENTS],
        max_backlog_bytes=wal.max_backlog_mb << 20,
        oldest_unshipped_seconds=_age(min(waiting), now) if waiting else 0.0,
        disk_free_bytes=node[NodeBlock.DISK_FREE_BYTES],
        min_free_bytes=wal.min_free_mb << 20,
        disk_total_bytes=node[NodeBlock.DISK_TOTAL_BYTES],
        worker_restarts=node[NodeBlock.WORKER_RESTARTS],
        uploader_restarts=node[NodeBlock.UPLOADER_RESTARTS],
        warnings=_warnings(counters),
        supervisor_alive=measured_age <= figures_hold_seconds(node),
        measured_age_seconds=measured_age,
        wal_unlocked=bool(node[NodeBlock.UNLOCKED]),
        wal_replaced=bool(node[NodeBlock.REPLACED]),
        unacknowledged=look.unacknowledged,
        findings_problem=look.findings_problem,
        processes=_processes(counters),
        endings=_endings(counters.endings),
        tokens=dict(zip(Endings.TOKEN_STATES, counters.endings[Endings.TOKENS :], strict=True))
        if settings.auth.enabled
        else {},
        # A segment is sealed at the first of these ages.
        unshipped_limit_seconds=min(settings.flush.max_age_seconds, wal.max_age_seconds) + UNSHIPPED_SECONDS,
    )


encode = msgspec.json.Encoder().encode
"""A snapshot, or a part of one, as JSON."""


def _processes(counters: Counters) -> dict[str, ProcessFigures]:
    # No child outlives the supervisor, so whoever looks has it as its parent.
    pids = {"supervisor": os.getppid(), "uploader": counters.uploader[Uploader.PID]}
    pids |= {f"ingest {slot}": counters.worker(slot)[Worker.PID] for slot in range(1, counters.workers + 1)}
    return {name: look_at(pid) for name, pid in pids.items() if pid}


def _endings(block: memoryview) -> dict[str, Ending]:
    found = {}
    for number, kind in enumerate(ENDINGS):
        row = block[number * Endings.WORDS : (number + 1) * Endings.WORDS]
        if row[Endings.ENDS]:
            found[kind] = Ending(unpack_name(row, Endings.NAME), row[Endings.ENDS], row[Endings.WARN_FROM])
    return found


def _warnings(counters: Counters) -> list[Warning]:
    """The latest of all processes, the newest first."""
    notes = [(process, note) for process in counters.processes() for note in counters.notes(process).read()]
    notes.sort(key=lambda item: -item[1].steady_us)
    return [
        Warning(note.time_us / _MICRO, _LEVELS.get(note.level, "warning"), process, note.text)
        for process, note in notes[:_WARNINGS]
    ]


def _worker(counters: Counters, slot: int, now: int) -> WorkerState:
    block = counters.worker(slot)
    first, failure = block[Worker.SEGMENT_FIRST_US], block[Worker.LAST_FAILURE_US]
    heartbeat = _age(block[Worker.HEARTBEAT_US], now)
    created, seq = block[Worker.SEGMENT_CREATED_US], block[Worker.SEGMENT_SEQ]
    return WorkerState(
        slot=slot,
        pid=block[Worker.PID],
        alive=bool(block[Worker.PID]) and heartbeat < _SILENT_SECONDS,
        failed_starts=counters.failed_starts[slot],
        uptime_seconds=_age(block[Worker.STARTED_US], now),
        heartbeat_age_seconds=heartbeat,
        memory_bytes=_memory_bytes(block[Worker.PID]),
        connections=block[Worker.CONNECTIONS],
        max_connections=block[Worker.MAX_CONNECTIONS],
        requests=block[Worker.REQUESTS],
        writes_accepted=block[Worker.WRITES_ACCEPTED],
        writes_refused=block[Worker.WRITES_REFUSED],
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
        last_failure_age_seconds=_age(failure, now) if failure else None,
        segment=f"{SegmentName.at(slot, created, seq)}{ACTIVE}" if seq else "",
        segment_bytes=block[Worker.SEGMENT_BYTES],
        segment_entries=block[Worker.SEGMENT_ENTRIES],
        segment_age_seconds=_age(first, now) if first else 0.0,
        ack_seconds=_distribution(block, Worker.ACK_US, LATENCY_BOUNDS_US, _MICRO),
        sync_seconds=_distribution(block, Worker.SYNC_US, LATENCY_BOUNDS_US, _MICRO),
        loop_lag_seconds=_distribution(block, Worker.LOOP_LAG_US, LATENCY_BOUNDS_US, _MICRO),
        group_entries=_distribution(block, Worker.GROUP_ENTRIES, GROUP_BOUNDS, 1),
    )


def _uploader(counters: Counters, now: int) -> UploaderState:
    block = counters.uploader
    last, heartbeat = block[Uploader.LAST_UPLOAD_US], _age(block[Uploader.HEARTBEAT_US], now)
    return UploaderState(
        pid=block[Uploader.PID],
        alive=bool(block[Uploader.PID]) and heartbeat < _SILENT_SECONDS,
        failed_starts=counters.failed_starts[0],
        uptime_seconds=_age(block[Uploader.STARTED_US], now),
        heartbeat_age_seconds=heartbeat,
        memory_bytes=_memory_bytes(block[Uploader.PID]),
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
        last_upload_age_seconds=_age(last, now) if last else None,
        retries={kind: block[Uploader.RETRIES + number] for number, kind in enumerate(RETRY_KINDS)},
        upload_seconds=_distribution(block, Uploader.UPLOAD_US, UPLOAD_BOUNDS_US, _MICRO),
    )


def _databases(counters: Counters) -> dict[str, Usage]:
    """Of all workers together."""
    databases: dict[str, Usage] = {}
    for slot in range(1, counters.workers + 1):
        for name, usage in unpack_usage(counters.worker(slot)):
            before = databases.get(name, Usage(0, 0, 0))
            databases[name] = Usage(*(mine + other for mine, other in zip(before, usage, strict=True)))
    return databases


def _requests(counters: Counters, routes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of all workers together."""
    found: dict[str, dict[str, int]] = {}
    for number, route in enumerate((*routes, "other")):
        start = Worker.ROUTES + number * len(STATUSES)
        for slot in range(1, counters.workers + 1):
            counts = counters.worker(slot)[start : start + len(STATUSES)].tolist()
            for status, count in zip(STATUSES, counts, strict=True):
                if count:
                    by_status = found.setdefault(route, {})
                    name = status.decode("ascii")
                    by_status[name] = by_status.get(name, 0) + count
    return found


def _distribution(block: memoryview, start: int, bounds: tuple[int, ...], unit: int) -> Distribution:
    end = start + len(bounds) + 1
    return Distribution(_scaled(bounds, unit), block[start:end].tolist(), block[end] / unit)


@cache
def _scaled(bounds: tuple[int, ...], unit: int) -> list[float]:
    return [bound / unit for bound in bounds]


def _age(since: int, now: int) -> float:
    """Seconds between two times of the steady clock; 0 if there was none yet."""
    return max(0, now - since) / _MICRO if since else 0.0


def _memory_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
