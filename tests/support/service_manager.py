"""The receiving end of sd_notify(3)."""

from __future__ import annotations

import os
import select
import socket

from tests.support.waiting import wait_until


class Manager:
    """The receiving end of sd_notify(3): messages as they came, and the file descriptors that came with them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[dict[str, str]] = []
        self.stored: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def close(self) -> None:
        for fd in self.stored:
            os.close(fd)
        self._socket.close()

    def receive(self) -> list[dict[str, str]]:
        """All messages so far."""
        while select.select([self._socket], [], [], 0)[0]:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 253)
            message = dict(line.split("=", 1) for line in data.decode().split("\n"))
            self.messages.append(message)
            self.stored += fds
            if "FDSTOREREMOVE" in message:
                for fd in self.stored:
                    os.close(fd)
                self.stored = []
        return self.messages

    def values(self, field: str) -> list[str]:
        return [message[field] for message in self.receive() if field in message]

    def wait_for(self, field: str, count: int = 1) -> None:
        wait_until(lambda: len(self.values(field)) >= count, f"{count} times {field}")
