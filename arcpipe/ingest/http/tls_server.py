"""Accepts TLS connections, and limits their handshakes: each takes a descriptor and some 100 kB.

The loop's own server reports a connection only after its handshake, so any number could be in one. Here few are at a
time. Above the limit, the oldest is ended: it is idle most likely, because a handshake takes moments.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from arcpipe.access.tls import ServerTLS

# Seconds after which a handshake may be ended for others.
HANDSHAKE_PATIENCE_SECONDS: Final = 1.0
# Connections that are accepted in one turn of the loop: each costs a millisecond in later turns.
_ACCEPTED_IN_A_TURN: Final = 8
# Seconds until the next attempt when no connection can be accepted.
_RETRY_SECONDS: Final = 0.05


class TLSServer:
    """Serves one listening socket with TLS, from its creation until `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], asyncio.BaseProtocol],
        listener: socket.socket,
        backlog: int,
        tls: ServerTLS,
        handshake_seconds: float,
        shutdown_seconds: float,
        max_handshakes: int,
    ) -> None:
        self._loop = loop
        self._factory = factory
        self._listener = listener
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._shutdown_seconds = shutdown_seconds
        self._most = max_handshakes
        self._handshakes: dict[asyncio.Task[None], float] = {}  # and the start of each, the oldest first
        self._sockets: dict[asyncio.Task[None], socket.socket] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        listener.listen(backlog)
        loop.add_reader(listener, self._accept)

    @property
    def handshakes(self) -> int:
        """Count the handshakes that are not over."""
        return len(self._handshakes)

    def close(self) -> None:
        """Accept no further connections. Handshakes go on."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_IN_A_TURN):
            if len(self._handshakes) >= self._most and not self._give_up_oldest():
                self._wait()
                return
            try:
                accepted, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._wait()  # they stay in the kernel's queue until there is a descriptor
                    return
                raise
            task = self._loop.create_task(self._shake_hands(accepted))
            self._handshakes[task] = self._loop.time()
            self._sockets[task] = accepted
            task.add_done_callback(self._forget)

    def _wait(self) -> None:
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(_RETRY_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._retry = None
        if not self._closed:
            self._loop.add_reader(self._listener, self._accept)

    def _give_up_oldest(self) -> bool:
        """End the handshake that began first, unless it began just now."""
        task, began = next(iter(self._handshakes.items()))
        if self._loop.time() - began < HANDSHAKE_PATIENCE_SECONDS:
            return False
        del self._handshakes[task]
        with contextlib.suppress(OSError):
            self._sockets[task].shutdown(socket.SHUT_RDWR)
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        self._sockets.pop(task, None)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.connect_accepted_socket(
                self._factory,
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._handshake_seconds,
                ssl_shutdown_timeout=self._shutdown_seconds,
            )
        except OSError:  # a client without TLS, one that is gone, or too slow: not worth a log line
            accepted.close()
