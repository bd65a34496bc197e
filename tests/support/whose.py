"""A server that tells each request whose it is: real sockets, a real loop, and the real way in.

No answer of arcpipe's own shows the address of its client.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import uvloop

from arcpipe.config.listeners import Listener
from arcpipe.config.settings import Settings
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.client_address import ForwardedFor, TrustedProxies
from arcpipe.ingest.http.context import IngestContext
from arcpipe.ingest.http.entrance import Entrance
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.limits import Limits
from arcpipe.ingest.http.router import OPEN, Router
from arcpipe.ingest.http.turns import TimeBudget, Turns
from tests.support.http import Client


def whose(exchange: Exchange) -> None:
    exchange.answer(responses.json(200, [exchange.connection.address, exchange.client]))


class Whose:
    """A loop in a thread, with a listener of each kind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        limits = Limits.of(Settings())
        # A second for the header, so that the test of it need not wait longer.
        self.context = IngestContext(
            msgspec.structs.replace(limits, header_timeout=1.0, max_connections=8),
            SimpleNamespace(pending_bytes=0),
            Turns(TimeBudget()),
        )
        self._surface = self.context.add_surface(Router({("GET", "/"): (whose, OPEN)}).routes)
        self.entrances: list[Entrance] = []
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Whose:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def trust(self, *proxies: str, header: str = "X-Forwarded-For") -> TrustedProxies:
        trusted = TrustedProxies(proxies)
        self.context.forwarded = ForwardedFor(trusted, header)
        return trusted

    def listen(
        self,
        trusted: TrustedProxies,
        tls: ssl.SSLContext | None = None,
        is_unix: bool = False,
        has_header: bool = True,
    ) -> str:
        """A listener, with `proxy_protocol` if it `has_header`; its URL."""
        listener = Listener(address="127.0.0.1:1", proxy_protocol=has_header, tls=tls is not None)
        server_tls: Any = SimpleNamespace(context=tls) if tls is not None else None
        entrance = Entrance(self.context, self._surface, listener, trusted, server_tls)
        self.entrances.append(entrance)
        made = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        made.bind(str(self.directory / "s.sock") if is_unix else ("127.0.0.1", 0))
        create: Any = self._loop.create_unix_server if is_unix else self._loop.create_server
        asyncio.run_coroutine_threadsafe(create(entrance.connect, sock=made), self._loop).result(30)
        if is_unix:
            return f"unix:{made.getsockname()}"
        return f"{'https' if tls else 'http'}://127.0.0.1:{made.getsockname()[1]}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


def ask(client: Client, headers: dict[str, str] | None = None) -> list[str]:
    """The client of the connection and that of the request, as the server sees them."""
    found: list[str] = client.request("GET", "/", headers=headers).json()
    return found
