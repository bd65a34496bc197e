"""The client for event loops: its calls never block the loop. The sender is a thread, as that of the other client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from arcpipe.client import encoding
from arcpipe.client.blocking import full
from arcpipe.client.core import Core, Stats
from arcpipe.client.encoding import Part, Record, Stream
from arcpipe.client.errors import Call, ClientError, Closed, Refusal
from arcpipe.client.options import Options

T = TypeVar("T")


class AsyncClient:
    """Sends records to arcpipe, each exactly once. It belongs to one event loop; each task there may use it.

    async with AsyncClient("http://127.0.0.1:8000", Options(database="production")) as client:
        await client.write("cpu", {"host": "web-1", "usage": 0.5}, tags=["host"])

    A call that is cancelled while it waits for room was not accepted. With `spool_sync="always"` it may have been: the
    disk is waited for in a thread, which goes on.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        options: Options | None = None,
        on_refused: Callable[[Refusal], None] | None = None,
    ) -> None:
        """Do as `Client`. It must be made while its event loop runs; `on_refused` is called there.

        Raises:
            ClientError: an URL, an option or a certificate cannot be used.
            SpoolError: the spool directory cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        told = None if on_refused is None else lambda refusal: self._call_in_loop(on_refused, refusal)
        options = options or Options()
        self._waits_for_disk = options.spool is not None and options.spool_sync == "always"
        self._core = Core(urls, options, told)
        self._core.buffer.listen(lambda: self._call_in_loop(self._changed.set))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def write(
        self,
        measurement: str,
        records: Record | Iterable[Record],
        tags: Sequence[str] = (),
        database: str | None = None,
    ) -> None:
        """Accept one record, or several, as `Client.write`."""
        await self._put(self._core.stream("msgpack", database), self._core.parts_of(measurement, records, tags))

    async def write_columns(
        self, measurement: str, columns: Mapping[str, Any], tags: Sequence[str] = (), database: str | None = None
    ) -> None:
        """Accept records as columns, as `Client.write_columns`."""
        parts = self._core.parts_of_columns(measurement, columns, tags)
        await self._put(self._core.stream("msgpack", database), parts)

    async def write_lines(self, lines: str | bytes | Iterable[str], database: str | None = None) -> None:
        """Accept line protocol, as `Client.write_lines`."""
        part = encoding.encode_lines(lines)
        await self._put(self._core.stream("lines", database), [] if part is None else [part])

    async def flush(self, seconds: float | None = None) -> None:
        """Send all that was accepted before, and wait until a server has it, as `Client.flush`."""
        self._core.check_may_wait()
        number = await self._ask(self._core.buffer.seal_all)
        if not await self._wait(lambda: self._core.buffer.is_done(number), seconds):
            raise self._core.not_sent(self._core.buffer.waiting()[0])
        self._core.take_refusals()

    async def close(self, seconds: float | None = None) -> None:
        """Send what waits, and end, as `Client.close`."""
        if self._core.is_closed:
            return
        number = await self._ask(self._core.buffer.end)
        try:
            if asyncio.get_running_loop() is self._loop:
                await self._wait(lambda: self._core.buffer.is_done(number), seconds)
            else:
                await asyncio.to_thread(self._core.buffer.wait_done, number, seconds)
        except Closed:
            if not self._core.is_closed:  # else another task has closed it meanwhile
                raise
        finally:
            left = await asyncio.shield(asyncio.to_thread(self._core.shut))
        if left and self._core.options.spool is None:
            raise self._core.not_sent(left)
        self._core.take_refusals()

    def stats(self) -> Stats:
        """Return figures since the client was made."""
        return self._core.stats()

    async def _put(self, stream: Stream, parts: Iterable[Part]) -> None:
        options = self._core.options
        buffer = self._core.buffer
        with Call() as call:
            for part in parts:
                put = partial(buffer.try_put, stream, part)
                taken = await self._ask(put)
                if not taken and options.when_full == "block":
                    taken = await self._wait(put, options.block_seconds)
                if not taken:
                    raise full(self._core)
                call.accepted += part.records

    async def _wait(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until a condition holds that a batch's end can change; False if the time is over before.

        Raises:
            ClientError: the sender cannot wake this event loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ClientError("the client belongs to another event loop: make one in this loop")
        deadline = None if seconds is None else self._loop.time() + seconds
        while True:
            self._changed.clear()
            if await self._ask(condition):
                return True
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return False

    async def _ask(self, call: Callable[[], T]) -> T:
        """Call the buffer: in a thread, if it may be locked until the disk has synced."""
        return await asyncio.to_thread(call) if self._waits_for_disk else call()

    def _call_in_loop(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed before the client
            pass
