"""One request and its answer, from its complete head until the answer is given."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import parse_qs

from arcpipe.errors import BadPayload
from arcpipe.ingest.http import responses

if TYPE_CHECKING:
    from arcpipe.access.tls import Certificate

DATABASE: Final = b"x-arc-database"
"""The header that names the database of a write."""

# Of connections and requests without headers.
NO_HEADERS: Final[dict[bytes, bytes]] = {}


class Peer(Protocol):
    """The connection of a request, as its exchange, `Auth` and `Gate` know it."""

    address: str
    """The client's, or its proxy's."""
    exchanges: deque[Exchange]
    """Requests whose answers have not left, in their order."""
    unrouted: defaultdict[bytes, int]
    """Statuses of answers for unknown paths."""

    @property
    def is_gone(self) -> bool:
        """Whether its client is gone."""

    @property
    def announced_bytes(self) -> int:
        """Size of the body that is arriving, by its head; -1 if the head does not tell, 0 if no body is accepted."""

    def flush(self) -> None:
        """Send the answers that are ready."""

    def client_of(self, headers: dict[bytes, bytes]) -> str:
        """Return the address of the client that sent these headers."""

    def peer_certificate(self) -> Certificate | None:
        """Return the client's certificate if TLS has asked for one and found it valid."""

    def count_refusal(self, response: bytes) -> None:
        """Count an answer if it refuses a request."""

    def answer_bug(self, exchange: Exchange, error: Exception) -> None:
        """Answer 500, and log why."""


class Exchange:
    """One request and its answer. Header names are lower case."""

    __slots__ = (
        *("answered", "body", "brings", "claim", "closes", "connection", "databases", "headers"),
        *("key", "method", "path", "query", "received", "response", "success", "token"),
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
        """Begin an exchange that is not answered yet.

        Args:
            answered: where the answer's status is counted; by default among those for unknown paths.
        """
        self.connection = connection
        self.headers = headers
        # The idempotency key. It is empty while the header's is not read, and after it was claimed; None without one.
        self.key: bytes | None = None
        self.method = method
        self.path = path
        self.query = query
        self.body: bytes | memoryview = b""  # a view only where the endpoint `takes_view`
        self.databases: frozenset[str] | None = None  # that the sender may write; None: all
        self.token: str | None = None  # the id of the sender's token
        self.brings: tuple[str, int, int]  # database, records and bytes of a write, counted once it is on disk
        self.claim: int  # of a write with a key: its number, as `RecentKeys` counts
        self.success = b""  # the later answer if all goes well
        self.response: bytes | None = None
        self.closes = False
        self.received = 0.0  # perf_counter seconds: when the request was complete
        self.answered = connection.unrouted if answered is None else answered

    def log_fields(self) -> dict[str, dict[str, str]] | None:
        """Return the `extra` of log lines about this request."""
        return None

    def cut_off(self) -> None:
        """Note that the client was gone before its request was complete."""

    def answer(self, response: bytes) -> None:
        """Give the response; it leaves once all earlier requests of the connection are answered."""
        if type(response) is not bytes:
            response = self.refused(response)
        self.response = response
        waiting = self.connection.exchanges
        if waiting and waiting[0] is self:
            self.connection.flush()

    @property
    def client(self) -> str:
        """Address of the sender, such as "192.0.2.7": of the connection, or from a trusted proxy's header."""
        return self.connection.client_of(self.headers)

    def refused(self, response: bytes) -> bytes:
        """Count a refusal, and return it in the shape that the path's clients read."""
        self.connection.count_refusal(response)
        if self.path in responses.OTLP_PATHS:
            # The headers are gone while the request waits for the disk, and its later answer is there.
            told = self.headers.get(b"content-type") or self.success[: responses.HEAD_BYTES]
            return responses.as_rpc_status(response, is_json=b"application/x-protobuf" not in told.lower())
        return responses.in_shape_of(self.path, response)

    def parameters(self) -> dict[str, str]:
        """Return the query's parameters. Raises BadPayload as `parse_parameters` does."""
        return parse_parameters(self.query) if self.query else {}


def parse_parameters(text: bytes) -> dict[str, str]:
    """Parse a query string, or a form in the same encoding.

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
