"""The rules by which an instance has issues: each has a code, a severity, and a condition with its message and advice.

A code also names its Prometheus alert (`ops/alerts.yml`). The rules read a snapshot, and measure nothing.
"""

from __future__ import annotations

from typing import Final

from arcpipe.access.expiry import date
from arcpipe.monitoring import issues_of_tables as tables
from arcpipe.monitoring.directory_look import Unacknowledged
from arcpipe.monitoring.process_state import UploaderState, WorkerState
from arcpipe.monitoring.rule import FAILED_STARTS, Found, Rule
from arcpipe.monitoring.rule import Severity as Severity
from arcpipe.monitoring.snapshot import UNSHIPPED_SECONDS, Ending, Snapshot, upkeep_of

_RECENT_SECONDS: Final = 300.0  # age up to which a failed write is an issue
_DENIED_SECONDS: Final = 150.0  # the same for a refusal of the store: tries follow each other by less
_SEGMENT_NEAR_LIMIT: Final = 0.9  # of wal.max_size_mb
_SEGMENT_TOO_OLD: Final = 2.0  # times wal.max_age_seconds
_DISK_USED: Final = 0.8  # of the disk
_BACKLOG_USED: Final = 0.5  # of wal.max_backlog_mb
_STARTING_SECONDS: Final = 5.0  # time for the first start of a process; the same as for a silent one
_COMPACTION_SECONDS: Final = 60.0  # time for the first start of compaction, which comes last
# Looks of compaction in a row. One that fails as a whole is tried again each minute, one that fails in part each hour.
_FAILED_LOOKS: Final = 5

_SALVAGE: Final = (
    "arcpipe tries again by itself; the log says why it fails; check the disk (dmesg, smartctl). If it still fails, "
    "`arcpipe wal salvage` reads around bad blocks: recovery.md has the steps"
)
_ACK: Final = "then `arcpipe wal ack` ends this issue until there are new ones: recovery.md has the steps"


# Processes


def _worker_down(snapshot: Snapshot) -> Found:
    for worker in snapshot.workers:
        if _is_missed(snapshot, worker):
            yield (
                _silence(f"ingest {worker.slot}", worker),
                f"the supervisor restarts one that died; `py-spy dump -p {worker.pid}` shows where one hangs",
            )


def _uploader_down(snapshot: Snapshot) -> Found:
    if _is_missed(snapshot, snapshot.uploader):
        yield (
            _silence("the uploader", snapshot.uploader),
            "writes go on until wal.max_backlog_mb is reached; the log shows why it died ('uploader')",
        )


def _is_missed(snapshot: Snapshot, process: WorkerState | UploaderState) -> bool:
    """Tell whether a process has no heartbeat. Its first start may take _STARTING_SECONDS."""
    is_starting = not process.pid and snapshot.uptime_seconds < _STARTING_SECONDS
    return not (process.alive or is_starting or snapshot.draining)


def _silence(who: str, process: WorkerState | UploaderState) -> str:
    if not process.pid:
        return f"{who} has no process at the moment"
    return f"{who} (pid {process.pid}) has sent no heartbeat for {process.heartbeat_age_seconds:.0f} s"


def _supervisor_down(snapshot: Snapshot) -> Found:
    if not snapshot.supervisor_alive and not snapshot.draining:
        yield (
            f"the supervisor has sent no heartbeat for {snapshot.measured_age_seconds:.0f} s; as nobody measures "
            "backlog and disk, every write is refused (503), and no process that dies is replaced",
            f"does the disk of {snapshot.wal_dir} answer (dmesg)? If no service manager restarts it, kill -9 the "
            "supervisor and start again: no acknowledged record is lost",
        )


def _failed_starts(snapshot: Snapshot) -> Found:
    processes: list[tuple[str, WorkerState | UploaderState]] = [("the uploader", snapshot.uploader)]
    processes += [(f"ingest {worker.slot}", worker) for worker in snapshot.workers]
    for who, process in processes:
        if process.failed_starts >= FAILED_STARTS:
            yield (
                f"{who} could not be started or ended soon after its start, {process.failed_starts} times in a row",
                "it is tried again every few seconds, and the others go on; the log says why it fails "
                "('cannot start', 'died:')",
            )


