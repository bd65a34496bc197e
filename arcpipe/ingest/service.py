"""The parts of a worker's server, built in the order in which they need each other.

    service = build(settings, 1, counters, access, limits, open_commit)
    connection = Connection(service.context, service.surface)

The WAL's commit comes first, although it reports to parts that come later: it has nothing to report before they exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arcpipe.counters import MAX_ROUTES, Counters, unpack_usage
from arcpipe.counters import Node as NodeBlock
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.endpoints.idempotency import RECENT_KEYS, recent_keys
from arcpipe.ingest.endpoints.influx import InfluxEndpoints
from arcpipe.ingest.endpoints.logged_writes import LoggedWrites
from arcpipe.ingest.endpoints.ops import OpsEndpoints
from arcpipe.ingest.endpoints.otlp import OTLPEndpoints
from arcpipe.ingest.endpoints.records import RecordEndpoints
from arcpipe.ingest.endpoints.remote_write import RemoteWriteEndpoints
from arcpipe.ingest.endpoints.write import WriteEndpoints
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.access_log import AccessLog
from arcpipe.ingest.http.auth import Auth
from arcpipe.ingest.http.client_address import ForwardedFor, TrustedProxies
from arcpipe.ingest.http.context import IngestContext, Surface
from arcpipe.ingest.http.gate import Gate
from arcpipe.ingest.http.origins import Origins, protect
from arcpipe.ingest.http.request_ids import RequestIds
from arcpipe.ingest.http.router import WRITE, Router
from arcpipe.ingest.http.tracing import kinds
from arcpipe.ingest.http.turns import TimeBudget, Turns
from arcpipe.logs.line_writer import LineWriter

if TYPE_CHECKING:
    from arcpipe.access.reload import Access
    from arcpipe.config.settings import Settings
    from arcpipe.ingest.http.limits import Limits
    from arcpipe.wal.group_commit import Commit, OnCommitted

USUAL_BUDGET: Final = TimeBudget()


class Judges(NamedTuple):
    """Whoever may refuse a request by its sender; None where the settings ask for nothing of the kind."""

    auth: Auth | None
    gate: Gate | None
    forwarded: ForwardedFor | None


class Service(NamedTuple):
    """The parts of one worker's server."""

    commit: Commit
    context: IngestContext
    surface: Surface
    """All paths."""
    writes: WriteEndpoints
    admission: Admission
    judges: Judges
    trusted: TrustedProxies
    access_log: AccessLog | None


def build(
    settings: Settings,
    slot: int,
    counters: Counters,
    access: Access,
    limits: Limits,
    open_commit: Callable[[OnCommitted], Commit],
    budget: TimeBudget = USUAL_BUDGET,
    show_heartbeat: Callable[[], None] = lambda: None,
) -> Service:
    """Build the server of one worker.

    Args:
        open_commit: opens the WAL; gets the callback for each group, as `group_commit` calls it.
        show_heartbeat: called in turns of the loop that take long.
    """

    def committed(waiters: list[Any], error: OSError | None) -> None:
        writes.committed(waiters, error)
        context.bytes_moved()

    commit = open_commit(committed)
    trusted = TrustedProxies(settings.server.trusted_proxies)
    judges = _judges(settings, slot, counters, access, trusted)
    access_log = _access_log(settings, slot, counters)
    request_ids = settings.server.request_ids
    ids = RequestIds() if request_ids or access_log is not None else None
    context = IngestContext(
        limits,
        commit,
        Turns(budget, show_heartbeat),
        auth=judges.auth,
        forwarded=judges.forwarded,
        exchange_kinds=kinds(ids, request_ids, access_log),
    )
    if judges.gate is not None and judges.gate.is_needed:
        context.limit_by(judges.gate)
    admission = Admission(settings, counters.node)
    endpoints = WriteEndpoints if access_log is None else LoggedWrites
    usage = unpack_usage(counters.worker(slot))
    writes = endpoints(
        *(admission, context.encoding, context.turns, commit, usage, settings.ingest.accept_partial),
        recent_keys(settings.idempotency.window_seconds, min(RECENT_KEYS, settings.idempotency.max_keys)),
    )
    ops = OpsEndpoints(settings, counters, admission, slot, lambda: paths)
    router, origins = _route(settings, limits, writes, ops)
    paths = [path.decode("ascii") for path in router.routes]
    surface = context.add_surface(router.routes, origins)
    return Service(commit, context, surface, writes, admission, judges, trusted, access_log)


def _judges(settings: Settings, slot: int, counters: Counters, access: Access, trusted: TrustedProxies) -> Judges:
    auth = Auth(access.tokens) if access.tokens is not None else None
    header = settings.server.forwarded_header
    forwarded = ForwardedFor(trusted, header) if trusted and header else None
    gate: Gate | None = None
    if counters.meters is not None:
        gate = Gate(auth, settings.limits, counters.meters, slot, counters.workers, forwarded)
    return Judges(auth, gate, forwarded)


def _access_log(settings: Settings, slot: int, counters: Counters) -> AccessLog | None:
    if settings.access_log.format == "off":
        return None
    writer = LineWriter(settings.access_log.path, counters.node[NodeBlock.RELOADS])
    return AccessLog(settings.access_log, slot, writer)


def _route(
    settings: Settings, limits: Limits, writes: WriteEndpoints, ops: OpsEndpoints
) -> tuple[Router, Origins | None]:
    judge = writes.judge(None)
    table, origins = protect(
        {
            ("POST", "/write/v2/msgpack"): (writes.msgpack(responses.ACCEPTED), WRITE, judge),
            ("POST", "/api/v1/write/msgpack"): (writes.msgpack(responses.NO_CONTENT, as_arc=True), WRITE, judge),
            **RecordEndpoints(writes, limits.max_body).routes(),
            **InfluxEndpoints(writes).routes(),
            **OTLPEndpoints(writes, settings).routes(),
            **RemoteWriteEndpoints(writes, settings).routes(),
            **ops.table(),
        },
        settings,
    )
    router = Router(table)
    assert len(router.routes) < MAX_ROUTES
    return router, origins
