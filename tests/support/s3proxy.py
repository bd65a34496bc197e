"""A proxy in front of an S3 server that goes wrong in the ways in which networks and object stores do.

`FaultyProxy` listens on a loopback port of its own, in a thread of its own, and passes each request on to the real
server on a connection of its own, streaming. What goes wrong with a request is decided when its head has come: by
`fail_next` for the next ones, by `fail_at` for one by its number, or by `fail_randomly` for a share of all. With `deny`
it refuses requests, as S3 does where a role lacks a permission. It knows HTTP and the shape of S3's errors, and nothing
of arcpipe.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pytest

from tests.support.s3server import S3Bucket
from tests.support.waiting import WAIT_SECONDS

T = TypeVar("T")

_CHUNK = 65_536
_MAX_HEAD = 65_536
# How long nothing is said before a connection that hangs is closed, and a refusal of connections lasts.
_HANG_SECONDS = 1.0
_REFUSE_SECONDS = 0.5


class Answer(NamedTuple):
    """An error as S3 gives it."""

    status: int
    code: str

    def encode(self, has_body: bool = True) -> bytes:
        body = (
            has_body
            * (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                f"<Error><Code>{self.code}</Code><Message>because a test wants it</Message></Error>"
            ).encode()
        )
        head = f"HTTP/1.1 {self.status} {self.code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body


ANSWERS: Final = {
    "internal error": Answer(500, "InternalError"),
    "slow down": Answer(503, "SlowDown"),
    "too many requests": Answer(429, "TooManyRequests"),
    "request timeout": Answer(400, "RequestTimeout"),
    "clock skew": Answer(403, "RequestTimeTooSkewed"),
}
FAULTS: Final = (
    "refused",  # this connection is reset, and for a while there is nobody at the port
    "reset at once",  # when the head has come
    "reset in the body",  # when half of the body has come
    "lost answer",  # the server has done it, and nobody hears of it
    "reset in the answer",  # after half of it
    "cut answer",  # after half of it, the connection is closed as if that were all
    "hanging",  # nothing is said, and in the end the connection closed
    "slow",  # everything goes well, but slowly
    *ANSWERS,
)


LATE: Final = "late"
"""A fault of requests that change something: the connection is reset, and `deliver` sends them on."""


class _Ended(Exception):
    """The client is gone, or is to be."""


class FaultyProxy:
    """`endpoint_url` is the server behind it, `url` the proxy itself. For a `with` block.

    All methods may be called from any thread.
    """

    def __init__(self, endpoint_url: str) -> None:
        parts = urlsplit(endpoint_url)
        assert parts.scheme == "http"
        self._server = (parts.hostname or "", parts.port or 80)
        self.injected: Counter[str] = Counter()  # faults so far
        self.requests: Counter[str] = Counter()  # passed on to the server, by method
        self.access_key_id: str | None = None  # if set, requests signed with another one are refused
        self.session_token: str | None = None  # if set, requests with another one are refused: it has expired
        self.seen: list[str] = []  # method and target of every request, in the order in which their heads came
        self._at: dict[int, str] = {}
        self._late: list[bytes] = []
        self._denied: list[re.Pattern[str]] = []
        self._next: deque[tuple[str, str, str]] = deque()
        self._share = 0.0
        self._deck: list[str] = []
        self._random = random.Random()
        self._is_up = True
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # Bound but not listening: the port stays ours, and refuses connections, while nobody listens.
        self._reserve = socket.socket()
        self._reserve.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserve.bind(("127.0.0.1", 0))
        self.port: int = self._reserve.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3proxy")

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reserve.close()

    # What is to go wrong

    def fail_next(self, fault: str, times: int = 1, method: str = "PUT", target: str = "") -> None:
        """Give this fault to the next requests of a method with a text in their target.

        Faults that were ordered before come first.
        """
        assert fault in (*FAULTS, LATE)
        self._next.extend([(method, target, fault)] * times)

    def fail_at(self, number: int, fault: str) -> None:
        """Give this fault to one request, counted from 0 for the next one."""
        assert fault in (*FAULTS, LATE)
        self._at[len(self.seen) + number] = fault

    def deliver(self) -> list[int]:
        """Have the server get what was late, after its client has long gone. Returns the statuses of its answers."""
        return self._run(self._deliver())

    def deny(self, *requests: str) -> None:
        """Requests whose method and target match one of these patterns are refused from now on, and no others."""
        self._denied = [re.compile(request) for request in requests]

    def fail_randomly(self, share: float, seed: int) -> None:
        """This share of all requests goes wrong from now on, each fault as often as any other; 0 ends it."""
        self._random = random.Random(seed)
        self._share = share

    def go_down(self) -> None:
        """Resets all connections and refuses new ones, until `come_up`."""
        self._is_up = False
        self._run(self._close())

    def come_up(self) -> None:
        self._is_up = True
        self._run(self._listen())

    # The loop

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_SECONDS)

    async def _listen(self) -> None:
        if self._listener is None and self._is_up:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", self.port))
            self._listener = await asyncio.start_server(self._serve, sock=listener, limit=_MAX_HEAD)

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in list(self._connections):
            _reset(writer)

    async def _end(self) -> None:
        self._is_up = False
        await self._close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refuse_for_a_while(self) -> None:
        await self._close()
        await asyncio.sleep(_REFUSE_SECONDS)
        await self._listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._connections.add(writer)
        try:
            while True:
                await self._exchange(reader, writer)
        except (_Ended, OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.split(b" ", 2)[:2]
        request = f"{method.decode()} {target.decode()}"
        number = len(self.seen)
        self.seen.append(request)
        is_chunked = re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head) is not None  # Arrow's client sends so
        size = 0 if is_chunked else _content_length(head)
        fault = self._at.pop(number, None) or self._choose(request)
        if fault == LATE and method in (b"GET", b"HEAD"):
            fault = "reset at once"
        if fault is not None:
            self.injected[fault] += 1
        match fault:
            case "refused":
                self._start(self._refuse_for_a_while())
                raise _Ended
            case "reset at once":
                raise _reset(writer)
            case "reset in the body":
                await reader.readexactly(size // 2)
                raise _reset(writer)
            case "hanging":
                await asyncio.sleep(_HANG_SECONDS)
                raise _Ended
        body = _read_chunks(reader) if is_chunked else _read(reader, size)
        if fault == LATE:
            self._late.append(head + b"".join([data async for data in body]))
            raise _reset(writer)
        key = re.search(rb"Credential=([^/]+)/", head)
        if self.access_key_id is not None and (key is None or key[1].decode() != self.access_key_id):
            await self._answer(writer, body, Answer(403, "InvalidAccessKeyId").encode())
        elif self.session_token is not None and token_of(head) != self.session_token:
            await self._answer(writer, body, Answer(400, "ExpiredToken").encode(has_body=method != b"HEAD"))
        elif any(denied.search(request) for denied in self._denied):
            await self._answer(writer, body, Answer(403, "AccessDenied").encode(has_body=method != b"HEAD"))
        elif fault in ANSWERS:
            await self._answer(writer, body, ANSWERS[fault].encode(has_body=method != b"HEAD"))
        else:
            self.requests[method.decode()] += 1
            await self._pass_on(head, body, writer, fault)

    async def _answer(self, writer: asyncio.StreamWriter, body: AsyncIterator[bytes], answer: bytes) -> None:
        async for _ in body:
            pass
        writer.write(answer)
        await writer.drain()

    async def _deliver(self) -> list[int]:
        held, self._late = self._late, []
        statuses = []
        for request in held:
            reader, server = await asyncio.open_connection(*self._server)
            try:
                head, _, body = request.partition(b"\r\n\r\n")
                server.write(head + b"\r\nConnection: close\r\n\r\n" + body)
                answer = await reader.read(-1)
            finally:
                server.close()
            statuses.append(int(answer.split(b" ", 2)[1]))
        return statuses

    async def _pass_on(
        self, head: bytes, body: AsyncIterator[bytes], writer: asyncio.StreamWriter, fault: str | None
    ) -> None:
        reader, server = await asyncio.open_connection(*self._server)
        try:
            # One request per connection: the answer ends with it.
            server.write(head[:-2] + b"Connection: close\r\n\r\n")
            async for data in body:
                server.write(data)
                await server.drain()
            answer = await reader.read(-1)
        finally:
            server.close()
        is_framed = re.search(rb"(?i)\r\n(content-length|transfer-encoding):", answer.partition(b"\r\n\r\n")[0])
        match fault:
            case "lost answer":
                raise _reset(writer)
            case "reset in the answer" | "cut answer":
                writer.write(answer[: len(answer) // 2])
                await writer.drain()
                raise _reset(writer) if fault == "reset in the answer" else _Ended
            case "slow":
                step = len(answer) // 5 + 1
                for start in range(0, len(answer), step):
                    writer.write(answer[start : start + step])
                    await asyncio.sleep(0.05)
            case _:
                writer.write(re.sub(rb"(?i)\r\nconnection: close", b"", answer, count=1) if is_framed else answer)
        await writer.drain()
        if not is_framed or fault == "slow":
            raise _Ended

    def _choose(self, request: str) -> str | None:
        """The fault of a request, given by method and target; None for none."""
        if self._next:
            method, target, fault = self._next[0]
            if request.startswith(f"{method} ") and target in request:
                self._next.popleft()
                return fault
        if not self._share or self._random.random() >= self._share:
            return None
        if not self._deck:
            self._deck = self._random.sample(FAULTS, len(FAULTS))
        return self._deck.pop()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def token_of(head: bytes) -> str:
    """The session token of a request; empty if it has none."""
    found = re.search(rb"(?i)\r\nx-amz-security-token: *([^\r]+)", head)
    return found[1].decode() if found else ""


def _content_length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    assert not re.search(rb"(?i)\r\ntransfer-encoding:", head), "the SDK sends lengths"
    return int(found[1]) if found else 0


async def _read(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        data = await reader.read(min(size, _CHUNK))
        if not data:
            raise _Ended
        size -= len(data)
        yield data


async def _read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Read a chunked body as it is, with its sizes and its trailer."""
    while True:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        if not size:
            break
        yield await reader.readexactly(size + 2)
    while line != b"\r\n":
        line = await reader.readuntil(b"\r\n")
        yield line


def _reset(writer: asyncio.StreamWriter) -> _Ended:
    """Ends a connection with a RST instead of a FIN; what to raise then."""
    connection = writer.get_extra_info("socket")
    if connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return _Ended()


@pytest.fixture
def proxy(s3: S3Bucket) -> Iterator[FaultyProxy]:
    """Stand between a test and the S3 server of its bucket."""
    with FaultyProxy(s3.endpoint_url) as proxy:
        yield proxy
