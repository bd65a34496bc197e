"""The rules by which tables have issues: see `monitoring.issues`."""

from __future__ import annotations

from typing import Final

from arcpipe.monitoring.committer_state import CommitterState
from arcpipe.monitoring.rule import FAILED_STARTS, Found, Rule
from arcpipe.monitoring.snapshot import Snapshot

_STARTING_SECONDS: Final = 60.0  # time for the first start of the committer
BEHIND_SECONDS: Final = 300.0
"""Time that a commit may take after its interval is over."""
_WAITING_USED: Final = 0.5  # of tables.max_uncommitted_mb
_INTERVAL_USED: Final = 0.5  # of tables.commit_interval_seconds, by one round
_SHOWN: Final = 3  # tables that a message names


def _committer_down(snapshot: Snapshot) -> Found:
    committer = snapshot.committer
    if committer is None or snapshot.draining or snapshot.uptime_seconds < _STARTING_SECONDS:
        return
    if committer.alive and committer.failed_starts < FAILED_STARTS:
        return  # one that ends early again and again has a heartbeat now and then
    yield (
        f"the committer has sent no heartbeat for {committer.heartbeat_age_seconds:.0f} s, and has failed to start or "
        f"ended early {committer.failed_starts} times in a row",
        "uploads go on, and tables get nothing new until it works; the log shows why it died ('committer')",
    )


def _tables_stopped(snapshot: Snapshot) -> Found:
    committer = snapshot.committer
    if committer is not None and committer.stopped:
        yield (
            f"nothing is committed to tables: {committer.reason or 'the log says why'}",
            "nothing is lost: what is uploaded waits in wal.dir/tables. tables.md, 'When commits stop', has the steps",
        )


def _tables_unreachable(snapshot: Snapshot) -> Found:
    committer = snapshot.committer
    if committer is not None and committer.unreachable and snapshot.uptime_seconds >= _STARTING_SECONDS:
        yield (
            f"tables cannot be reached: {committer.reason or 'the log says why'}",
            "it is tried again at least once a minute; check the settings of [tables], the catalogue and the store",
        )


def _table_refused(snapshot: Snapshot) -> Found:
    yield from _of_kind(
        snapshot,
        "refused",
        "refused",
        "change the table or its sender as the reason says; the next round tries again, and other tables go on",
    )


def _table_files_missing(snapshot: Snapshot) -> Found:
    yield from _of_kind(
        snapshot,
        "missing",
        "missing",
        "find out who removes or changes files in the store, and restore them; `arcpipe tables commit-now "
        "--skip-missing` gives them up and goes on with the rest",
    )


def _of_kind(snapshot: Snapshot, field: str, kind: str, advice: str) -> Found:
    committer = snapshot.committer
    if committer is None or not (count := getattr(committer, field)):
        return
    named = [table for table in committer.listed if table.kind == kind][:_SHOWN]
    texts = "; ".join(f"{table.database}.{table.measurement}: {table.problem}" for table in named)
    yield f"{count} tables have to wait: {texts or 'the log says which and why'}", advice


def _tables_held_back(snapshot: Snapshot) -> Found:
    committer = snapshot.committer
    if committer is not None and committer.held_back:
        yield (
            f"uploads wait for commits to tables: {_waiting(committer)}, and tables.max_uncommitted_mb "
            f"({committer.max_waiting_bytes / 1e6:.0f} MB) is reached",
            "see why the committer cannot commit; writes are refused once wal.max_backlog_mb is reached, too",
        )


def _tables_behind(snapshot: Snapshot) -> Found:
    committer = snapshot.committer
    if committer is None or not committer.waiting_batches:
        return
    limit = committer.interval_seconds + BEHIND_SECONDS
    is_large = committer.waiting_bytes > _WAITING_USED * committer.max_waiting_bytes
    if is_large or committer.oldest_waiting_seconds > limit:
        yield (
            f"{_waiting(committer)} for their commit to tables, the oldest for "
            f"{committer.oldest_waiting_seconds:.0f} s; the limits of this warning are {limit:g} s and half of "
            f"tables.max_uncommitted_mb ({committer.max_waiting_bytes / 1e6:.0f} MB)",
            "`arcpipe tables ls` shows which tables wait, and why; nothing is lost meanwhile",
        )


def _commit_interval_short(snapshot: Snapshot) -> Found:
    committer = snapshot.committer
    if committer is not None and committer.round_seconds > _INTERVAL_USED * committer.interval_seconds:
        yield (
            f"the last round of commits took {committer.round_seconds:.1f} s of tables.commit_interval_seconds = "
            f"{committer.interval_seconds:g} s",
            "raise tables.commit_interval_seconds: fewer commits have more files each; `arcpipe tables maintain` makes "
            "them cheaper",
        )


def _waiting(committer: CommitterState) -> str:
    return f"{committer.waiting_batches} batches with {committer.waiting_bytes / 1e6:.0f} MB wait"


CRITICAL: Final = (
    Rule("tables_stopped", "critical", _tables_stopped),
    Rule("table_refused", "critical", _table_refused),
    Rule("table_files_missing", "critical", _table_files_missing),
    Rule("tables_held_back", "critical", _tables_held_back),
)
WARNING: Final = (
    Rule("tables_unreachable", "warning", _tables_unreachable),
    Rule("committer_down", "warning", _committer_down),
    Rule("tables_behind", "warning", _tables_behind),
    Rule("commit_interval_short", "warning", _commit_interval_short),
)
