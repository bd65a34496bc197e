"""The state of an instance as an operator reads it: its issues with recommendations, and a verdict, from a snapshot.

This module judges, and measures nothing. `monitoring.issues` has the rules.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from arcpipe.monitoring.issues import RULES, Severity
from arcpipe.monitoring.snapshot import Snapshot


class Issue(Struct, frozen=True):
    """One condition that is true now. An issue of severity "info" leaves the instance healthy."""

    code: str
    severity: Severity
    message: str
    recommendation: str


class Verdict(Struct, frozen=True):
    """The state of the instance in one sentence, for an operator to read first."""

    state: Literal["good", "warning", "critical"]
    headline: str
    promise: str  # the meaning of an acknowledgement with these settings


class Picture(Struct, frozen=True):
    """The answer of `/api/v1/status`."""

    healthy: bool
    verdict: Verdict
    issues: list[Issue]
    answered_by: int  # slot
    instance: Snapshot


def picture(snapshot: Snapshot, slot: int) -> Picture:
    """Return a snapshot with its verdict and issues; `slot` is the worker that answers."""
    issues = judge(snapshot)
    return Picture(is_healthy(issues), _verdict(snapshot, issues), issues, slot, snapshot)


def judge(snapshot: Snapshot) -> list[Issue]:
    """Return the issues of a snapshot, the worst first."""
    return [
        Issue(rule.code, rule.severity, message, recommendation)
        for rule in RULES
        for message, recommendation in rule.find(snapshot)
    ]


def is_healthy(issues: list[Issue]) -> bool:
    """Tell whether no issue needs an operator: all are of severity "info"."""
    return all(issue.severity == "info" for issue in issues)


_PROMISES: Final = {
    "fsync": "Records are on disk (fsync) before they are acknowledged: neither a crash nor a power cut loses them.",
    "fdatasync": "Records are on disk (fdatasync) before they are acknowledged: neither a crash nor a power cut loses "
    "them.",
    "async": "Records are in the WAL before they are acknowledged: a crash of arcpipe loses nothing, a power cut at "
    "most wal.async_interval_ms of them.",
    "off": "The WAL is off (wal.enabled = false): records are acknowledged from memory, and a crash loses up to "
    "flush.max_age_seconds of them.",
}


def _verdict(snapshot: Snapshot, issues: list[Issue]) -> Verdict:
    promise = _PROMISES[snapshot.sync_mode]
    count = {severity: sum(issue.severity == severity for issue in issues) for severity in ("critical", "warning")}
    if snapshot.draining:
        left = "Load balancers are told to send elsewhere. The next start uploads what is not uploaded at the end."
        return Verdict("warning", "Shutting down", left)
    if count["critical"]:
        many = f"{count['critical']} things need you now"
        return Verdict("critical", "One thing needs you now" if count["critical"] == 1 else many, promise)
    if count["warning"]:
        many = f"{count['warning']} things to look at"
        return Verdict("warning", "One thing to look at" if count["warning"] == 1 else many, promise)
    return Verdict("good", "All is well, with the WAL off" if snapshot.sync_mode == "off" else "Data is safe", promise)
