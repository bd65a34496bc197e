"""A snapshot as Prometheus metrics, by Prometheus' conventions: base units, counters end in `_total`.

Cardinality is bounded: workers, states, retry kinds, known routes and statuses, and the first databases by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from arcpipe.counters import LIMITED_BY, LIMITS, REFUSAL_CODES, Usage
from arcpipe.monitoring import health
from arcpipe.monitoring.snapshot import upkeep_of
from arcpipe.units import KB

if TYPE_CHECKING:
    from typing import TypeAlias

    from arcpipe.monitoring.committer_state import CommitterState
    from arcpipe.monitoring.process_state import CompactionState, Distribution, UploaderState, WorkerState
    from arcpipe.monitoring.snapshot import Snapshot

    _Process: TypeAlias = WorkerState | UploaderState | CompactionState | CommitterState

_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OTHER: Final = "_other"  # the label of all databases that are not counted by name
# Versions of each format that a scraper may ask for; the output is valid in all of them.
_WRITTEN: Final = {"application/openmetrics-text": ("1.0.0", "0.0.1"), "text/plain": ("0.0.4", "1.0.0")}
# Characters of an Accept header that are read: the loop does it, and 32 kB of commas take 50 ms. Prometheus sends 250.
_MAX_ACCEPT: Final = KB


def render(snapshot: Snapshot, as_openmetrics: bool = False) -> tuple[bytes, str]:
    """Return the body of `/metrics` and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshot))
    if as_openmetrics:
        text: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
        return text, _OPENMETRICS
    return generate_latest(registry), _TEXT


def prefers_openmetrics(accept: str) -> bool:
    """Tell whether an Accept header (RFC 9110 §12.5.1) accepts OpenMetrics, and prefers no other format.

    Invalid parts of the header are ignored, and so are those after _MAX_ACCEPT characters. Nothing of it is copied to
    the answer.
    """
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    if len(accept) > _MAX_ACCEPT:
        accept = accept[:_MAX_ACCEPT].rpartition(",")[0]
    for offer in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in offer.split(";"))
        named = dict(parameter.replace('"', "").replace(" ", "").partition("=")[::2] for parameter in parameters)
        if kind in best and named.get("version", _WRITTEN[kind][0]) in _WRITTEN[kind]:
            best[kind] = max(best[kind], _quality(named.get("q", "1")))
    return best["application/openmetrics-text"] > 0 and best["application/openmetrics-text"] >= best["text/plain"]


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0