def _restarts(snapshot: Snapshot) -> Found:
    deaths = {"a worker": snapshot.worker_restarts, "the uploader": snapshot.uploader_restarts}
    deaths |= {name: process.restarts for name, process in upkeep_of(snapshot)}
    if any(deaths.values()):
        told = ", ".join(f"{count} × {name}" for name, count in deaths.items())
        yield (
            f"processes have died since the start: {told}",
            "the log says how each died ('died:'); SIGKILL usually means that memory ran out (dmesg)",
        )


def _compaction_down(snapshot: Snapshot) -> Found:
    compaction = snapshot.compaction
    if compaction is None or snapshot.draining or snapshot.uptime_seconds < _COMPACTION_SECONDS:
        return
    if compaction.alive and compaction.failed_starts < FAILED_STARTS:
        return  # one that ends early again and again has a heartbeat now and then
    yield (
        f"compaction has sent no heartbeat for {compaction.heartbeat_age_seconds:.0f} s, and has failed to start or "
        f"ended early {compaction.failed_starts} times in a row",
        "uploads go on, and small files stay as they are; the log shows why it died ('compaction')",
    )


def _compaction_failing(snapshot: Snapshot) -> Found:
    compaction = snapshot.compaction
    if compaction is not None and compaction.failed_looks >= _FAILED_LOOKS and not compaction.stopped:
        yield (
            f"the last {compaction.failed_looks} looks of compaction through the lake failed, at least in part: small "
            "files stay as they are, and hours may stay that retention.days says to delete",
            "the log says why ('is tried again later'); check the store, and that the server may list, read and delete "
            "there",
        )


def _compaction_stopped(snapshot: Snapshot) -> Found:
    if snapshot.compaction is not None and snapshot.compaction.stopped:
        yield (
            "compaction cannot go on: a person has to decide something; nothing more is merged or deleted",
            "the log says what ('compaction cannot go on'); troubleshooting.md has the steps",
        )


def _compaction_mismatch(snapshot: Snapshot) -> Found:
    if snapshot.compaction is not None and snapshot.compaction.mismatches:
        yield (
            f"{snapshot.compaction.mismatches} × compaction wrote other rows than it had read; it removed what it had "
            "written, and the files stay as they are",
            "check the machine's memory and disk (dmesg); report it with the lines of the log if both are well; set "
            "compaction.enabled = false until then",
        )


# Directory and disk


def _wal_unlisted(snapshot: Snapshot) -> Found:
    if snapshot.wal_dir_problem or snapshot.wal_unlisted:
        yield (
            f"the WAL directory cannot be fully listed: {snapshot.wal_dir_problem or 'the supervisor was refused'}"
            f"{'; every write is refused (503)' if snapshot.wal_unlisted else ''}",
            f"check that {snapshot.wal_dir} exists, is mounted, and can be read by the server's user; then check the "
            "disk (dmesg); arcpipe goes on by itself",
        )


def _lock_lost(snapshot: Snapshot) -> Found:
    if snapshot.wal_unlocked:
        yield (
            f"the lock of {snapshot.wal_dir} was taken away: another arcpipe may use it and upload the same records",
            "stop the other one (the log has its pid); this one takes the lock again by itself",
        )


def _wal_replaced(snapshot: Snapshot) -> Found:
    if snapshot.wal_replaced:
        yield (
            f"{snapshot.wal_dir} is another directory than at the start: segments left in that are not uploaded",
            "was its disk unmounted, or the directory moved? Stop the server, restore the former directory, and start",
        )


