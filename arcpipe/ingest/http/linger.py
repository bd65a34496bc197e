"""Lingering close: the end of a connection whose client still has to read its last answers.

Closing while the client still sends makes the kernel send a reset, which can destroy answers that the client has not
read yet. So the sending side ends first. Further bytes are read and dropped until the client has all answers, and some
time to close (RFC 9112 §9.6).
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Final

# Seconds that a client has to close after its last answer. A client that is there needs a round trip.
LINGER_SECONDS: Final = 2.0
_INT: Final = struct.Struct("i")


def undelivered_bytes(transport: asyncio.Transport) -> int:
    """Count the written bytes that have not reached the client's machine: in this process, the kernel, or sent."""
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is None:
        return waiting
    try:
        # SIOCOUTQ of tcp(7) and unix(7), by its other name.
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, _INT.pack(0))
    except OSError:
        return waiting
    return waiting + int(_INT.unpack(answer)[0])


def is_in_kernel(transport: asyncio.Transport) -> bool:
    """Return whether no written byte waits in this process, not even below TLS.

    Encrypted bytes wait in a transport below TLS, which does not tell their number. They wait only while the kernel
    accepts none. A send buffer that is an eighth full accepts more, however small its segments are.
    """
    if transport.get_write_buffer_size():
        return False
    sock = transport.get_extra_info("socket")
    if sock is None:
        return True
    try:
        return undelivered_bytes(transport) * 8 <= int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    except OSError:  # the socket is gone
        return True


class Linger:
    """The patience with one client, which begins anew with each byte that it reads or still sends."""

    __slots__ = ("_deadline", "_left", "_moved_at", "_sends_until")

    def __init__(self, now: float, longest_seconds: float, sending_seconds: float) -> None:
        """Begin at a time of the monotonic clock, in seconds.

        Args:
            longest_seconds: in total, so that a byte now and then cannot hold a connection.
            sending_seconds: for sending; most programs read no answer before they have sent all.
        """
        self._deadline = now + longest_seconds
        self._sends_until = now + sending_seconds
        self._left = 0  # undelivered bytes at the last look
        self._moved_at = now

    def note_dropped(self, now: float) -> None:
        """Note that the client has sent bytes that are dropped."""
        self._moved_at = max(self._moved_at, min(now, self._sends_until))

    def goes_on(self, left: int, now: float, patience_seconds: float) -> bool:
        """Return whether to wait any longer.

        Args:
            left: undelivered bytes now.
            patience_seconds: to wait for the client to read the next byte.
        """
        if left < self._left:
            self._moved_at = now
        self._left = left
        if not left:
            return now - self._moved_at <= LINGER_SECONDS
        return now - self._moved_at <= patience_seconds and now <= self._deadline
