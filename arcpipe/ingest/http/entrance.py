"""New connections of one listener: their paths, and the PROXY header that may come before their bytes.

Usually a listener only makes connections. With the PROXY protocol, a `Greeter` reads the header first, and not a byte
more. Then it hands the socket over to TLS or to the connection, so neither of these knows of the header.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, cast

from arcpipe.ingest.http import responses
from arcpipe.ingest.http.client_address import TrustedProxies, peer_of
from arcpipe.ingest.http.connection import Connection
from arcpipe.ingest.http.linger import LINGER_SECONDS
from arcpipe.ingest.http.proxy_header import MAX_BYTES, BadProxyHeader, read
from arcpipe.ingest.http.router import offered
from arcpipe.ingest.http.tls_server import HANDSHAKE_PATIENCE_SECONDS

if TYPE_CHECKING:
    import ssl

    from arcpipe.access.tls import ServerTLS
    from arcpipe.config.listeners import Listener
    from arcpipe.ingest.http.context import IngestContext, Surface

log = logging.getLogger(__name__)

# Seconds between two log lines with the sum of refused connections, so that clients cannot fill the disk.
_LINE_SECONDS: Final = 10.0


class Entrance:
    """One listener in one worker: makes the protocol of each new connection."""

    def __init__(
        self,
        context: IngestContext,
        surface: Surface,
        listener: Listener,
        trusted: TrustedProxies,
        tls: ServerTLS | None,
    ) -> None:
        """Make connections for one listener.

        Args:
            surface: all paths; the listener offers them or a part of them.
            tls: None: it speaks no TLS.
        """
        self.context = context
        self.trusted = trusted
        self.address = listener.address
        self.greeting: set[Greeter] = set()  # connections whose PROXY header or TLS handshake is not complete
        self.handshakes: dict[Greeter, float] = {}  # those of them in a TLS handshake, and when each began
        self._tls = tls
        self._has_header = listener.proxy_protocol
        self._surface = surface
        if listener.paths != "all":
            self._surface = context.add_surface(offered(surface.routes, listener.paths), surface.origins)
        self._refused = 0
        self._next_line = 0.0

    @property
    def tls(self) -> ServerTLS | None:
        """TLS that the server starts with; None if it begins after a PROXY header, or never."""
        return None if self._has_header else self._tls

    def connect(self) -> asyncio.BaseProtocol:
        """Return the protocol with which a new connection begins."""
        if not self._has_header:
            return Connection(self.context, self._surface)
        return Greeter(self, self._tls.context if self._tls is not None else None)

    def connection(self, client: str) -> Connection:
        """Return the protocol for a connection whose client a proxy has told."""
        return Connection(self.context, self._surface, client)

    def is_full(self) -> bool:
        """Return whether the limit of connections is reached."""
        return len(self.context.connections) + len(self.greeting) >= self.context.limits.max_connections

    def has_room_for_handshake(self) -> bool:
        """Return whether another TLS handshake may begin; this ends the oldest one if that takes long already."""
        if len(self.handshakes) < self.context.limits.max_handshakes:
            return True
        oldest, began = next(iter(self.handshakes.items()))
        if time.monotonic() - began < HANDSHAKE_PATIENCE_SECONDS:
            return False
        oldest.abort()
        return True

    def refuse(self, peer: str, reason: str) -> None:
        """Count a refused connection, and log it now and then."""
        self.context.count_refusal("proxy_protocol")
        self._refused += 1
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            log.warning(
                "refused %d connections to %s for their PROXY header; the last one, of %s: %s",
                *(self._refused, self.address, peer, reason),
            )
            self._refused = 0

    def close(self) -> None:
        """End all that have not become connections yet."""
        for greeter in list(self.greeting):
            greeter.abort()


class Greeter(asyncio.BufferedProtocol):
    """Reads a PROXY header, within `server.header_timeout_seconds`, and hands the connection over.

    It asks for exactly the bytes of the header, so all that follows stays in the socket.
    """

    def __init__(self, entrance: Entrance, tls: ssl.SSLContext | None) -> None:
        self._entrance = entrance
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._header = bytearray()
        self._buffer = bytearray(MAX_BYTES)
        self._wanted = 0
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        entrance = self._entrance
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_of(transport)
        if not entrance.trusted.has(self._peer):
            entrance.refuse(self._peer, "it is not among server.trusted_proxies")
            self._transport.abort()
        elif entrance.is_full():
            entrance.context.count_refusal(responses.TOO_MANY_CONNECTIONS.code)
            self._transport.abort()
        else:
            entrance.greeting.add(self)
            self._timer = asyncio.get_running_loop().call_later(entrance.context.limits.header_timeout, self._expire)

    def get_buffer(self, _sizehint: int) -> memoryview:
        if not self._wanted:
            found = read(bytes(self._header))
            assert isinstance(found, int), "BUG: a whole header, and still reading"
            self._wanted = found
        return memoryview(self._buffer)[: self._wanted - len(self._header)]

    def buffer_updated(self, size: int) -> None:
        self._header += self._buffer[:size]
        if len(self._header) < self._wanted:
            return
        try:
            found = read(bytes(self._header))
        except BadProxyHeader as error:
            self._refuse(str(error))
            return
        if isinstance(found, int):
            self._wanted = found
            return
        self._hand_over(found.client or self._peer)

    def eof_received(self) -> None:
        if self in self._entrance.greeting:
            self._refuse(f"it ended after {len(self._header)} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def abort(self) -> None:
        """End the connection, because the worker stops."""
        self._leave()
        if self._handshake is not None:
            self._handshake.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _expire(self) -> None:
        self._refuse(f"{len(self._header)} bytes of it came within server.header_timeout_seconds")

    def _refuse(self, reason: str) -> None:
        self._entrance.refuse(self._peer, reason)
        self._leave()
        if self._transport is not None:
            self._transport.abort()

    def _leave(self) -> None:
        self._entrance.greeting.discard(self)
        self._entrance.handshakes.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hand_over(self, client: str) -> None:
        transport = self._transport
        assert transport is not None
        # Without a pause, uvloop would go on reading for the previous protocol.
        transport.pause_reading()
        if self._tls is None:
            self._leave()
            connection = self._entrance.connection(client)
            transport.set_protocol(connection)
            transport.resume_reading()
            connection.connection_made(transport)
            return
        if self._timer is not None:
            self._timer.cancel()  # the handshake has a timeout of its own
            self._timer = None
        if not self._entrance.has_room_for_handshake():
            self._entrance.context.count_refusal(responses.TOO_MANY_CONNECTIONS.code)
            self.abort()
            return
        self._handshake = asyncio.get_running_loop().create_task(self._shake_hands(client, self._tls))
        self._entrance.handshakes[self] = time.monotonic()

    async def _shake_hands(self, client: str, tls: ssl.SSLContext) -> None:
        assert self._transport is not None
        waiting = _Waiting()
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self._transport,
                waiting,
                tls,
                server_side=True,
                ssl_handshake_timeout=self._entrance.context.limits.header_timeout,
                ssl_shutdown_timeout=LINGER_SECONDS,
            )
        except OSError:  # not logged, as for a failed handshake without a PROXY header
            return
        finally:
            self._leave()
        if transport is None or waiting.is_lost:
            return
        connection = self._entrance.connection(client)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        for data in waiting.data:
            connection.data_received(data)


class _Waiting(asyncio.Protocol):
    """Keeps bytes that a client sends with the end of its handshake, until its connection takes them."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.data.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