def _writes_refused(snapshot: Snapshot) -> Found:
    if snapshot.wal_unlisted or not snapshot.supervisor_alive:
        return  # the figures are old
    if snapshot.disk_total_bytes and snapshot.disk_free_bytes < snapshot.min_free_bytes:
        yield (
            f"every write is refused (507): {snapshot.disk_free_bytes / 1e6:.0f} MB are free on the disk of "
            f"{snapshot.wal_dir}, and wal.min_free_mb is {snapshot.min_free_bytes >> 20}",
            "free space, or move wal.dir to a larger disk; POST /api/wal/cleanup removes recovered segments; writes "
            "then go on by themselves",
        )
    elif snapshot.backlog_bytes > snapshot.max_backlog_bytes:
        yield (
            f"every write is refused (503): {snapshot.backlog_bytes / 1e6:.0f} MB wait for their upload, more than "
            f"wal.max_backlog_mb ({snapshot.max_backlog_bytes / 1e6:.0f} MB)",
            "make the store work again (see uploads_behind); if the disk has space, a larger wal.max_backlog_mb and "
            "`kill -USR2` of the supervisor gain time; writes then go on by themselves",
        )


def _disk_usage(snapshot: Snapshot) -> Found:
    if not snapshot.supervisor_alive:
        return  # the figures are old
    used = 1 - snapshot.disk_free_bytes / snapshot.disk_total_bytes if snapshot.disk_total_bytes else 0.0
    if used > _DISK_USED:
        yield (
            f"the disk of {snapshot.wal_dir} is {used:.0%} full, {snapshot.disk_free_bytes / 1e9:.1f} GB are free",
            "free space, or move wal.dir to a larger disk; POST /api/wal/cleanup removes recovered segments; "
            "below wal.min_free_mb writes are refused",
        )


def _uploads_behind(snapshot: Snapshot) -> Found:
    if snapshot.wal_unlisted or not snapshot.supervisor_alive:
        return  # the backlog is unknown
    is_large = snapshot.backlog_bytes > _BACKLOG_USED * snapshot.max_backlog_bytes
    is_old = snapshot.oldest_unshipped_seconds > snapshot.unshipped_limit_seconds
    # What waits for its turn is not late; a batch that was planned long ago is, however long the interval.
    uploader = snapshot.uploader
    is_slow = uploader.batched_segments > 0 and (uploader.planned_age_seconds or 0.0) > UNSHIPPED_SECONDS
    if is_large or is_old or is_slow:
        yield (
            f"{snapshot.backlog_bytes / 1e6:.0f} MB in {snapshot.backlog_segments} segments wait for their upload, "
            f"the oldest record for {snapshot.oldest_unshipped_seconds:.0f} s; the limits of this warning are half of "
            f"wal.max_backlog_mb ({snapshot.max_backlog_bytes / 1e6:.0f} MB), {snapshot.unshipped_limit_seconds:g} s, "
            f"and {UNSHIPPED_SECONDS:g} s for one batch",
            "check the store (the log's lines with 'trying again' have kind=…); if it answers, raise uploader.threads "
            "or uploader.concurrent_uploads, or give the uploader more CPU",
        )


def _credentials_refused(snapshot: Snapshot) -> Found:
    denied, last = snapshot.uploader.denied_age_seconds, snapshot.uploader.last_upload_age_seconds
    if denied is not None and denied < _DENIED_SECONDS and (last is None or last > denied):
        yield (
            f"the store refused the credentials {denied:.0f} s ago, and nothing was uploaded since",
            "the log's line with kind=credentials names the reason: a key, a session token that has expired, or a "
            "permission; what was acknowledged waits in the WAL. New credentials of the process need no restart, new "
            "settings do",
        )


# Segments and writes


def _write_failures(snapshot: Snapshot) -> Found:
    for worker in snapshot.workers:
        if worker.last_failure_age_seconds is not None and worker.last_failure_age_seconds < _RECENT_SECONDS:
            yield (
                f"ingest {worker.slot} could not write to the WAL {worker.last_failure_age_seconds:.0f} s ago "
                f"({worker.write_failures} failures since the start); these writes were refused, not lost",
                f"look for 'cannot be written' in the log; check `df {snapshot.wal_dir}` and the disk's health (dmesg)",
            )


