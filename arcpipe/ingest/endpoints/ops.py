"""Endpoints for operators: health, metrics, status and the WAL API. Any worker answers for the whole instance.

All but the two for load balancers look at files or render text. They do so on threads, so that writes do not wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from arcpipe import __version__
from arcpipe.codec.effort import Check
from arcpipe.counters import ANNOUNCED, BEGUN, Counters, Node
from arcpipe.errors import BadPayload
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.background import Background
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.router import ADMIN, OPEN, READ, Handler
from arcpipe.monitoring import health, metrics, snapshot, status_page
from arcpipe.monitoring.directory_look import Looker
from arcpipe.units import MB
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, SegmentFile, WALDirectory
from arcpipe.wal.recovery import remove_recovered

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings
    from arcpipe.monitoring.snapshot import Snapshot, WorkerState

log = logging.getLogger(__name__)

_PAGE: Final = responses.body(200, b"text/html; charset=utf-8", status_page.PAGE, status_page.HEADERS)
_PAGE_NOT_MODIFIED: Final = responses.empty(304, status_page.HEADERS)
_DRAINING: Final = responses.error(503, "draining", "this instance is shutting down", b"Retry-After: 5\r\n")
# Clients that get one shared answer in one turn of the loop: thousands may have asked for it.
_TOLD_IN_A_TURN: Final = 64
_MAX_AGE_HOURS: Final = 24 * 365 * 100


class OpsEndpoints:
    """Handlers of all paths that neither write nor belong to InfluxDB."""

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        admission: Admission,
        slot: int,
        paths: Callable[[], Sequence[str]],
    ) -> None:
        """Answer for one instance.

        Args:
            paths: returns the paths of the router's table, in its order; called with requests only.
        """
        self._settings = settings
        self._counters = counters
        self._admission = admission
        self._slot = slot
        self._thread = Background("ops", lambda: True, lambda: None, interrupts=False)
        # For answers that need the directory: its disk may not answer, and the others must not wait for it.
        self._disk_thread = Background("ops-disk", lambda: True, lambda: None, interrupts=False)
        self._looker = Looker(WALDirectory(settings.wal.dir))
        self._paths = paths

    def table(self) -> dict[tuple[str, str], tuple[Handler, str]]:
        """Return handler and scope by method and path."""
        table: dict[tuple[str, str], tuple[Handler, str]] = {
            ("GET", "/"): (self.page, OPEN),
            ("GET", "/health"): (self.health, OPEN),
            ("GET", "/ready"): (self.ready, OPEN),
            ("GET", "/-/healthy"): (self.health, OPEN),  # the same two for Prometheus's tools
            ("GET", "/-/ready"): (self.ready, OPEN),
            ("GET", "/metrics"): (self._metrics_in_its_form(), READ),
            ("GET", "/api/v1/status"): (self._together(self._status), READ),
        }
        for name, work in {
            "wal/status": self._wal_status,
            "wal/stats": self._wal_stats,
            "wal/health": self._wal_health,
            "monitoring/buffer": self._buffer,
        }.items():
            table["GET", f"/api/{name}"] = table["GET", f"/api/v1/{name}"] = (self._together(work), READ)
        for name, work in {"wal/files": self._wal_files, "wal/recovery/history": self._recovery_history}.items():
            handler = self._together(work, self._disk_thread)
            table["GET", f"/api/{name}"] = table["GET", f"/api/v1/{name}"] = (handler, READ)
        cleanup = (self._later(self._cleanup), ADMIN)
        table["POST", "/api/wal/cleanup"] = table["POST", "/api/v1/wal/cleanup"] = cleanup
        return table

    def page(self, exchange: Exchange) -> None:
        """Answer with the status page, which fetches its data itself; 304 for a browser that has it already."""
        known = exchange.headers.get(b"if-none-match", b"")
        exchange.answer(_PAGE_NOT_MODIFIED if status_page.ETAG in known else _PAGE)

    def health(self, exchange: Exchange) -> None:
        """Answer that this worker is alive. Clients of InfluxDB 2 look for `name` and "pass"."""
        status = {
            "name": "arcpipe",
            "status": "pass",
            "message": "accepts requests",
            "version": __version__,
            "workers": self._counters.workers,
        }
        exchange.answer(responses.json(200, status))

    def ready(self, exchange: Exchange) -> None:
        """Answer whether a load balancer should send writes here."""
        if self._counters.node[Node.DRAINING] in (ANNOUNCED, BEGUN):
            exchange.answer(_DRAINING)
            return
        exchange.answer(self._admission.refusal() or responses.json(200, {"status": "ready"}))

    # On the thread

    def _metrics(self, as_openmetrics: bool, _: Exchange) -> bytes:
        text, content_type = metrics.render(self._take(), as_openmetrics)
        return responses.body(200, content_type.encode("ascii"), text)

    def _status(self, exchange: Exchange) -> bytes:
        """Give all figures at once, as the status page and `arcpipe status` show them."""
        return responses.body(200, b"application/json", snapshot.encode(health.picture(self._take(), self._slot)))

    def _wal_status(self, exchange: Exchange) -> bytes:
        taken = self._take()
        stats = [self._stats(taken, worker) for worker in taken.workers]
        mine = stats[self._slot - 1]
        return responses.json(
            200,
            {
                "enabled": taken.wal_enabled,
                "writer_type": "group commit, columnar MessagePack",
                "configuration": {
                    "sync_mode": taken.sync_mode,
                    "worker_id": self._slot,
                    "current_file": mine["current_file"],
                    "wal_directory": taken.wal_dir,
                    "max_size_mb": taken.max_size_bytes // MB,
                    "max_age_seconds": taken.max_age_seconds,
                },
                "stats": mine,
                "workers": stats,
                "totals": _totals(stats),
            },
        )

    def _wal_stats(self, exchange: Exchange) -> bytes:
        taken = self._take()
        stats = [self._stats(taken, worker) for worker in taken.workers]
        return responses.json(
            200, {"enabled": taken.wal_enabled, **stats[self._slot - 1], "workers": stats, "totals": _totals(stats)}
        )

    def _wal_files(self, exchange: Exchange) -> bytes:
        directory = WALDirectory(self._settings.wal.dir)
        states = {"active": ACTIVE, "completed": SEALED, "recovered": RECOVERED}
        found = {name: directory.segments(state) for name, state in states.items()}
        total = sum(file.size for files in found.values() for file in files)
        listed = {name: [_file(file) for file in files] for name, files in found.items()}
        return responses.json(200, {**listed, "total_size_mb": _mb(total), "wal_directory": directory.path})

    def _wal_health(self, exchange: Exchange) -> bytes:
        taken = self._take()
        issues = health.judge(taken)
        stats = [self._stats(taken, worker) for worker in taken.workers]
        names = ("current_size_mb", "current_age_seconds", "total_entries", "total_rotations")
        return responses.json(
            200,
            {
                "healthy": health.is_healthy(issues),
                "wal_enabled": taken.wal_enabled,
                "issues": [issue.message for issue in issues],
                "recommendations": [issue.recommendation for issue in issues],
                "alerts": [{"code": issue.code, "severity": issue.severity} for issue in issues],
                "stats_summary": {name: stats[self._slot - 1][name] for name in names},
                "workers": [{"worker_id": mine["worker_id"], **{name: mine[name] for name in names}} for mine in stats],
                "totals": _totals(stats),
            },
        )

    def _recovery_history(self, exchange: Exchange) -> bytes:
        now = time.time()
        files = sorted(
            WALDirectory(self._settings.wal.dir).segments(RECOVERED), key=lambda file: file.modified, reverse=True
        )
        return responses.json(
            200,
            {
                "recovered_files": [
                    {
                        "name": file.filename,
                        "size_mb": _mb(file.size),
                        "recovered_at": int(file.modified),
                        "age_hours": round(max(0.0, now - file.modified) / 3600, 2),
                    }
                    for file in files
                ],
                "last_recovery": int(files[0].modified) if files else None,
                "total_recovered": len(files),
            },
        )

    def _cleanup(self, exchange: Exchange) -> bytes:
        text = exchange.parameters().get("max_age_hours", "24")
        try:
            hours = float(text)
        except ValueError:
            hours = -1.0
        if not 0 <= hours <= _MAX_AGE_HOURS:
            raise BadPayload(f"query parameter 'max_age_hours': {text[:80]!r} is no number of hours from 0 up")
        count, freed = remove_recovered(WALDirectory(self._settings.wal.dir), hours * 3600)
        log.info("cleanup asked for by a client: removed %d recovered segments, %.1f MB", count, freed / 1e6)
        return responses.json(
            200,
            {
                "deleted_count": count,
                "freed_mb": _mb(freed),
                "max_age_hours": int(hours) if hours == int(hours) else hours,
                "message": f"Cleaned up {count} old WAL files, freed {_mb(freed)} MB",
            },
        )

    def _buffer(self, exchange: Exchange) -> bytes:
        """Give Arc's figures of its write buffer: here those of records on disk that are not in the store yet."""
        taken = self._take()
        stats = [self._stats(taken, worker) for worker in taken.workers]
        return responses.json(
            200,
            {
                "current_entries_buffered": sum(worker.segment_entries for worker in taken.workers),
                "total_records_written": taken.uploader.rows,
                "total_flushes": taken.uploader.batches,
                "total_errors": sum(taken.uploader.retries.values()),
                "oldest_buffer_age_seconds": round(taken.oldest_unshipped_seconds, 3),
                "backlog_mb": _mb(taken.backlog_bytes),
                "backlog_segments": taken.backlog_segments,
                "wal": {**stats[self._slot - 1], "enabled": taken.wal_enabled, "totals": _totals(stats)},
            },
        )

    def _take(self) -> Snapshot:
        return snapshot.take(self._settings, self._counters, self._paths(), self._looker.look())

    def _stats(self, taken: Snapshot, worker: WorkerState) -> dict[str, Any]:
        """Return a worker's WAL in the fields of Arc's `stats`."""
        return {
            "worker_id": worker.slot,
            "current_file": os.path.join(taken.wal_dir, worker.segment) if worker.segment else None,
            "current_size_mb": _mb(worker.segment_bytes),
            "current_age_seconds": round(worker.segment_age_seconds),
            "sync_mode": taken.sync_mode,
            "total_entries": worker.entries,
            "total_bytes": worker.entry_bytes,
            "total_syncs": worker.syncs,
            "total_rotations": worker.rotations,
            "total_records": worker.records,
            "total_commits": worker.commits,
            "total_failures": worker.write_failures,
        }

    def _metrics_in_its_form(self) -> Handler:
        """Make the handler of metrics. The answer depends on what a header asks for, not on its spelling."""
        as_text, as_openmetrics = (self._together(partial(self._metrics, form)) for form in (False, True))

        def handle(exchange: Exchange) -> None:
            accept = exchange.headers.get(b"accept", b"").decode("latin-1")
            (as_openmetrics if metrics.prefers_openmetrics(accept) else as_text)(exchange)

        return handle

    def _together(self, work: Callable[[Exchange], bytes], thread: Background | None = None) -> Handler:
        """Make a handler like that of `_later`, with one answer for all requests that came before its making began.

        However many clients ask, each waits for the making of two answers at most, and memory holds one.

        Args:
            thread: where answers are made; by default the one that waits for no disk.
        """
        thread = thread or self._thread
        waiting: list[deque[Exchange]] = []  # those who get the next answer, if anybody waits for it

        def handle(exchange: Exchange) -> None:
            others = waiting[:]  # in one step: the thread takes it at any moment
            if others:
                others[0].append(exchange)
                return
            waiting.append(deque((exchange,)))
            made: list[bytes] = []
            asked: list[deque[Exchange]] = []

            def make(_: Check) -> None:
                asked.append(waiting.pop())  # later requests get an answer that is made later
                made.append(_answer(work, exchange))

            thread.add(_ALL, 0, make, lambda _: _tell(asked[0], made[0]))

        return handle

    def _later(self, work: Callable[[Exchange], bytes]) -> Handler:
        """Make a handler whose answers are made on the thread that may wait for the disk."""

        def handle(exchange: Exchange) -> None:
            made: list[bytes] = []
            self._disk_thread.add(
                exchange.connection,
                0,
                lambda _: made.append(_answer(work, exchange)),
                lambda _: exchange.answer(made[0]) if made else exchange.cut_off(),
            )

        return handle


