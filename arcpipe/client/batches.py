"""Batches, and the store in memory that keeps them until they are sent. The spool is the other one."""

from __future__ import annotations

import secrets
import time
from typing import Protocol

from arcpipe.client.delivery import Message
from arcpipe.client.encoding import Part, Stream, body_of
from arcpipe.client.errors import Refusal


class Batch(Protocol):
    """Records that go, or went, out in one request."""

    stream: Stream
    records: int
    size: int
    """Bytes of its parts, or of its file."""
    key: str
    may_be_sent: bool
    """Whether a former process may have sent it, and a server may have it; known once it is sealed."""

    def add(self, part: Part) -> None:
        """Take one more part. Raises SpoolError: it was not taken, and the batch takes no more."""

    def rest(self) -> None:
        """Hold no file open until it is sent: thousands may wait, and the process has few descriptors."""

    def seal(self) -> Message | None:
        """Fix the content for ever, and return it. None: nothing can be sent, and the log says why.

        Raises:
            SpoolBusy: it has to be tried again.
        """

    def accepted(self) -> None:
        """Forget the content: a server has it."""

    def refused(self, refusal: Refusal) -> None:
        """Put the content aside: no server takes it."""


class Store(Protocol):
    """Where batches are until they are sent."""

    limit: int
    """Bytes of all batches together."""
    overhead: int
    """Bytes at most that a part takes besides its own, with the beginning of a batch."""

    def new(self, stream: Stream) -> Batch:
        """Begin a batch. Raises SpoolError: it cannot be begun."""

    def leftover(self) -> list[Batch]:
        """Return the batches of a former process, oldest first."""

    def close(self) -> None:
        """Let go of it."""


class Keys:
    """Keys that nobody else makes: a name of this run, and a number. They are names of files, too."""

    def __init__(self) -> None:
        self._run = f"{int(time.time()):x}-{secrets.token_hex(8)}"  # the time only sorts them
        self._next = 0

    def new(self) -> str:
        """Return the next key."""
        self._next += 1
        return f"{self._run}-{self._next:010d}"


class MemoryStore:
    """Batches in memory. What is not sent when the process ends is gone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.overhead = 0
        self._keys = Keys()

    def new(self, stream: Stream) -> Batch:
        return MemoryBatch(self._keys.new(), stream)

    def leftover(self) -> list[Batch]:
        return []

    def close(self) -> None:
        pass


class MemoryBatch:
    """A batch in memory."""

    may_be_sent = False

    def __init__(self, key: str, stream: Stream) -> None:
        self.stream = stream
        self.records = 0
        self.size = 0
        self.key = key
        self._parts: list[bytes] = []

    def add(self, part: Part) -> None:
        self._parts.append(part.data)
        self.records += part.records
        self.size += len(part.data)

    def rest(self) -> None:
        pass

    def seal(self) -> Message:
        return Message(self.key, self.stream, self.records, body_of(self.stream.format, self._parts))

    def accepted(self) -> None:
        self._parts.clear()

    def refused(self, refusal: Refusal) -> None:
        self._parts.clear()
