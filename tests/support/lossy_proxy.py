"""A TCP proxy that loses answers and cuts connections, so that clients do not know what became of a request."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable

_READ_BYTES = 1 << 16


class LossyProxy:
    """Passes one request of a connection on, and what comes of it depends on chance.

    with LossyProxy(lambda: server.port, chance=Random(1)) as proxy:
        Client(proxy.url)

    Of the requests, `lost` lose their answer: the server has it sent, and the client sees its connection end. As many
    are cut in the middle of the request, and as many in the middle of the answer.
    """

    def __init__(self, port: Callable[[], int], chance: random.Random, lost: float = 0.2, cut: float = 0.05) -> None:
        self.fates: Counter[str] = Counter()
        self._port = port
        self._chance = chance
        self._lost, self._cut = lost, cut
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._connections: list[threading.Thread] = []

    def __enter__(self) -> LossyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for thread in self._connections:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            point = self._chance.random()
            fate = "passed"
            for name, share in (("lost", self._lost), ("cut request", self._cut), ("cut answer", self._cut)):
                if 0 <= point < share:
                    fate = name
                point -= share
            self.fates[fate] += 1
            thread = threading.Thread(target=self._serve, args=(client, fate))
            thread.start()
            self._connections.append(thread)

    def _serve(self, client: socket.socket, fate: str) -> None:
        with client:
            try:
                client.settimeout(60)
                with socket.create_connection(("127.0.0.1", self._port()), timeout=60) as server:
                    request = _message(client)
                    if fate == "cut request":
                        server.sendall(request[: len(request) // 2])
                        return
                    server.sendall(request)
                    answer = _message(server)
                    if fate == "cut answer":
                        answer = answer[: len(answer) // 2]
                    if fate != "lost":
                        client.sendall(answer)
            except OSError:  # one of the two has gone: the other one sees the end of its connection
                pass


def _message(peer: socket.socket) -> bytes:
    """Read a head, and a body of the length in it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = peer.recv(_READ_BYTES)
        if not more:
            return data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    while len(body) < length:
        more = peer.recv(_READ_BYTES)
        if not more:
            break
        body += more
    return head + b"\r\n\r\n" + body