class _AllClients:
    """The client of work that is done for several: it goes on even if one of them is gone."""

    address = ""
    is_gone = False


_ALL: Final = _AllClients()


def _tell(exchanges: deque[Exchange], answer: bytes) -> None:
    """Give the answer to all of them, some in each turn of the loop."""
    for _ in range(min(len(exchanges), _TOLD_IN_A_TURN)):
        exchanges.popleft().answer(answer)
    if exchanges:
        asyncio.get_running_loop().call_soon(_tell, exchanges, answer)


def _answer(work: Callable[[Exchange], bytes], exchange: Exchange) -> bytes:
    try:
        return work(exchange)
    except BadPayload as error:
        return responses.error(400, "bad_request", str(error))
    except OSError as error:
        reason = f"cannot read the WAL directory: {error.strerror or error}"
        return responses.error(503, "log_unreadable", reason, b"Retry-After: 5\r\n")
    except Exception:
        log.exception("a bug in the handler of %r; answered 500", exchange.path, extra=exchange.log_fields())
        return responses.INTERNAL_ERROR


def _totals(stats: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in stats[0] if name.startswith("total_")]
    return {
        "workers": len(stats),
        "current_size_mb": round(sum(mine["current_size_mb"] for mine in stats), 3),
        **{name: sum(mine[name] for mine in stats) for name in names},
    }


def _file(file: SegmentFile) -> dict[str, Any]:
    return {
        "name": file.filename,
        "size_mb": _mb(file.size),
        "modified": int(file.modified),
        "path": file.path,
    }


def _mb(size_bytes: int) -> float:
    return round(size_bytes / MB, 3)
