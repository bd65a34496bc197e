"""The state that all connections of one worker share."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from arcpipe.counters import REFUSAL_CODES
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.background import Background
from arcpipe.ingest.http.client_address import ForwardedFor
from arcpipe.ingest.http.exchange import Peer
from arcpipe.ingest.http.flow_control import BytesInFlight, Reader
from arcpipe.ingest.http.head_cache import Heads
from arcpipe.ingest.http.limits import Limits
from arcpipe.ingest.http.origins import Origins
from arcpipe.ingest.http.router import Route, pattern_of, stems
from arcpipe.ingest.http.tracing import PLAIN_KINDS, Kinds
from arcpipe.ingest.http.turns import Turns
from arcpipe.units import MB

if TYPE_CHECKING:
    from arcpipe.ingest.http.auth import Auth
    from arcpipe.ingest.http.gate import Gate

log = logging.getLogger(__name__)

# Encoded bytes that may wait for the WAL before a thread encodes more: small records wait for the disk after them.
_ENCODED_AHEAD_BYTES: Final = 8 * MB


class Pending(Protocol):
    """The WAL, as it bounds who is read."""

    @property
    def pending_bytes(self) -> int:
        """Count the bytes that are collected or being committed."""


class Surface:
    """The paths of a listener, and the request heads that were accepted there, which need no second look."""

    __slots__ = ("_by_stem", "heads", "origins", "routes")

    def __init__(self, routes: Mapping[bytes, Route], origins: Origins | None) -> None:
        """Offer some routes.

        Args:
            origins: web pages that may write from other sites; None: no page may.
        """
        self.routes = routes
        self._by_stem = stems(routes)
        self.origins = origins
        self.heads = Heads()

    def find(self, path: bytes) -> Route | None:
        """Return the route of a request's path; None if nothing is there."""
        return self.routes.get(path) or self.routes.get(pattern_of(path, self._by_stem))


class Member(Peer, Reader, Protocol):
    """A connection, as its worker knows it."""

    state: int
    since: float
    """When the present state began, or last advanced; seconds of the monotonic clock."""

    @property
    def holds_unread(self) -> bool:
        """Whether it keeps requests of a client that does not read its answers."""

    @property
    def is_unread(self) -> bool:
        """Whether the client left too many answers unread, so that nothing more is read from it."""

    @property
    def is_finished(self) -> bool:
        """Whether the client has all answers that it waits for."""

    def give_up(self) -> None:
        """End it at once, because others need its memory."""

    def finish(self) -> None:
        """End it with its last answer."""

    def expire(self) -> None:
        """End it if it has been in its present state for too long."""


class IngestContext:
    """The state that all connections of a worker share."""

    def __init__(
        self,
        limits: Limits,
        commit: Pending,
        turns: Turns,
        *,
        auth: Auth | None = None,
        forwarded: ForwardedFor | None = None,
        exchange_kinds: Kinds = PLAIN_KINDS,
    ) -> None:
        """Start without connections.

        Args:
            auth: None: requests need no token.
            forwarded: the header in which trusted proxies name the client.
            exchange_kinds: as `kinds` gives them.
        """
        self.limits = limits
        self.commit = commit
        self.turns = turns
        self.auth: Auth | Gate | None = auth
        self.gate: Gate | None = None  # `auth` itself, once the use of clients is limited
        self.forwarded = forwarded
        self.exchange_kind, self.identified_kind = exchange_kinds
        self.connections: set[Member] = set()
        self.turned_away: set[Member] = set()  # above `server.max_connections`, until they have read the refusal
        self.kept_bytes = 0  # of reads that have brought more than one turn handles
        self._all_read_at = -1.0  # the last tick at which every client read its answers
        self._surfaces: list[Surface] = []
        self.inflight = BytesInFlight(limits, self.connections, self._pending_bytes, self._use_heads)
        # The WAL always goes on; encoding waits for the WAL, and decoding for both, so that none waits for ever.
        self.encoding = Background(
            "encoding", lambda: self.commit.pending_bytes <= _ENCODED_AHEAD_BYTES, self.bytes_moved, interrupts=True
        )
        self.decoding = Background(
            "decoding",
            lambda: self.commit.pending_bytes + self.encoding.held_bytes <= limits.max_pending,
            self.bytes_moved,
            interrupts=True,
        )
        self.hosts: set[bytes] = set()  # valid values of Host headers
        self.refused = dict.fromkeys(REFUSAL_CODES, 0)
        self.dated = responses.Dated()
        self.tick()
        self.next_bug_line = 0.0
        self.requests = 0
        self.unrouted: defaultdict[bytes, int] = defaultdict(int)  # statuses of answers for unknown paths
        self.draining = False

    def add_surface(self, routes: Mapping[bytes, Route], origins: Origins | None = None) -> Surface:
        """Make the surface of a listener that offers these routes; its known heads hold as long as this says so."""
        surface = Surface(routes, origins)
        self._surfaces.append(surface)
        return surface

    def limit_by(self, gate: Gate) -> None:
        """Have a gate judge requests, for good: it knows the connections that it has counted."""
        self.auth = self.gate = gate

    def tick(self) -> None:
        """Read the clocks. Call it a few times a second."""
        self.now = time.monotonic()  # of the last tick, which is precise enough for timeouts of seconds
        self.dated.set_time(time.time())

    def count_refusal(self, code: str) -> None:
        """Count a refusal by its code."""
        self.refused[code if code in self.refused else "other"] += 1

    def drain(self) -> None:
        """End each connection with its next answer, from now on."""
        self.draining = True
        self._use_heads(self.inflight.is_full)

    def _use_heads(self, is_full: bool) -> None:
        """Use no known heads while requests may have to be refused, or to end their connection, by their heads."""
        for surface in self._surfaces:
            surface.heads.are_used = not (is_full or self.draining)

    def has_room_to_keep(self, size: int) -> bool:
        """Return whether `size` more bytes of reads may be kept. Clients that do not read their answers give way."""
        most = self.limits.max_kept
        if self.kept_bytes + size > most and self._all_read_at != self.now:
            unread = [connection for connection in self.connections if connection.holds_unread]
            if not unread:
                self._all_read_at = self.now  # thousands may ask within one turn, and each look is at thousands
            for connection in sorted(unread, key=lambda one: one.since):  # the longest without reading first
                if self.kept_bytes <= most // 2:
                    break
                self.count_refusal(responses.TOO_MANY_REQUESTS_WAIT.code)
                connection.give_up()
        return self.kept_bytes + size <= most

    def report_bug(self, where: str, error: BaseException, fields: dict[str, dict[str, str]] | None = None) -> None:
        """Log a bug that a request has met, at most one a second: a bug on the hot path must not fill the disk."""
        if self.now >= self.next_bug_line:
            self.next_bug_line = self.now + 1.0
            log.error("a bug in %s; answered 500", where, exc_info=error, extra=fields)

    def bytes_moved(self) -> None:
        """Let others go on. Call it when complete bodies have left, or when one waits for a thread."""
        self.inflight.check()
        self.inflight.left()
        self.encoding.proceed()
        self.decoding.proceed()

    def _pending_bytes(self) -> int:
        return self.commit.pending_bytes + self.encoding.held_bytes + self.decoding.held_bytes