class _Families(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from families(self._snapshot)


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Return every metric family, with its samples."""
    yield from _instance(snapshot)
    yield from _requests(snapshot)
    yield from _access_log(snapshot)
    yield from _writes(snapshot)
    yield from _wal(snapshot)
    yield from _backlog(snapshot)
    yield from _disk(snapshot)
    yield from _upload(snapshot)
    yield from _keys(snapshot)
    yield from _compaction(snapshot)
    yield from _tables(snapshot)


def _instance(snapshot: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "arcpipe_build", "Version and sync mode.", {"version": snapshot.version, "sync_mode": snapshot.sync_mode}
    )
    yield _gauge("arcpipe_uptime_seconds", "Seconds since the supervisor started.", snapshot.uptime_seconds)
    yield _gauge("arcpipe_draining", "1 while the instance shuts down.", int(snapshot.draining))
    issues = health.judge(snapshot)
    yield _gauge("arcpipe_healthy", "1 if /api/wal/health has no issue above info.", int(health.is_healthy(issues)))
    family = GaugeMetricFamily("arcpipe_issues", "Health issues that hold now, by code.", labels=["code", "severity"])
    for code, severity in sorted({(issue.code, issue.severity) for issue in issues}):
        count = sum(issue.code == code for issue in issues)
        family.add_metric([code, severity], count)
    yield family
    restarts = CounterMetricFamily("arcpipe_restarts", "Processes that died and were replaced.", labels=["process"])
    restarts.add_metric(["ingest"], snapshot.worker_restarts)
    restarts.add_metric(["uploader"], snapshot.uploader_restarts)
    upkeep = upkeep_of(snapshot)
    for name, process in upkeep:
        restarts.add_metric([name], process.restarts)
    yield restarts
    processes: list[tuple[str, _Process]] = [("uploader", snapshot.uploader), *upkeep]
    processes += [(f"ingest {worker.slot}", worker) for worker in snapshot.workers]
    up = GaugeMetricFamily("arcpipe_process_up", "1 while a process sends heartbeats.", labels=["process"])
    text = "Consecutive starts that failed, or were followed by an early death; 0 once a process is well."
    failed = GaugeMetricFamily("arcpipe_process_failed_starts", text, labels=["process"])
    up.add_metric(["supervisor"], int(snapshot.supervisor_alive))
    for name, one in processes:
        up.add_metric([name], int(one.alive))
        failed.add_metric([name], one.failed_starts)
    yield up
    yield failed
    yield from _processes(snapshot)
    yield from _endings(snapshot)


def _endings(snapshot: Snapshot) -> Iterator[Metric]:
    """Return the families of certificates and tokens, which expire."""
    files = GaugeMetricFamily(
        "arcpipe_certificate_expiry_timestamp_seconds",
        "Expiry of the certificate in force, or of the clients' authority that expires first, Unix time.",
        labels=["file"],
    )
    for kind, setting in (("certificate", "server.tls_cert"), ("client_ca", "server.tls_client_ca")):
        if kind in snapshot.endings:
            files.add_metric([setting], snapshot.endings[kind].ends)
    yield files
    token = GaugeMetricFamily(
        "arcpipe_token_expiry_timestamp_seconds",
        "Expiry of the token that expires first, Unix time. An expired token counts for a week.",
    )
    if "token" in snapshot.endings:
        token.add_metric([], snapshot.endings["token"].ends)
    yield token
    tokens = GaugeMetricFamily("arcpipe_tokens", "Tokens by state: active, expired, revoked.", labels=["state"])
    for state, count in snapshot.tokens.items():
        tokens.add_metric([state], count)
    yield tokens


def _processes(snapshot: Snapshot) -> Iterator[Metric]:
    """Return families named as in Prometheus' own process collectors. A figure that cannot be read has no sample."""
    figures = snapshot.processes.items()
    for name, text, values in (
        ("resident_memory_bytes", "Resident memory.", ((process, one.memory_bytes) for process, one in figures)),
        ("open_fds", "Open file descriptors.", ((process, one.open_files) for process, one in figures)),
        ("max_fds", "Limit of open file descriptors.", ((process, one.max_files) for process, one in figures)),
        (
            "start_time_seconds",
            "Start of the process, Unix time.",
            ((process, one.started) for process, one in figures),
        ),
    ):
        family = GaugeMetricFamily(f"arcpipe_process_{name}", text, labels=["process"])
        for process, value in values:
            if value is not None:
                family.add_metric([process], value)
        yield family
    text = "CPU time in user and kernel mode since the process started."
    cpu = CounterMetricFamily("arcpipe_process_cpu_seconds", text, labels=["process"])
    for process, one in figures:
        if one.cpu_seconds is not None:
            cpu.add_metric([process], one.cpu_seconds)
    yield cpu


def _by_slot(snapshot: Snapshot) -> list[tuple[str, WorkerState]]:
    return [(str(worker.slot), worker) for worker in snapshot.workers]


def _requests(snapshot: Snapshot) -> Iterator[Metric]:
    workers = _by_slot(snapshot)
    yield _gauges("arcpipe_connections", "Open client connections.", ((slot, w.connections) for slot, w in workers))
    yield _gauges(
        "arcpipe_connections_limit",
        "Connections that a worker accepts at most; further ones are answered 503.",
        ((slot, w.max_connections) for slot, w in workers),
    )
    requests = CounterMetricFamily(
        "arcpipe_http_requests", "Requests answered, by route and status.", labels=["route", "status"]
    )
    for route, by_status in snapshot.requests.items():
        for status, count in by_status.items():
            requests.add_metric([route, status], count)
    yield requests
    written = CounterMetricFamily("arcpipe_write_requests", "Write requests by outcome.", labels=["worker", "outcome"])
    for slot, worker in workers:
        written.add_metric([slot, "accepted"], worker.writes_accepted)
        written.add_metric([slot, "refused"], worker.writes_refused)
    yield written
    keyed = CounterMetricFamily(
        "arcpipe_keyed_requests",
        "Write requests with an idempotency key: written, or answered again without being written.",
        labels=["worker", "outcome"],
    )
    for slot, worker in workers:
        keyed.add_metric([slot, "written"], worker.keyed_writes)
        keyed.add_metric([slot, "replayed"], worker.replayed_writes)
    yield keyed
    refused = CounterMetricFamily(
        "arcpipe_refused_requests", "Requests refused, by the code of the answer.", labels=["reason"]
    )
    for reason in REFUSAL_CODES:
        refused.add_metric([reason], sum(worker.refused[reason] for _, worker in workers))
    yield refused
    limited = CounterMetricFamily(
        "arcpipe_limited_requests",
        "Requests above a limit of [limits], by whose limit and which one.",
        labels=["by", "limit"],
    )
    for by in LIMITED_BY:
        for limit in LIMITS:
            limited.add_metric([by, limit], sum(worker.limited[by][limit] for _, worker in workers))
    yield limited
    yield _counters(
        "arcpipe_limits_untracked",
        "Searches for a free meter of a client that found none (limits.max_tracked).",
        ((slot, w.limits_untracked) for slot, w in workers),
    )


def _access_log(snapshot: Snapshot) -> Iterator[Metric]:
    workers = _by_slot(snapshot)
    yield _counters(
        "arcpipe_access_log_lines", "Lines of the access log.", ((slot, w.access_log_lines) for slot, w in workers)
    )
    yield _counters(
        "arcpipe_access_log_dropped_lines",
        "Lines of the access log that were never written.",
        ((slot, w.access_log_dropped) for slot, w in workers),
    )


def _writes(snapshot: Snapshot) -> Iterator[Metric]:
    workers = _by_slot(snapshot)
    records = CounterMetricFamily("arcpipe_records", "Records accepted, by database.", labels=["database"])
    body_bytes = CounterMetricFamily(
        "arcpipe_body_bytes", "Bytes of accepted write bodies, decoded, by database.", labels=["database"]
    )
    usages: dict[str, Usage] = {}
    for name, usage in sorted(snapshot.databases.items()):
        label = name or _OTHER
        before = usages.get(label, Usage(0, 0, 0))  # a database may have this name, and a series comes once
        usages[label] = Usage(*(mine + more for mine, more in zip(before, usage, strict=True)))
    for label, usage in usages.items():
        records.add_metric([label], usage.records)
        body_bytes.add_metric([label], usage.body_bytes)
    yield records
    yield body_bytes
    yield _histograms(
        "arcpipe_ack_latency_seconds",
        "Time from the last byte of a write request to its acknowledgement.",
        ((slot, worker.ack_seconds) for slot, worker in workers),
    )
    yield _histograms(
        "arcpipe_event_loop_lag_seconds",
        "Delay of a timer in a worker's event loop, measured four times a second.",
        ((slot, worker.loop_lag_seconds) for slot, worker in workers),
    )


def _wal(snapshot: Snapshot) -> Iterator[Metric]:
    workers = _by_slot(snapshot)
    for name, text, values in (
        ("entries", "Entries written to the WAL.", ((slot, w.entries) for slot, w in workers)),
        ("bytes", "Bytes written to the WAL.", ((slot, w.entry_bytes) for slot, w in workers)),
        ("commits", "Groups committed.", ((slot, w.commits) for slot, w in workers)),
        ("syncs", "Syncs of the WAL.", ((slot, w.syncs) for slot, w in workers)),
        ("rotations", "Segments sealed.", ((slot, w.rotations) for slot, w in workers)),
        ("write_failures", "Groups that could not be written.", ((slot, w.write_failures) for slot, w in workers)),
    ):
        yield _counters(f"arcpipe_wal_{name}", text, values)
    yield _histograms(
        "arcpipe_wal_sync_latency_seconds",
        "Duration of one sync of the WAL.",
        ((slot, worker.sync_seconds) for slot, worker in workers),
    )
    yield _histograms(
        "arcpipe_wal_group_entries",
        "Entries (requests) that were committed together.",
        ((slot, worker.group_entries) for slot, worker in workers),
    )
    yield _gauges(
        "arcpipe_wal_segment_bytes", "Size of the active segment.", ((slot, w.segment_bytes) for slot, w in workers)
    )
    yield _gauges(
        "arcpipe_wal_segment_age_seconds",
        "Age of the active segment's first record; 0 if it has none.",
        ((slot, worker.segment_age_seconds) for slot, worker in workers),
    )
    yield _gauge("arcpipe_wal_segment_limit_bytes", "wal.max_size_mb, in bytes.", snapshot.max_size_bytes)
    yield _gauge("arcpipe_wal_segment_limit_seconds", "wal.max_age_seconds.", snapshot.max_age_seconds)


def _backlog(snapshot: Snapshot) -> Iterator[Metric]:
    files = GaugeMetricFamily("arcpipe_wal_files", "Segment files by state.", labels=["state"])
    sizes = GaugeMetricFamily("arcpipe_wal_files_bytes", "Size of the segment files by state.", labels=["state"])
    for state, found in snapshot.segments.items():
        files.add_metric([state], found.files)
        sizes.add_metric([state], found.bytes)
    yield files
    yield sizes
    yield _gauge(
        "arcpipe_wal_listed",
        "1 while the WAL directory can be listed.",
        int(not (snapshot.wal_dir_problem or snapshot.wal_unlisted)),
    )
    yield _gauge(
        "arcpipe_wal_unrecovered_segments",
        "Segments of dead workers that could not be read yet; part of the backlog.",
        snapshot.unrecovered_segments,
    )
    yield _gauge("arcpipe_wal_unrecovered_bytes", "Their size.", snapshot.unrecovered_bytes)
    known = snapshot.supervisor_alive and not snapshot.wal_unlisted
    yield _known_gauge("arcpipe_backlog_bytes", "Segments that wait for their upload.", snapshot.backlog_bytes, known)
    text = "Part of the backlog that waits for its turn, in no batch yet: see uploader.interval_seconds."
    yield _known_gauge("arcpipe_backlog_waiting_bytes", text, snapshot.waiting_bytes, known)
    yield _gauge("arcpipe_backlog_limit_bytes", "wal.max_backlog_mb, in bytes.", snapshot.max_backlog_bytes)
    text = "Age of the oldest record that is not in the store yet; 0 if there is none."
    yield _known_gauge("arcpipe_oldest_unshipped_seconds", text, snapshot.oldest_unshipped_seconds, known)
    yield _gauge(
        "arcpipe_oldest_unshipped_limit_seconds",
        "Age above which uploads are behind: flush.max_age_seconds, uploader.interval_seconds and 300 s together.",
        snapshot.unshipped_limit_seconds,
    )


def _disk(snapshot: Snapshot) -> Iterator[Metric]:
    known = snapshot.supervisor_alive and snapshot.disk_total_bytes > 0
    text = "Free space on the WAL's disk."
    yield _known_gauge("arcpipe_wal_disk_free_bytes", text, snapshot.disk_free_bytes, known)
    yield _gauge("arcpipe_wal_disk_min_free_bytes", "wal.min_free_mb, in bytes.", snapshot.min_free_bytes)
    text = "Size of the WAL's disk, without the space reserved for root."
    yield _known_gauge("arcpipe_wal_disk_size_bytes", text, snapshot.disk_total_bytes, known)


def _upload(snapshot: Snapshot) -> Iterator[Metric]:
    uploader = snapshot.uploader
    for name, text, value in (
        ("batches", "Batches uploaded.", uploader.batches),
        ("segments", "Segments uploaded.", uploader.segments),
        ("entries", "Entries converted.", uploader.entries),
        ("rows", "Rows written to Parquet.", uploader.rows),
        ("files", "Objects written to the store.", uploader.files),
        ("file_bytes", "Bytes written to the store.", uploader.file_bytes),
        ("rescued_values", "Values that fit no column, such as arrays, and went to _rescued_data.", uploader.rescued),
        ("dead_letters", "Entries that could not be converted and were kept as they are.", uploader.dead_letters),
        ("damaged_entries", "Damaged places in sealed segments.", uploader.damaged),
        ("lost_segments", "Segments that vanished, or lost entries, before their upload.", uploader.lost_segments),
    ):
        yield CounterMetricFamily(f"arcpipe_upload_{name}", text, value)
    for name, text, value in (
        ("unreadable_segments", "Sealed segments that cannot be read now.", uploader.unreadable_segments),
        ("damaged_manifests", "Damaged manifests that are kept aside.", uploader.damaged_manifests),
        ("stopped", "1 while a manifest or registry of an unknown version stops uploads.", int(uploader.stopped)),
    ):
        yield _gauge(f"arcpipe_upload_{name}", text, value)
    retries = CounterMetricFamily("arcpipe_upload_retries", "Failures that were tried again.", labels=["kind"])
    for kind, count in uploader.retries.items():
        retries.add_metric([kind], count)
    yield retries
    text = "Duration of one object's upload with its retries; small objects in a directory share one."
    family = HistogramMetricFamily("arcpipe_upload_latency_seconds", text)
    family.add_metric([], _buckets(uploader.upload_seconds), uploader.upload_seconds.sum)
    yield family
    if uploader.last_upload_age_seconds is not None:
        yield _gauge(
            "arcpipe_upload_last_success_timestamp_seconds",
            "End of the last upload of a batch, Unix time.",
            snapshot.time - uploader.last_upload_age_seconds,
        )


def _keys(snapshot: Snapshot) -> Iterator[Metric]:
    uploader = snapshot.uploader
    text = "Idempotency keys that came again with another body; the first one counts."
    other = uploader.other_bodies + sum(worker.other_bodies for worker in snapshot.workers)
    for name, help_, value in (
        ("repeated_entries", "Entries dropped, because an earlier one has their idempotency key.", uploader.repeated),
        ("other_bodies", text, other),
    ):
        yield CounterMetricFamily(f"arcpipe_idempotency_{name}", help_, value)
    text = "Idempotency keys forgotten, for their age or because idempotency.max_keys newer ones are known."
    expired = CounterMetricFamily("arcpipe_idempotency_expired_keys", text, labels=["by"])
    expired.add_metric(["age"], uploader.keys_expired - uploader.keys_cut)
    expired.add_metric(["number"], uploader.keys_cut)
    yield expired
    yield _gauge("arcpipe_idempotency_keys", "Idempotency keys that are known.", uploader.keys)
    yield _gauge(
        "arcpipe_idempotency_unreadable_files",
        "Files of idempotency keys that cannot be read now.",
        uploader.unreadable_key_files,
    )


def _compaction(snapshot: Snapshot) -> Iterator[Metric]:
    compaction = snapshot.compaction
    if compaction is None:
        return
    for name, text, value in (
        ("looks", "Looks through the whole lake.", compaction.looks),
        ("merges", "Merges of files of one hour.", compaction.merges),
        ("input_files", "Files that were merged.", compaction.files_in),
        ("output_files", "Files that merges made.", compaction.files_out),
        ("input_bytes", "Bytes of the files that were merged.", compaction.bytes_in),
        ("output_bytes", "Bytes of the files that merges made.", compaction.bytes_out),
        ("rows", "Rows in the files that merges made.", compaction.rows),
        ("superseded_rows", "Rows that a later one of the same point replaced.", compaction.superseded),
        ("failures", "Merges and looks that failed and are tried again.", compaction.failures),
        ("mismatches", "Merges that wrote other rows than they had read, and were undone.", compaction.mismatches),
    ):
        yield CounterMetricFamily(f"arcpipe_compaction_{name}", text, value)
    for name, text, value in (
        ("hours", "Hours of a measurement of which retention deleted files.", compaction.expired_hours),
        ("files", "Files that retention deleted.", compaction.expired_files),
        ("bytes", "Bytes of the files that retention deleted.", compaction.expired_bytes),
    ):
        yield CounterMetricFamily(f"arcpipe_retention_deleted_{name}", text, value)
    yield _gauge(
        "arcpipe_retention_from_timestamp_seconds",
        "Unix time before which retention deletes nothing; 0 if it does not wait.",
        compaction.retention_from,
    )
    for name, text, value in (
        ("waiting_hours", "Hours that this look has still to merge.", compaction.waiting_hours),
        ("waiting_files", "Files in these hours.", compaction.waiting_files),
        ("left_files", "Files that cannot be merged and stay as they are.", compaction.left_alone),
        ("failed_looks", "Looks in a row that failed, at least in part; 0 once one is well.", compaction.failed_looks),
        ("stopped", "1 while a plan waits for an operator.", int(compaction.stopped)),
    ):
        yield _gauge(f"arcpipe_compaction_{name}", text, value)


def _tables(snapshot: Snapshot) -> Iterator[Metric]:
    committer = snapshot.committer
    if committer is None:
        return
    for name, text, value in (
        ("rounds", "Rounds of commits.", committer.rounds),
        ("commits", "Commits that added files to a table.", committer.commits),
        ("files", "Files that became a part of tables.", committer.files),
        ("rows", "Rows in these files.", committer.rows),
        ("conflicts", "Attempts that another writer overtook.", committer.conflicts),
        ("failures", "Commits and rounds that failed and are tried again.", committer.failures),
        ("recreated", "Tables that were made anew, because somebody had dropped them.", committer.recreated),
        ("handed_over", "Batches that were handed over to be committed.", committer.handed_over),
        ("upkeeps", "Upkeeps of a table.", committer.maintained),
        ("upkeep_failures", "Upkeeps that failed and are tried again.", committer.upkeep_failures),
    ):
        yield CounterMetricFamily(f"arcpipe_tables_{name}", text, value)
    gauges: list[tuple[str, str, float]] = [
        ("waiting_batches", "Batches that are uploaded and not in all of their tables.", committer.waiting_batches),
        ("waiting_bytes", "Bytes of their files.", committer.waiting_bytes),
        ("waiting_limit_bytes", "At as many, uploads wait (tables.max_uncommitted_mb).", committer.max_waiting_bytes),
        ("oldest_waiting_seconds", "Age of the oldest of them; 0 if there is none.", committer.oldest_waiting_seconds),
        ("round_seconds", "Duration of the last round that committed anything.", committer.round_seconds),
        ("interval_seconds", "Time between two rounds (tables.commit_interval_seconds).", committer.interval_seconds),
        ("failing", "Tables whose last commit failed and is tried again.", committer.failing),
        ("refused", "Tables that wait for a person's decision.", committer.refused),
        ("files_missing", "Tables that wait because files are gone or cannot be read.", committer.missing),
        ("stopped", "1 while nothing at all may be committed.", int(committer.stopped)),
        ("unreachable", "1 while catalogue or warehouse do not work.", int(committer.unreachable)),
    ]
    yield from (_gauge(f"arcpipe_tables_{name}", text, value) for name, text, value in gauges)
    if committer.last_commit_age_seconds is not None:
        yield _gauge(
            "arcpipe_tables_last_commit_timestamp_seconds",
            "Time of the last commit, Unix time.",
            snapshot.time - committer.last_commit_age_seconds,
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _known_gauge(name: str, text: str, value: float, known: bool) -> Metric:
    """Return a gauge; without a sample if its value is unknown, because an old value, or 0, would mislead."""
    return GaugeMetricFamily(name, text, value if known else None)


def _gauges(name: str, text: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["worker"])
    for slot, value in values:
        family.add_metric([slot], value)
    return family


def _counters(name: str, text: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["worker"])
    for slot, value in values:
        family.add_metric([slot], value)
    return family


def _histograms(name: str, text: str, values: Iterable[tuple[str, Distribution]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["worker"])
    for slot, distribution in values:
        family.add_metric([slot], _buckets(distribution), distribution.sum)
    return family


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Return cumulative buckets, as Prometheus has them."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(_bound, distribution.bounds), "+Inf"], distribution.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _bound(value: float) -> str:
    return f"{value:g}"
