"""HTTP over a Unix socket, for commands that ask a server on this machine."""

from __future__ import annotations

import http.client
import socket


class UnixHTTPConnection(http.client.HTTPConnection):
    """An HTTP connection to the path of a socket instead of a host and a port."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._seconds = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self._seconds)
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise
