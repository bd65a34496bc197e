"""Health issues of an instance, each with a recommendation, judged from a snapshot.

Each issue has a code that also names its Prometheus alert (`ops/alerts.yml`). This module judges, and measures nothing.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol

from msgspec import Struct

from arcpipe.access.expiry import date
from arcpipe.monitoring.directory_look import Unacknowledged
from arcpipe.monitoring.process_state import UploaderState, WorkerState
from arcpipe.monitoring.snapshot import Ending, Snapshot

Severity = Literal["info", "warning", "critical"]

_RECENT_SECONDS: Final = 300.0  # age up to which a failed write is an issue
_SEGMENT_NEAR_LIMIT: Final = 0.9  # of wal.max_size_mb
_SEGMENT_TOO_OLD: Final = 2.0  # times wal.max_age_seconds
_DISK_USED: Final = 0.8  # of the disk
_BACKLOG_USED: Final = 0.5  # of wal.max_backlog_mb
_STARTING_SECONDS: Final = 5.0  # time for the first start of a process; the same as for a silent one
_FAILED_STARTS: Final = 3  # in a row; the issue "restarts" reports one or two


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


class _Add(Protocol):
    def __call__(self, code: str, severity: Severity, message: str, recommendation: str) -> None: ...


def judge(snapshot: Snapshot) -> list[Issue]:
    """Return the issues of a snapshot, the worst first."""
    issues: list[Issue] = []

    def add(code: str, severity: Severity, message: str, recommendation: str) -> None:
        issues.append(Issue(code, severity, message, recommendation))

    for worker in snapshot.workers:
        _judge_worker(snapshot, worker, add)
    _judge_uploader(snapshot, add)
    _judge_starts(snapshot, add)
    _judge_admission(snapshot, add)
    if snapshot.supervisor_alive:  # otherwise the figures are old
        _judge_disk(snapshot, add)
    _judge_segments(snapshot, add)
    _judge_batches(snapshot, add)
    _judge_findings(snapshot, add)
    _judge_values(snapshot, add)
    _judge_endings(snapshot, add)
    order = {"critical": 0, "warning": 1, "info": 2}
    return sorted(issues, key=lambda issue: order[issue.severity])


def _judge_worker(snapshot: Snapshot, worker: WorkerState, add: _Add) -> None:
    who = f"ingest {worker.slot}"
    if _is_missed(snapshot, worker):
        add(
            "worker_down",
            "critical",
            _silence(who, worker),
            f"the supervisor restarts one that died; `py-spy dump -p {worker.pid}` shows where one hangs",
        )
    if worker.last_failure_age_seconds is not None and worker.last_failure_age_seconds < _RECENT_SECONDS:
        add(
            "write_failures",
            "critical",
            f"{who} could not write to the WAL {worker.last_failure_age_seconds:.0f} s ago "
            f"({worker.write_failures} failures since the start); these writes were refused, not lost",
            f"look for 'cannot be written' in the log; check `df {snapshot.wal_dir}` and the disk's health (dmesg)",
        )
    if worker.segment_bytes > _SEGMENT_NEAR_LIMIT * snapshot.max_size_bytes:
        add(
            "segment_near_limit",
            "info",
            f"the segment of {who} has {worker.segment_bytes / 1e6:.0f} MB of "
            f"{snapshot.max_size_bytes / 1e6:.0f} MB and is about to be sealed",
            "do nothing: it rotates by itself; raise wal.max_size_mb if it rotates several times a second",
        )
    if worker.segment_age_seconds > _SEGMENT_TOO_OLD * snapshot.max_age_seconds:
        add(
            "segment_too_old",
            "warning",
            f"the segment of {who} has not been sealed for {worker.segment_age_seconds:.0f} s "
            f"(wal.max_age_seconds = {snapshot.max_age_seconds:g} s)",
            "the log shows why it cannot rotate (look for 'segment'); a restart seals it",
        )


def _judge_uploader(snapshot: Snapshot, add: _Add) -> None:
    uploader = snapshot.uploader
    if _is_missed(snapshot, uploader):
        add(
            "uploader_down",
            "critical",
            _silence("the uploader", uploader),
            "writes go on until wal.max_backlog_mb is reached; the log shows why it died ('uploader')",
        )
    if uploader.stopped:
        add(
            "uploads_stopped",
            "critical",
            "nothing is uploaded: a manifest, schema.json or findings.json is of a version that this program does not "
            "know",
            "the log names the file and the version; install the arcpipe that wrote it, and leave the file as it is",
        )


def _is_missed(snapshot: Snapshot, process: WorkerState | UploaderState) -> bool:
    """Tell whether a process has no heartbeat. Its first start may take _STARTING_SECONDS."""
    is_starting = not process.pid and snapshot.uptime_seconds < _STARTING_SECONDS
    return not (process.alive or is_starting or snapshot.draining)


def _silence(who: str, process: WorkerState | UploaderState) -> str:
    if not process.pid:
        return f"{who} has no process at the moment"
    return f"{who} (pid {process.pid}) has sent no heartbeat for {process.heartbeat_age_seconds:.0f} s"


def _judge_starts(snapshot: Snapshot, add: _Add) -> None:
    processes: list[tuple[str, WorkerState | UploaderState]] = [("the uploader", snapshot.uploader)]
    processes += [(f"ingest {worker.slot}", worker) for worker in snapshot.workers]
    for who, process in processes:
        if process.failed_starts >= _FAILED_STARTS:
            add(
                "failed_starts",
                "warning",
                f"{who} could not be started or ended soon after its start, {process.failed_starts} times in a row",
                "it is tried again every few seconds, and the others go on; the log says why it fails "
                "('cannot start', 'died:')",
            )
    if snapshot.worker_restarts or snapshot.uploader_restarts:
        add(
            "restarts",
            "info",
            f"processes have died since the start: {snapshot.worker_restarts} × a worker, "
            f"{snapshot.uploader_restarts} × the uploader",
            "the log says how each died ('died:'); SIGKILL usually means that memory ran out (dmesg)",
        )


def _judge_admission(snapshot: Snapshot, add: _Add) -> None:
    if snapshot.wal_dir_problem or snapshot.wal_unlisted:
        add(
            "wal_unlisted",
            "critical",
            f"the WAL directory cannot be fully listed: {snapshot.wal_dir_problem or 'the supervisor was refused'}"
            f"{'; every write is refused (503)' if snapshot.wal_unlisted else ''}",
            f"check that {snapshot.wal_dir} exists, is mounted, and can be read by the server's user; then check the "
            "disk (dmesg); arcpipe goes on by itself",
        )
    if snapshot.wal_unlocked:
        add(
            "lock_lost",
            "critical",
            f"the lock of {snapshot.wal_dir} was taken away: another arcpipe may use it and upload the same records",
            "stop the other one (the log has its pid); this one takes the lock again by itself",
        )
    if snapshot.wal_replaced:
        add(
            "wal_replaced",
            "critical",
            f"{snapshot.wal_dir} is another directory than at the start: segments left in that are not uploaded",
            "was its disk unmounted, or the directory moved? Stop the server, restore the former directory, and start",
        )
    if not snapshot.supervisor_alive and not snapshot.draining:
        add(
            "supervisor_down",
            "critical",
            f"the supervisor has sent no heartbeat for {snapshot.measured_age_seconds:.0f} s; as nobody measures "
            "backlog and disk, every write is refused (503), and no process that dies is replaced",
            f"does the disk of {snapshot.wal_dir} answer (dmesg)? If no service manager restarts it, kill -9 the "
            "supervisor and start again: no acknowledged record is lost",
        )
    if snapshot.wal_unlisted or not snapshot.supervisor_alive:
        return  # the figures are old
    if snapshot.disk_total_bytes and snapshot.disk_free_bytes < snapshot.min_free_bytes:
        add(
            "writes_refused",
            "critical",
            f"every write is refused (507): {snapshot.disk_free_bytes / 1e6:.0f} MB are free on the disk of "
            f"{snapshot.wal_dir}, and wal.min_free_mb is {snapshot.min_free_bytes >> 20}",
            "free space, or move wal.dir to a larger disk; POST /api/wal/cleanup removes recovered segments; writes "
            "then go on by themselves",
        )
    elif snapshot.backlog_bytes > snapshot.max_backlog_bytes:
        add(
            "writes_refused",
            "critical",
            f"every write is refused (503): {snapshot.backlog_bytes / 1e6:.0f} MB wait for their upload, more than "
            f"wal.max_backlog_mb ({snapshot.max_backlog_bytes / 1e6:.0f} MB)",
            "make the store work again (see uploads_behind); if the disk has space, a larger wal.max_backlog_mb and "
            "`kill -USR2` of the supervisor gain time; writes then go on by themselves",
        )


def _judge_disk(snapshot: Snapshot, add: _Add) -> None:
    used = 1 - snapshot.disk_free_bytes / snapshot.disk_total_bytes if snapshot.disk_total_bytes else 0.0
    if used > _DISK_USED:
        add(
            "disk_usage",
            "warning",
            f"the disk of {snapshot.wal_dir} is {used:.0%} full, {snapshot.disk_free_bytes / 1e9:.1f} GB are free",
            "free space, or move wal.dir to a larger disk; POST /api/wal/cleanup removes recovered segments; "
            "below wal.min_free_mb writes are refused",
        )
    if snapshot.wal_unlisted:
        return  # the backlog is unknown
    behind = snapshot.backlog_bytes > _BACKLOG_USED * snapshot.max_backlog_bytes
    if behind or snapshot.oldest_unshipped_seconds > snapshot.unshipped_limit_seconds:
        add(
            "uploads_behind",
            "warning",
            f"{snapshot.backlog_bytes / 1e6:.0f} MB in {snapshot.backlog_segments} segments wait for their upload, "
            f"the oldest record for {snapshot.oldest_unshipped_seconds:.0f} s; the limits of this warning are half of "
            f"wal.max_backlog_mb ({snapshot.max_backlog_bytes / 1e6:.0f} MB) and "
            f"{snapshot.unshipped_limit_seconds:g} s",
            "check the store (the log's lines with 'trying again' have kind=…); if it answers, raise uploader.threads "
            "or uploader.concurrent_uploads, or give the uploader more CPU",
        )


_SALVAGE: Final = (
    "arcpipe tries again by itself; the log says why it fails; check the disk (dmesg, smartctl). If it still fails, "
    "`arcpipe wal salvage` reads around bad blocks: recovery.md has the steps"
)


def _judge_segments(snapshot: Snapshot, add: _Add) -> None:
    """Judge segments that cannot be read, and so are not uploaded."""
    if snapshot.unrecovered_segments:
        add(
            "unreadable_segments",
            "critical",
            f"{snapshot.unrecovered_segments} segments cannot be read: {snapshot.unrecovered_first}"
            f"{' and others' if snapshot.unrecovered_segments > 1 else ''}, {snapshot.unrecovered_bytes / 1e6:.1f} MB "
            f"in {snapshot.wal_dir}; a dead worker left them, and their records are not uploaded",
            _SALVAGE,
        )
    if snapshot.uploader.unreadable_segments:
        add(
            "unreadable_segments",
            "critical",
            f"the uploader cannot read {snapshot.uploader.unreadable_segments} sealed segments, so their records are "
            "not uploaded",
            _SALVAGE,
        )


def _judge_batches(snapshot: Snapshot, add: _Add) -> None:
    uploader = snapshot.uploader
    if uploader.damaged_manifests:
        add(
            "damaged_manifests",
            "critical",
            f"{uploader.damaged_manifests} damaged manifests are kept aside; their segments stay and are not uploaded",
            "the log names each; check the disk (smartctl, dmesg), then see recovery.md",
        )


_ACK: Final = "then `arcpipe wal ack` ends this issue until there are new ones: recovery.md has the steps"


def _judge_findings(snapshot: Snapshot, add: _Add) -> None:
    """Judge damage and loss. Only an operator ends these issues, not a restart or time."""
    found = snapshot.unacknowledged
    if "damaged_entries" in found:
        add(
            "damaged_entries",
            "critical",
            _open(found["damaged_entries"], "damaged places were found in segments and skipped"),
            "check the disk (smartctl, dmesg); `arcpipe wal verify` shows what is wrong and where; " + _ACK,
        )
    if "lost_segments" in found:
        add(
            "lost_segments",
            "critical",
            _open(
                found["lost_segments"],
                "segments vanished, or lost entries, before they were uploaded: acknowledged records are missing",
            ),
            "find out who removes files in the WAL directory, and whether a copy is left; " + _ACK,
        )
    if "lost_records" in found:
        add(
            "lost_records",
            "critical",
            _open(found["lost_records"], "acknowledged records were lost, because the WAL is disabled"),
            "have the senders send them again, or set wal.enabled = true if they cannot; " + _ACK,
        )
    if "dead_letters" in found:
        add(
            "dead_letters",
            "warning",
            _open(found["dead_letters"], "entries could not be converted, and are below _dead_letter/ in the store"),
            "look at them (each is one MessagePack value); the log says why for each; " + _ACK,
        )
    if "quarantine" in found:
        add(
            "quarantine",
            "warning",
            f"{found['quarantine'].count} files are in {snapshot.wal_dir}/quarantine that nobody has acknowledged, "
            f"such as {found['quarantine'].latest}: they could not be read, so their records are not uploaded",
            "look at them with `arcpipe wal verify`, then salvage or remove them, or keep them there; " + _ACK,
        )
    if snapshot.findings_problem:
        add(
            "findings_unreadable",
            "warning",
            f"earlier findings, or their acknowledgement, are unknown: {snapshot.findings_problem}",
            f"check the disk, and the owner and mode of findings.json and acknowledged.json in {snapshot.wal_dir}; "
            "if one is damaged, `arcpipe wal ack` moves it aside and makes a new one",
        )


def _open(found: Unacknowledged, what: str) -> str:
    latest = f"; the latest: {found.latest}" if found.latest else ""
    return f"{found.count} {what}{latest}"


def _judge_values(snapshot: Snapshot, add: _Add) -> None:
    uploader = snapshot.uploader
    if uploader.rescued:
        add(
            "rescued_values",
            "info",
            f"{uploader.rescued} values did not fit their column's type and are in _rescued_data",
            "have all senders use the same type for the column; SELECT _rescued_data shows columns and values",
        )


def _judge_endings(snapshot: Snapshot, add: _Add) -> None:
    due = {kind: ending for kind, ending in snapshot.endings.items() if snapshot.time >= ending.warn_from}
    if certificate := due.get("certificate"):
        is_over = certificate.ends <= snapshot.time
        add(
            "certificate_expires",
            "critical" if is_over else "warning",
            f"the certificate of {certificate.name} {_ends(certificate, snapshot)}: clients do not trust it then",
            "renew it, and reload (`systemctl reload arcpipe`, or SIGHUP); if its file is new already, only reload",
        )
    if authority := due.get("client_ca"):
        add(
            "client_ca_expires",
            "warning",
            f"the authority {authority.name} in server.tls_client_ca {_ends(authority, snapshot)}: clients whose "
            "certificates it has signed are refused then",
            "add the authority's new certificate to the file and reload; give clients certificates that it has signed",
        )
    if token := due.get("token"):
        add(
            "token_expires",
            "warning",
            f"token {token.name} {_ends(token, snapshot)}: requests with it are refused (401) then",
            "make a new one (`arcpipe token create`), reload, and give it to the sender; then revoke the old one "
            "(`arcpipe token revoke`) and reload again to end this issue",
        )


def _ends(ending: Ending, snapshot: Snapshot) -> str:
    days = (ending.ends - snapshot.time) / 86_400
    when = f"at {date(ending.ends)}"
    return f"expires in {days:.1f} days, {when}" if days > 0 else f"expired {-days:.1f} days ago, {when}"


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
