"""Large bodies of known length: their bytes pass the parser by, and go from the socket into one piece of memory.

The parser copies each piece of a body, and the loop has copied it before; joining them is a third copy. An endpoint
that takes a view gets the memory into which the socket was read. Others get `bytes`, of pieces that are joined once.
Nothing here knows of HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from arcpipe.allocator import allocate
from arcpipe.ingest.http.limits import READ_BYTES
from arcpipe.units import KB

PLAIN_BYTES: Final = 64 * KB
"""Bytes of a body above which its bytes pass the parser by. A smaller one mostly comes with its head."""
DIRECT_BYTES: Final = READ_BYTES
"""Bytes of a body above which it has memory of its own from its beginning. A smaller one needs few reads."""


class DirectBody:
    """The memory of one body. What was not received yet takes no memory: the kernel gives pages as they are written."""

    __slots__ = ("_memory", "length", "size")

    def __init__(self, length: int) -> None:
        """Begin with no bytes. Raises MemoryError without address space for `length`."""
        self._memory = allocate(length)
        self.length = length
        self.size = 0  # bytes received

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Copy the next bytes."""
        self._memory[self.size : self.size + len(data)] = data
        self.size += len(data)

    def room(self) -> memoryview:
        """Return the place of the next bytes, for one read. It ends with the body."""
        return self._memory[self.size : self.size + READ_BYTES]

    def whole(self) -> memoryview:
        """Return the complete body."""
        assert self.size == self.length, f"BUG: {self.size} bytes of {self.length}"
        return self._memory.toreadonly()


class Receiving(Protocol):
    """A connection whose body is received directly."""

    def body_room(self) -> memoryview:
        """Return the place of the body's next bytes."""

    def body_received(self, size: int) -> None:
        """Handle bytes that are in the body's memory."""

    def eof_received(self) -> bool:
        """Note that the client sends nothing more; return whether the connection stays open for its answers."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection has ended."""

    def pause_writing(self) -> None:
        """Note that the client does not read its answers."""

    def resume_writing(self) -> None:
        """Note that it reads again."""


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands in for a connection while a body arrives: the loop reads from the socket into the body's memory.

    uvloop keeps its methods until the next one stands in, so it must not refer to the body.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Receiving) -> None:
        self._connection = connection

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._connection.body_room()

    def buffer_updated(self, size: int) -> None:
        self._connection.body_received(size)

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
