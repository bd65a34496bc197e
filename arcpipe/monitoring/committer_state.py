"""The state of the committer at one moment, from its counters and from the file that it writes for others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from arcpipe.counters import Committer, Counters, Uploader
from arcpipe.monitoring.process_state import COMPACTION_SILENT_SECONDS, age_if_any, age_seconds, memory_bytes
from arcpipe.tables import states
from arcpipe.tables.commit_file import FOLDER
from arcpipe.tables.states import TableState as TableState

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

_MICRO: Final = 1_000_000
_MOST_LISTED: Final = 20  # tables in a snapshot; those with a problem come first


class CommitterState(Struct, frozen=True):
    """The committer. A restart of it does not reset the counters."""

    pid: int
    alive: bool
    failed_starts: int  # consecutive failed starts and early deaths
    restarts: int
    heartbeat_age_seconds: float
    memory_bytes: int
    format: str  # iceberg or delta
    interval_seconds: float  # tables.commit_interval_seconds
    rounds: int
    last_round_age_seconds: float | None
    round_seconds: float  # how long the last round took that committed anything
    commits: int
    last_commit_age_seconds: float | None
    files: int
    rows: int
    conflicts: int  # attempts that others overtook
    failures: int
    recreated: int  # tables that somebody had dropped
    maintained: int  # upkeeps of a table
    handed_over: int  # batches
    held_back: bool  # tables.max_uncommitted_mb is reached, so a batch cannot be handed over
    waiting_batches: int  # handed over, and not in all of their tables
    waiting_bytes: int
    max_waiting_bytes: int
    oldest_waiting_seconds: float  # 0 if none waits
    failing: int  # tables whose last commit failed, and is tried again
    refused: int  # tables that need a person's decision
    missing: int  # tables that wait because objects are gone or cannot be read
    stopped: bool  # nothing at all may be committed
    unreachable: bool  # catalogue or warehouse do not work
    reason: str  # why it is stopped, or unreachable; empty if it is neither
    tables: int  # that this process of it has met
    listed: list[TableState]  # some of them, those with a problem first
    upkeep_failures: int = 0  # upkeeps that failed, and are tried again


def committer_state(settings: Settings, counters: Counters, now: int) -> CommitterState:
    """Read the block of the committer; `now` is of the steady clock, in µs."""
    block, uploader = counters.committer, counters.uploader
    heartbeat = age_seconds(block[Committer.HEARTBEAT_US], now)
    told = states.read(os.path.join(settings.wal.dir, FOLDER))
    stopped, unreachable = bool(block[Committer.STOPPED]), bool(block[Committer.UNREACHABLE])
    return CommitterState(
        pid=block[Committer.PID],
        alive=bool(block[Committer.PID]) and heartbeat < COMPACTION_SILENT_SECONDS,
        failed_starts=block[Committer.FAILED_STARTS],
        restarts=block[Committer.RESTARTS],
        heartbeat_age_seconds=heartbeat,
        memory_bytes=memory_bytes(block[Committer.PID]),
        format=settings.tables.format,
        interval_seconds=settings.tables.commit_interval_seconds,
        rounds=block[Committer.ROUNDS],
        last_round_age_seconds=age_if_any(block[Committer.LAST_ROUND_US], now),
        round_seconds=block[Committer.ROUND_US] / _MICRO,
        commits=block[Committer.COMMITS],
        last_commit_age_seconds=age_if_any(block[Committer.LAST_COMMIT_US], now),
        files=block[Committer.FILES],
        rows=block[Committer.ROWS],
        conflicts=block[Committer.CONFLICTS],
        failures=block[Committer.FAILURES],
        recreated=block[Committer.RECREATED],
        maintained=block[Committer.MAINTAINED],
        handed_over=uploader[Uploader.HANDED_OVER],
        held_back=bool(uploader[Uploader.HELD_BACK]),
        waiting_batches=block[Committer.WAITING_BATCHES],
        waiting_bytes=block[Committer.WAITING_BYTES],
        max_waiting_bytes=settings.tables.max_uncommitted_mb << 20,
        oldest_waiting_seconds=age_if_any(block[Committer.OLDEST_US], now) or 0.0,
        failing=block[Committer.FAILING],
        refused=block[Committer.REFUSED],
        missing=block[Committer.MISSING],
        stopped=stopped,
        unreachable=unreachable,
        reason=told.stopped if stopped else told.unreachable if unreachable else "",
        tables=told.tables,
        listed=told.listed[:_MOST_LISTED],
        upkeep_failures=block[Committer.UPKEEP_FAILURES],
    )
