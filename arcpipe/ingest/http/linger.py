"""The end of a connection whose client still has to get its last answers.

A server that closes while the client still sends has the kernel answer with a reset, and a reset takes away from many
clients what they have not read yet. So the sending side ends first, and what the client still sends is read and dropped
until it has all answers and some time to close (RFC 9112 §9.6).
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Final

# Seconds that a client has to close once it has all answers. A client that is there does so within a round trip.
LINGER_SECONDS: Final = 2.0
_INT: Final = struct.Struct("i")


def undelivered_bytes(transport: asyncio.Transport) -> int:
    """What is written and did not reach the client's machine: it waits here, in the kernel, or is on its way."""
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
    """Whether nothing of what was written waits in this process, not even beneath TLS.

    What TLS has encrypted waits in a transport below it, whose size is not told. It waits only while the kernel takes
    nothing; a send buffer that is an eighth full takes more, however small its segments are.
    """
    if transport.get_write_buffer_size():
        return False
    sock = transport.get_extra_info("socket")
    if sock is None:
        return True
    try:
        return undelivered_bytes(transport) * 8 <= int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    except OSError:  # it is gone
        return True


class Linger:
    """Whether to wait any longer for one client. Its time counts anew with each byte that it takes or still sends."""

    __slots__ = ("_deadline", "_left", "_moved_at", "_sends_until")

    def __init__(self, now: float, longest_seconds: float, sending_seconds: float) -> None:
        """
        Args:
            longest_seconds: for everything, so that nobody holds a connection with a byte now and then.
            sending_seconds: in which it may still send; most programs read no answer before they have sent all.
        """
        self._deadline = now + longest_seconds
        self._sends_until = now + sending_seconds
        self._left = 0  # bytes, when it was last looked
        self._moved_at = now

    def note_dropped(self, now: float) -> None:
        """The client has sent something, which is dropped."""
        self._moved_at = max(self._moved_at, min(now, self._sends_until))

    def goes_on(self, left: int, now: float, patience_seconds: float) -> bool:
        """
        Args:
            left: bytes that are undelivered now.
            patience_seconds: without a byte taken.
        """
        if left < self._left:
            self._moved_at = now
        self._left = left
        if not left:
            return now - self._moved_at <= LINGER_SECONDS
        return now - self._moved_at <= patience_seconds and now <= self._deadline