def _retention_waits(snapshot: Snapshot) -> Found:
    if snapshot.compaction is not None and snapshot.compaction.retention_from > snapshot.time:
        yield (
            f"retention deletes nothing before {date(snapshot.compaction.retention_from)}: it is new here, its days "
            "have changed, or the clock did not run evenly",
            "nothing, if the clock is right and retention.days is as you want it; the log lists what is too old, "
            "and so does `arcpipe lake expire`",
        )


def _segment_near_limit(snapshot: Snapshot) -> Found:
    for worker in snapshot.workers:
        if worker.segment_bytes > _SEGMENT_NEAR_LIMIT * snapshot.max_size_bytes:
            yield (
                f"the segment of ingest {worker.slot} has {worker.segment_bytes / 1e6:.0f} MB of "
                f"{snapshot.max_size_bytes / 1e6:.0f} MB and is about to be sealed",
                "do nothing: it rotates by itself; raise wal.max_size_mb if it rotates several times a second",
            )


def _segment_too_old(snapshot: Snapshot) -> Found:
    for worker in snapshot.workers:
        if worker.segment_age_seconds > _SEGMENT_TOO_OLD * snapshot.max_age_seconds:
            yield (
                f"the segment of ingest {worker.slot} has not been sealed for {worker.segment_age_seconds:.0f} s "
                f"(wal.max_age_seconds = {snapshot.max_age_seconds:g} s)",
                "the log shows why it cannot rotate (look for 'segment'); a restart seals it",
            )
    if snapshot.unsealed_age_seconds > _SEGMENT_TOO_OLD * snapshot.max_age_seconds:
        yield (
            f"a segment that its worker has left has not been sealed for {snapshot.unsealed_age_seconds:.0f} s, so its "
            "records are not uploaded",
            "it is tried each second; the log shows why it fails (look for 'cannot seal'); check the disk of wal.dir",
        )


def _unreadable_segments(snapshot: Snapshot) -> Found:
    if snapshot.unrecovered_segments:
        yield (
            f"{snapshot.unrecovered_segments} segments cannot be read: {snapshot.unrecovered_first}"
            f"{' and others' if snapshot.unrecovered_segments > 1 else ''}, {snapshot.unrecovered_bytes / 1e6:.1f} MB "
            f"in {snapshot.wal_dir}; a dead worker left them, and their records are not uploaded",
            _SALVAGE,
        )
    if snapshot.uploader.unreadable_segments:
        yield (
            f"the uploader cannot read {snapshot.uploader.unreadable_segments} sealed segments, so their records are "
            "not uploaded",
            _SALVAGE,
        )


# Uploads


def _uploads_stopped(snapshot: Snapshot) -> Found:
    if snapshot.uploader.stopped:
        yield (
            "nothing is uploaded: a manifest, schema.json or findings.json is of a version that this program does not "
            "know",
            "the log names the file and the version; install the arcpipe that wrote it, and leave the file as it is",
        )


def _damaged_manifests(snapshot: Snapshot) -> Found:
    if snapshot.uploader.damaged_manifests:
        yield (
            f"{snapshot.uploader.damaged_manifests} damaged manifests are kept aside; their segments stay and are not "
            "uploaded",
            "the log names each; check the disk (smartctl, dmesg), then see recovery.md",
        )


def _keys_unreadable(snapshot: Snapshot) -> Found:
    if snapshot.uploader.unreadable_key_files:
        yield (
            f"{snapshot.uploader.unreadable_key_files} files in {snapshot.wal_dir}/idempotency cannot be read: retries "
            "of their keys are written twice",
            "the log names each ('cannot be used'); check the disk (dmesg, smartctl), or install the arcpipe that "
            "wrote them; uploads go on, and the files are tried again with each batch",
        )


