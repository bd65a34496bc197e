"""What the connections of one worker share."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
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
from arcpipe.ingest.http.router import Route
from arcpipe.ingest.http.tracing import NotingAuth, kinds
from arcpipe.ingest.http.turns import Turns
from arcpipe.wal.group_commit import Commit

if TYPE_CHECKING:
    from arcpipe.ingest.http.auth import Auth
    from arcpipe.ingest.http.gate import Gate

log = logging.getLogger(__name__)

# Encoded bytes that may wait for the WAL before a thread encodes more: small records wait for the disk behind them.
_ENCODED_AHEAD_BYTES: Final = 8 << 20


class Surface(Protocol):
    """The paths that a connection finds, and the heads that were seen there: a known head goes without a look at it."""

    routes: dict[bytes, Route]
    heads: Heads


class Member(Peer, Reader, Protocol):
    """A connection of a worker, as the worker sees it."""

    state: int
    since: float
    """When the present state began, or was last seen to move; seconds of the monotonic clock."""

    @property
    def holds_unread(self) -> bool:
        """Whether it keeps requests of a client that does not read its answers."""

    @property
    def is_unread(self) -> bool:
        """Whether the client leaves so many answers unread that it is not read from any more."""

    @property
    def is_finished(self) -> bool:
        """Whether the client has got all answers that it waits for."""

    def give_up(self) -> None:
        """End it: others need what is kept of it."""

    def finish(self) -> None:
        """End it with its last answer."""

    def expire(self) -> None:
        """End what has taken too long."""


class IngestContext:
    """What the connections of a worker share."""

    commit: Commit
    routes: dict[bytes, Route]

    def __init__(self, limits: Limits, auth: Auth | None, show_life: Callable[[], None] = lambda: None) -> None:
        self.limits = limits
        self.auth: Auth | NotingAuth | Gate | None = auth  # None: nobody is asked for a token
        self.gate: Gate | None = None  # where the use of clients is limited; it is `auth` then
        self.exchange_kind, self.identified_kind = kinds(None, False, None)
        self.connections: set[Member] = set()
        self.turned_away: set[Member] = set()  # above `server.max_connections`, until they have read so
        self.turns = Turns(show_life)
        self.kept_bytes = 0  # of reads that have brought more than one turn handles
        self._all_read_at = -1.0  # the tick at which no client was found that does not read its answers
        self.heads = Heads()
        self.all_heads = [self.heads]  # and those of listeners that do not offer all paths
        self.inflight = BytesInFlight(limits, self.connections, self._pending_bytes, self._use_heads)
        # The WAL always goes on; encoding waits for it, and decoding for both, so that none waits for ever.
        self.encoding = Background(
            "encoding", lambda: self.commit.pending_bytes <= _ENCODED_AHEAD_BYTES, self.bytes_moved, interrupts=True
        )
        self.decoding = Background(
            "decoding",
            lambda: self.commit.pending_bytes + self.encoding.held_bytes <= limits.max_pending,
            self.bytes_moved,
            interrupts=False,  # each that has begun holds what has come out of it
        )
        self.forwarded: ForwardedFor | None = None  # where a header of trusted proxies tells the client
        self.hosts: set[bytes] = set()  # values of Host headers that were found good
        self.refused = dict.fromkeys(REFUSAL_CODES, 0)
        self.origins: Origins | None = None  # whose browsers may write from other sites; None: nobody's
        self.dated = responses.Dated()
        self.tick()
        self.next_bug_line = 0.0
        self.requests = 0
        self.unrouted: defaultdict[bytes, int] = defaultdict(int)  # statuses of answers for paths that lead nowhere
        self.draining = False

    def tick(self) -> None:
        """Looks at the clocks."""
        self.now = time.monotonic()  # as of the last tick: fine enough for timeouts of seconds
        self.dated.set_time(time.time())

    def count_refusal(self, code: str) -> None:
        self.refused[code if code in self.refused else "other"] += 1

    def drain(self) -> None:
        """End each connection with its next answer."""
        self.draining = True
        self._use_heads(self.inflight.is_full)

    def _use_heads(self, is_full: bool) -> None:
        """The parser sees every head that may have to be refused, or to end its connection."""
        for heads in self.all_heads:
            heads.use(not (is_full or self.draining))

    def has_room_to_keep(self, size: int) -> bool:
        """Whether so many bytes of a read may be kept for later. Clients that do not read their answers give way."""
        most = self.limits.max_kept
        if self.kept_bytes + size > most and self._all_read_at != self.now:
            unread = [connection for connection in self.connections if connection.holds_unread]
            if not unread:
                self._all_read_at = self.now  # thousands may ask within one turn, and thousands are looked through
            for connection in sorted(unread, key=lambda one: one.since):  # those first that have not read for longest
                if self.kept_bytes <= most // 2:
                    break
                self.count_refusal(responses.TOO_MANY_REQUESTS_WAIT.code)
                connection.give_up()
        return self.kept_bytes + size <= most

    def report_bug(self, where: str, error: BaseException, fields: dict[str, dict[str, str]] | None = None) -> None:
        """Log a bug that a request has met; a bug on the hot path must not fill the disk with its log."""
        if self.now >= self.next_bug_line:
            self.next_bug_line = self.now + 1.0
            log.error("a bug in %s; answered 500", where, exc_info=error, extra=fields)

    def bytes_moved(self) -> None:
        """To be called when complete bodies have left, or when one waits for a thread."""
        self.inflight.check()
        self.inflight.left()
        self.encoding.proceed()
        self.decoding.proceed()

    def _pending_bytes(self) -> int:
        return self.commit.pending_bytes + self.encoding.held_bytes + self.decoding.held_bytes
