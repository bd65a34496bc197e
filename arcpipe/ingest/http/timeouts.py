"""Timeouts of connections: how long each may stay in its present state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcpipe.ingest.http.linger import LINGER_SECONDS
from arcpipe.ingest.http.states import ANSWER, BODY, FRESH, HEADER, IDLE, LINGER

if TYPE_CHECKING:
    from arcpipe.ingest.http.context import IngestContext


def expire_connections(context: IngestContext) -> None:
    """End the connections that have been in their present state for too long. Call it a few times a second."""
    limits = context.limits
    patience = {
        FRESH: limits.header_timeout,
        IDLE: limits.keep_alive,
        HEADER: limits.header_timeout,
        BODY: min(limits.body_timeout, limits.max_body_seconds),
        ANSWER: limits.keep_alive,  # of a client that does not read
        LINGER: LINGER_SECONDS,
    }
    now = context.now
    expired = [
        connection
        for connections in (context.connections, context.turned_away)
        for connection in connections
        if now - connection.since > patience[connection.state]
        # A client does not pay for the worker's own time to answer, unless it does not read its answers.
        and (
            (connection.state != ANSWER and not (connection.state == LINGER and connection.exchanges))
            or connection.is_unread
        )
    ]
    for connection in expired:
        connection.expire()