def _keys_cut(snapshot: Snapshot) -> Found:
    if snapshot.uploader.keys_cut:
        yield (
            f"{snapshot.uploader.keys_cut} idempotency keys were forgotten before idempotency.window_seconds was over, "
            "because idempotency.max_keys newer ones are known: a later retry of theirs is written twice",
            "raise idempotency.max_keys (28 bytes of memory and disk each), lower idempotency.window_seconds, or have "
            "senders put more records into a request",
        )


def _rescued_values(snapshot: Snapshot) -> Found:
    if snapshot.uploader.rescued:
        yield (
            f"{snapshot.uploader.rescued} values fit no column, or their table has 4096 columns already, "
            "and are in _rescued_data",
            "have senders write arrays and maps as text, and tags instead of thousands of columns; "
            "SELECT _rescued_data shows columns and values",
        )


# Findings: damage and loss. Only an operator ends these issues, not a restart or time.


def _damaged_entries(snapshot: Snapshot) -> Found:
    if found := snapshot.unacknowledged.get("damaged_entries"):
        yield (
            _total(found, "damaged places were found in segments and skipped"),
            "check the disk (smartctl, dmesg); `arcpipe wal verify` shows what is wrong and where; " + _ACK,
        )


def _lost_segments(snapshot: Snapshot) -> Found:
    if found := snapshot.unacknowledged.get("lost_segments"):
        yield (
            _total(
                found,
                "segments vanished, or lost entries, before they were uploaded: acknowledged records are missing",
            ),
            "find out who removes files in the WAL directory, and whether a copy is left; " + _ACK,
        )


def _lost_records(snapshot: Snapshot) -> Found:
    if found := snapshot.unacknowledged.get("lost_records"):
        yield (
            _total(found, "acknowledged records were lost, because the WAL is disabled"),
            "have the senders send them again, or set wal.enabled = true if they cannot; " + _ACK,
        )


def _dead_letters(snapshot: Snapshot) -> Found:
    if found := snapshot.unacknowledged.get("dead_letters"):
        yield (
            _total(found, "entries could not be converted, and are below _dead_letter/ in the store"),
            "look at them (each is one MessagePack value); the log says why for each; " + _ACK,
        )


def _quarantine(snapshot: Snapshot) -> Found:
    if found := snapshot.unacknowledged.get("quarantine"):
        yield (
            f"{found.count} files are in {snapshot.wal_dir}/quarantine that nobody has acknowledged, "
            f"such as {found.latest}: they could not be read, so their records are not uploaded",
            "look at them with `arcpipe wal verify`, then salvage or remove them, or keep them there; " + _ACK,
        )


def _total(found: Unacknowledged, what: str) -> str:
    latest = f"; the latest: {found.latest}" if found.latest else ""
    return f"{found.count} {what}{latest}"


def _findings_unreadable(snapshot: Snapshot) -> Found:
    if snapshot.findings_problem:
        yield (
            f"earlier findings, or their acknowledgement, are unknown: {snapshot.findings_problem}",
            f"check the disk, and the owner and mode of findings.json and acknowledged.json in {snapshot.wal_dir}; "
            "if one is damaged, `arcpipe wal ack` moves it aside and makes a new one",
        )


# Certificates and tokens


def _reload_refused(snapshot: Snapshot) -> Found:
    if parts := snapshot.reload_refused:
        revoked = ": a token that was revoked since is still accepted" if "the tokens file" in parts else ""
        yield (
            f"the last reload could not use {', '.join(parts)}, and what was in force before still is{revoked}",
            "the log says why ('refused'); mend the file, and reload again (`systemctl reload arcpipe`, or SIGHUP): a "
            "restart would fail, too",
        )


def _certificate_expired(snapshot: Snapshot) -> Found:
    return _certificate(snapshot, is_over=True)


def _certificate_expires(snapshot: Snapshot) -> Found:
    return _certificate(snapshot, is_over=False)


