"""The whole instance at one moment: the counters of all processes and the files of the WAL, as plain data.

`/metrics`, `/api/wal/*`, the status page and `arcpipe status` are all made from this, so they agree, whichever process
takes the snapshot. This module only reads, and knows nothing of HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from arcpipe import __version__
from arcpipe.clock import monotonic_us, steady_us
from arcpipe.counters import (
    ANNOUNCED,
    BEGUN,
    ENDINGS,
    RELOAD_PARTS,
    STATUSES,
    Committer,
    Compaction,
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
from arcpipe.monitoring.committer_state import CommitterState, committer_state
from arcpipe.monitoring.directory_look import DirectoryLook, FileCount, Unacknowledged
from arcpipe.monitoring.process_figures import ProcessFigures, look_at
from arcpipe.monitoring.process_state import (
    CompactionState,
    UploaderState,
    age_seconds,
    compaction_state,
    uploader_state,
    worker_state,
)
from arcpipe.monitoring.process_state import WorkerState as WorkerState
from arcpipe.wal.directory import WALDirectory

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

_MICRO: Final = 1_000_000


class WarningLine(Struct, frozen=True):
    """A warning or error in the log."""

    time: float  # seconds since the epoch
    level: str
    process: str
    text: str


UNSHIPPED_SECONDS: Final = 300.0
"""Time that an upload may take after its segment is sealed."""


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
    wal_dir_problem: str  # why some cannot be listed; empty if all can
    wal_unlisted: bool  # the supervisor cannot list the directory either, so writes are refused
    unrecovered_segments: int  # of dead workers, still to be recovered; part of the backlog
    unrecovered_bytes: int
    unrecovered_first: str  # the first one's file name
    databases: dict[str, Usage]
    requests: dict[str, dict[str, int]]  # answers by route and status; route "other" for unknown paths
    backlog_bytes: int
    backlog_segments: int
    max_backlog_bytes: int
    oldest_unshipped_seconds: float  # age of the oldest record that is not in the store yet; 0 if there is none
    disk_free_bytes: int
    min_free_bytes: int
    disk_total_bytes: int
    worker_restarts: int
    uploader_restarts: int
    warnings: list[WarningLine]  # the latest, newest first
    supervisor_alive: bool = True  # its figures are recent; otherwise writes are refused
    measured_age_seconds: float = 0.0  # since backlog and disk were measured
    wal_unlocked: bool = False  # its lock was taken away
    wal_replaced: bool = False  # wal.dir is another directory than at the start
    unacknowledged: dict[str, Unacknowledged] = {}  # by the code of the issue
    findings_problem: str = ""  # why findings or their acknowledgement are unknown; empty if they are known
    processes: dict[str, ProcessFigures] = {}  # "supervisor", "uploader", "ingest 1" and so on; running ones only
    endings: dict[str, Ending] = {}  # by kind: certificate, client_ca, token; the most urgent of each
    tokens: dict[str, int] = {}  # by state: active, expired, revoked; empty without auth.enabled
    compaction: CompactionState | None = None  # with neither compaction.enabled nor retention.days
    unshipped_limit_seconds: float = UNSHIPPED_SECONDS  # at a higher age of the oldest record, uploads are behind
    waiting_bytes: int = 0  # part of the backlog: sealed segments that wait for their turn, in no batch yet
    waiting_segments: int = 0
    next_batch_seconds: float = 0.0  # until `uploader.interval_seconds` after the last batch; it may come earlier
    committer: CommitterState | None = None  # without tables
    unsealed_age_seconds: float = 0.0  # of the oldest segment that a worker has left, and that is not sealed
    reload_refused: list[str] = []  # parts that the last reload could not use: settings, tokens file, certificate


def upkeep_of(snapshot: Snapshot) -> list[tuple[str, CompactionState | CommitterState]]:
    """Return the processes that nobody waits for, by name; only those that the settings want."""
    processes = [("compaction", snapshot.compaction), ("committer", snapshot.committer)]
    return [(name, process) for name, process in processes if process is not None]


_LEVELS: Final = {30: "warning", 40: "error", 50: "critical"}  # of `logging`
_WARNINGS: Final = 50  # lines in a snapshot


def take(settings: Settings, counters: Counters, routes: Sequence[str], look: DirectoryLook | None = None) -> Snapshot:
    """Take a snapshot.

    Args:
        routes: the paths of the router's table, in its order.
        look: a look at the WAL directory; by default this takes one, and waits for the disk without limit.

    Note:
        About 1 ms.
    """
    now, node = steady_us(), counters.node
    workers = [worker_state(counters, slot, now) for slot in range(1, counters.workers + 1)]
    wal = settings.wal
    look = look or directory_look.look(WALDirectory(wal.dir))
    uploader = uploader_state(counters, now)
    measured = node[NodeBlock.MEASURED_US]
    measured_age = (monotonic_us() - measured) / _MICRO if measured else 0.0
    return Snapshot(
        version=__version__,
        time=time.time(),
        uptime_seconds=age_seconds(node[NodeBlock.STARTED_US], now),
        draining=node[NodeBlock.DRAINING] in (ANNOUNCED, BEGUN),
        wal_enabled=wal.enabled,
        sync_mode=wal.sync_mode if wal.enabled else "off",
        wal_dir=wal.dir,
        max_size_bytes=wal.max_size_mb << 20,
        max_age_seconds=wal.max_age_seconds,
        store=next(str(item.value) for item in settings.effective() if item.key == "storage.url"),
        workers=workers,
        uploader=uploader,
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
        oldest_unshipped_seconds=_oldest_unshipped_seconds(counters, now),
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
        tokens=_tokens(counters.endings) if settings.auth.enabled else {},
        compaction=compaction_state(counters, now) if settings.has_upkeep else None,
        # A segment is sealed at the first of these ages, and may wait for its turn by choice.
        unshipped_limit_seconds=min(settings.flush.max_age_seconds, wal.max_age_seconds)
        + settings.batch_interval_seconds
        + UNSHIPPED_SECONDS,
        waiting_bytes=_not_batched(node, NodeBlock.BACKLOG_BYTES, NodeBlock.UNRECOVERED_BYTES, uploader.batched_bytes),
        waiting_segments=_not_batched(
            node, NodeBlock.BACKLOG_SEGMENTS, NodeBlock.UNRECOVERED_SEGMENTS, uploader.batched_segments
        ),
        next_batch_seconds=_next_batch_seconds(settings.batch_interval_seconds, uploader.planned_age_seconds),
        committer=committer_state(settings, counters, now) if settings.has_tables else None,
        unsealed_age_seconds=age_seconds(unsealed, now) if (unsealed := node[NodeBlock.OLDEST_UNSEALED_US]) else 0.0,
        reload_refused=[part for bit, part in enumerate(RELOAD_PARTS) if node[NodeBlock.RELOAD_REFUSED] >> bit & 1],
    )


encode = msgspec.json.Encoder().encode
"""A snapshot, or a part of one, as JSON."""


def _not_batched(node: memoryview, backlog: int, unrecovered: int, batched: int) -> int:
    """Return the part of the backlog that is in no batch and can be; the three are measured at different times."""
    return max(0, node[backlog] - node[unrecovered] - batched)


def _next_batch_seconds(interval: float, planned_age: float | None) -> float:
    return 0.0 if planned_age is None else max(0.0, interval - planned_age)


def _processes(counters: Counters) -> dict[str, ProcessFigures]:
    # Only children of the supervisor call this, and none outlives it.
    pids = {"supervisor": os.getppid(), "uploader": counters.uploader[Uploader.PID]}
    pids |= {"compaction": counters.compaction[Compaction.PID], "committer": counters.committer[Committer.PID]}
    pids |= {f"ingest {slot}": counters.worker(slot)[Worker.PID] for slot in range(1, counters.workers + 1)}
    return {name: look_at(pid) for name, pid in pids.items() if pid}


def _endings(block: memoryview) -> dict[str, Ending]:
    found = {}
    for number, kind in enumerate(ENDINGS):
        row = block[number * Endings.WORDS : (number + 1) * Endings.WORDS]
        if row[Endings.ENDS]:
            found[kind] = Ending(unpack_name(row, Endings.NAME), row[Endings.ENDS], row[Endings.WARN_FROM])
    return found


def _tokens(block: memoryview) -> dict[str, int]:
    return dict(zip(Endings.TOKEN_STATES, block[Endings.TOKENS :], strict=True))


def _oldest_unshipped_seconds(counters: Counters, now: int) -> float:
    """Return the age of the oldest record in a sealed or active segment; 0 if there is none."""
    oldest = [counters.node[NodeBlock.OLDEST_BACKLOG_US]]
    oldest += [counters.worker(slot)[Worker.SEGMENT_FIRST_US] for slot in range(1, counters.workers + 1)]
    return age_seconds(min(filter(None, oldest), default=0), now)


def _warnings(counters: Counters) -> list[WarningLine]:
    """Return the latest warnings of all processes, the newest first."""
    notes = [(process, note) for process in counters.processes() for note in counters.notes(process).read()]
    notes.sort(key=lambda item: -item[1].steady_us)
    return [
        WarningLine(note.time_us / _MICRO, _LEVELS.get(note.level, "warning"), process, note.text)
        for process, note in notes[:_WARNINGS]
    ]


def _databases(counters: Counters) -> dict[str, Usage]:
    """Return the usage by database, over all workers."""
    databases: dict[str, Usage] = {}
    for slot in range(1, counters.workers + 1):
        for name, usage in unpack_usage(counters.worker(slot)):
            before = databases.get(name, Usage(0, 0, 0))
            databases[name] = Usage(*(mine + other for mine, other in zip(before, usage, strict=True)))
    return databases


def _requests(counters: Counters, routes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the answers by route and status, over all workers."""
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
