"""A proxy for TCP that cuts, delays or answers nothing at the n-th message of clients: for protocols without requests.

    with CuttingProxy(("127.0.0.1", 5432)) as proxy:
        proxy.strike_at(7, "lost answer")

What a client sends in one piece is a message: libpq sends a statement with its parameters so.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Final, Literal, Self

Fault = Literal["cut", "lost answer", "hanging", "late"]
FAULTS: Final[tuple[Fault, ...]] = (
    "cut",  # the connection ends, and the message passed on to nobody
    "lost answer",  # the server gets it and answers, and nobody hears of it
    "hanging",  # nothing is said for a second, and the connection closed then
    "late",  # the connection ends, and `deliver` passes the message on
)
_READ_BYTES: Final = 1 << 16
_HANG_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 60.0


class _Connection:
    """A client, and the connection to the server on its behalf."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_lost = False  # the client hears nothing any more
        self.heard = threading.Event()  # the server has said something to what came last, or ended


class CuttingProxy:
    """Passes connections on to a server. For a `with` block."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.messages = 0
        """Of all clients so far."""
        self.struck = ""
        self._server = server
        self._lock = threading.Lock()
        self._at = -1
        self._fault: Fault | None = None
        self._late: list[tuple[_Connection, bytes]] = []
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._open:
            one.close()

    def strike_at(self, number: int, fault: Fault) -> None:
        """Give this fault to one message, counted from 0 for the next one."""
        with self._lock:
            self._at, self._fault = self.messages + number, fault

    def deliver(self) -> int:
        """Have the server get what was held back, after its client has long gone. Returns how many there were."""
        held, self._late = self._late, []
        for connection, message in held:
            with contextlib.suppress(OSError):  # the server may have ended the connection by itself
                connection.server.sendall(message)
                assert connection.heard.wait(_WAIT_SECONDS), "the server says nothing to what came late"
            _end(connection.server)
        return len(held)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server, _WAIT_SECONDS)
            server.settimeout(None)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(one)
            connection = _Connection(client, server)
            for target in (self._answers, self._messages):
                thread = threading.Thread(target=target, args=(connection,))
                thread.start()
                self._threads.append(thread)

    def _messages(self, connection: _Connection) -> None:
        """Pass on what the client says."""
        with contextlib.suppress(OSError):
            while message := connection.client.recv(_READ_BYTES):
                fault = self._next()
                if fault in ("late", "lost answer"):
                    connection.is_lost = True
                    if fault == "late":
                        self._late.append((connection, message))
                        _end(connection.client)
                    else:
                        connection.server.sendall(message)
                    return
                if fault is not None:
                    self._over.wait(_HANG_SECONDS if fault == "hanging" else 0)
                    break
                connection.server.sendall(message)
        _end(connection.client)
        _end(connection.server)

    def _answers(self, connection: _Connection) -> None:
        """Pass on what the server says."""
        with contextlib.suppress(OSError):
            while answer := connection.server.recv(_READ_BYTES):
                if connection.is_lost:
                    break
                connection.client.sendall(answer)
        connection.heard.set()
        _end(connection.client)
        _end(connection.server)

    def _next(self) -> Fault | None:
        with self._lock:
            number, self.messages = self.messages, self.messages + 1
            if number != self._at or self._fault is None:
                return None
            self.struck = self._fault
            return self._fault


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
