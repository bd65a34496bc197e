"""A connection, as its own parts see it."""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from arcpipe.ingest.http.context import Member
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.head_cache import Head

Kind = TypeVar("Kind", bound=Exchange)


class Link(Member, Protocol):
    """A connection, as the parser of its requests, its reads and its end see it."""

    transport: asyncio.Transport | None
    """None before it is made, and once it is lost."""
    arriving: Exchange | None
    """The request whose head is complete and whose body is not; always the last of `exchanges`."""
    paused: int
    """The reasons for which it is not read from, as in `flow_control`."""
    paused_at: float
    """When the client's time began to stand still; seconds of the monotonic clock."""

    @property
    def is_over(self) -> bool:
        """Whether the last request has come that is answered: all that follows is dropped (RFC 9112 §9.6)."""

    @property
    def is_deaf(self) -> bool:
        """Whether what the client still sends is dropped."""

    def take(self, head: Head, kind: type[Kind], body: bytes | None) -> tuple[Kind, bytes | None]:
        """Make the exchange of a request, and judge it by its sender's token and limits."""

    def complete(self, exchange: Exchange, head: Head, refusal: bytes | None) -> None:
        """Handle a request that is whole, or refuse it; later, if too many wait for their answers."""

    def note_dropped(self) -> None:
        """Take note that the client has sent something that is dropped."""

    def give_go_ahead(self) -> None:
        """Send the 100 that the body at hand waits for, once all earlier requests are answered."""

    def give_time_back(self) -> None:
        """Count the time in which the client was not read from for nothing."""

    def refuse(self, response: bytes) -> None:
        """Answer the request at hand, or the bytes that are none, after all earlier ones, and end."""

    def eof_received(self) -> bool:
        """Take note that the client sends nothing more; whether the connection stays open for its answers."""
