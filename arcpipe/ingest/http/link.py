"""A connection, as its own parts know it."""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from arcpipe.ingest.http.context import Member
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.outlines import Head

Kind = TypeVar("Kind", bound=Exchange)


class Link(Member, Protocol):
    """A connection, as its request parser, its reading and its ending know it."""

    transport: asyncio.Transport | None
    """None before the connection is made, and after it is lost."""
    arriving: Exchange | None
    """The request with a complete head and an incomplete body; always the last of `exchanges`."""
    paused: int
    """The reasons for not reading, as in `flow_control`."""
    paused_at: float
    """When the client's timeouts were stopped; seconds of the monotonic clock."""

    @property
    def is_over(self) -> bool:
        """Whether the last request that gets an answer has come; further bytes are dropped (RFC 9112 §9.6)."""

    @property
    def is_deaf(self) -> bool:
        """Whether further bytes from the client are dropped."""

    def take(self, head: Head, kind: type[Kind], body: bytes | None) -> tuple[Kind, bytes | None]:
        """Make the exchange of a request, and judge it by the token and limits of its sender."""

    def complete(self, exchange: Exchange, head: Head, refusal: bytes | None) -> None:
        """Handle or refuse a complete request; later, if too many wait for their answers."""

    def note_dropped(self) -> None:
        """Note that the client has sent bytes that are dropped."""

    def give_go_ahead(self) -> None:
        """Send the 100 for which the present body waits, once all earlier requests are answered."""

    def receive_directly(self) -> None:
        """Have further reads go into the memory of the arriving body, if the transport can."""

    def receive_pieces(self) -> None:
        """Have further reads come as pieces again."""

    def give_time_back(self) -> None:
        """Do not count the time without reading against the client."""

    def refuse(self, response: bytes) -> None:
        """Answer the present request, or malformed bytes, after all earlier ones, and end the connection."""

    def eof_received(self) -> bool:
        """Note that the client sends nothing more; return whether the connection stays open for its answers."""