def _certificate(snapshot: Snapshot, is_over: bool) -> Found:
    certificate = _due(snapshot, "certificate")
    if certificate is not None and (certificate.ends <= snapshot.time) == is_over:
        yield (
            f"the certificate of {certificate.name} {_ends(certificate, snapshot)}: clients do not trust it then",
            "renew it, and reload (`systemctl reload arcpipe`, or SIGHUP); if its file is new already, only reload",
        )


def _client_ca_expires(snapshot: Snapshot) -> Found:
    if authority := _due(snapshot, "client_ca"):
        yield (
            f"the authority {authority.name} in server.tls_client_ca {_ends(authority, snapshot)}: clients whose "
            "certificates it has signed are refused then",
            "add the authority's new certificate to the file and reload; give clients certificates that it has signed",
        )


def _token_expires(snapshot: Snapshot) -> Found:
    if token := _due(snapshot, "token"):
        yield (
            f"token {token.name} {_ends(token, snapshot)}: requests with it are refused (401) then",
            "make a new one (`arcpipe token create`), reload, and give it to the sender; then revoke the old one "
            "(`arcpipe token revoke`) and reload again to end this issue",
        )


def _due(snapshot: Snapshot, kind: str) -> Ending | None:
    """Return the next ending of a kind if it is time to warn of it."""
    ending = snapshot.endings.get(kind)
    return ending if ending is not None and snapshot.time >= ending.warn_from else None


def _ends(ending: Ending, snapshot: Snapshot) -> str:
    days = (ending.ends - snapshot.time) / 86_400
    when = f"at {date(ending.ends)}"
    return f"expires in {days:.1f} days, {when}" if days > 0 else f"expired {-days:.1f} days ago, {when}"


RULES: Final = (
    Rule("worker_down", "critical", _worker_down),
    Rule("write_failures", "critical", _write_failures),
    Rule("uploader_down", "critical", _uploader_down),
    Rule("uploads_stopped", "critical", _uploads_stopped),
    Rule("wal_unlisted", "critical", _wal_unlisted),
    Rule("lock_lost", "critical", _lock_lost),
    Rule("wal_replaced", "critical", _wal_replaced),
    Rule("supervisor_down", "critical", _supervisor_down),
    Rule("writes_refused", "critical", _writes_refused),
    Rule("unreadable_segments", "critical", _unreadable_segments),
    Rule("damaged_manifests", "critical", _damaged_manifests),
    Rule("damaged_entries", "critical", _damaged_entries),
    Rule("lost_segments", "critical", _lost_segments),
    Rule("lost_records", "critical", _lost_records),
    Rule("certificate_expires", "critical", _certificate_expired),
    Rule("compaction_mismatch", "critical", _compaction_mismatch),
    *tables.CRITICAL,
    Rule("compaction_stopped", "warning", _compaction_stopped),
    Rule("compaction_down", "warning", _compaction_down),
    Rule("compaction_failing", "warning", _compaction_failing),
    *tables.WARNING,
    Rule("segment_too_old", "warning", _segment_too_old),
    Rule("failed_starts", "warning", _failed_starts),
    Rule("disk_usage", "warning", _disk_usage),
    Rule("credentials_refused", "warning", _credentials_refused),
    Rule("uploads_behind", "warning", _uploads_behind),
    Rule("dead_letters", "warning", _dead_letters),
    Rule("quarantine", "warning", _quarantine),
    Rule("findings_unreadable", "warning", _findings_unreadable),
    Rule("keys_unreadable", "warning", _keys_unreadable),
    Rule("reload_refused", "warning", _reload_refused),
    Rule("certificate_expires", "warning", _certificate_expires),
    Rule("client_ca_expires", "warning", _client_ca_expires),
    Rule("token_expires", "warning", _token_expires),
    Rule("retention_waits", "info", _retention_waits),
    Rule("keys_cut", "info", _keys_cut),
    Rule("segment_near_limit", "info", _segment_near_limit),
    Rule("restarts", "info", _restarts),
    Rule("rescued_values", "info", _rescued_values),
)
"""All rules, the worst first: the order in which the issues of an instance are listed."""
