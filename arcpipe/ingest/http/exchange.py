"""One request and its answer, from its complete head until the answer is given."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import parse_qs

from arcpipe.errors import BadPayload
from arcpipe.ingest.http import responses

if TYPE_CHECKING:
    from arcpipe.access.tls import Certificate

# Of connections and requests that have none of their own, yet or any more.
NO_HEADERS: Final[dict[bytes, bytes]] = {}


class Peer(Protocol):
    """The connection of a request, as its exchange and those who judge it see it."""

    address: str
    """Of the client, or of the proxy before it."""
    exchanges: deque[Exchange]
    """Whose answers have not left, in the order of their requests."""
    unrouted: defaultdict[bytes, int]
    """Statuses of answers for paths that lead nowhere."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for its answers any more."""

    @property
    def announced_bytes(self) -> int:
        """The size of the body that is arriving, as its head says; -1 where it does not, 0 where none is taken."""

    def flush(self) -> None:
        """Send the answers that are ready."""

    def client_of(self, headers: dict[bytes, bytes]) -> str:
        """Tell whose request it is that has these headers."""

    def peer_certificate(self) -> Certificate | None:
        """Give the client's certificate, where TLS has asked for one and found it good."""

    def count_refusal(self, response: bytes) -> None:
        """Count an answer, if it refuses a request."""

    def answer_bug(self, exchange: Exchange, error: Exception) -> None:
        """Answer 500, and log why."""


class Exchange:
    """One request and its answer. Header names are lower case."""

    __slots__ = (
        *("answered", "body", "brings", "closes", "connection", "databases", "headers", "method", "path", "query"),
        *("received", "response", "success"),
    )

    def __init__(
        self,
        connection: Peer,
        headers: dict[bytes, bytes],
        method: bytes = b"",
        path: bytes = b"",
        query: bytes = b"",
        answered: defaultdict[bytes, int] | None = None,
    ) -> None:
        """Args: answered: where the answer's status is counted; by default among those for unknown paths."""
        self.connection = connection
        self.headers = headers
        self.method = method
        self.path = path
        self.query = query
        self.body = b""
        self.databases: frozenset[str] | None = None  # that the sender's token is for; None is all
        self.brings: tuple[str, int, int]  # database, records and bytes of a write, for the counters once it is on disk
        self.success = b""  # for handlers that answer later: what to answer if all goes well
        self.response: bytes | None = None
        self.closes = False
        self.received = 0.0  # perf_counter seconds: when the request was complete
        self.answered = connection.unrouted if answered is None else answered

    def log_fields(self) -> dict[str, dict[str, str]] | None:
        """The `extra` of log lines about it."""
        return None

    def cut_off(self) -> None:
        """Called where the client is gone before its request was complete."""

    def answer(self, response: bytes) -> None:
        """Gives the response; it leaves once all earlier requests of the connection are answered."""
        if type(response) is not bytes:
            response = self.refused(response)
        self.response = response
        waiting = self.connection.exchanges
        if waiting and waiting[0] is self:
            self.connection.flush()

    @property
    def client(self) -> str:
        """The address of the sender, such as "192.0.2.7": of the connection, or what a trusted proxy's header tells."""
        return self.connection.client_of(self.headers)

    def refused(self, response: bytes) -> bytes:
        """Counts a refusal, and gives it the shape that the path's clients read."""
        self.connection.count_refusal(response)
        return responses.in_shape_of(self.path, response)

    def parameters(self) -> dict[str, str]:
        """The query's parameters. Raises BadPayload as `parse_parameters` does."""
        return parse_parameters(self.query) if self.query else {}


def parse_parameters(text: bytes) -> dict[str, str]:
    """A query string, or a form in the same encoding.

    Raises:
        BadPayload: a parameter is given twice, or the text is not UTF-8.
    """
    try:
        parsed = parse_qs(text.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError:
        raise BadPayload("the query string cannot be decoded") from None
    for name, values in parsed.items():
        if len(values) > 1:
            raise BadPayload(f"query parameter '{name}' is given {len(values)} times")
    return {name: values[0] for name, values in parsed.items()}
