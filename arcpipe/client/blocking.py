"""The client for threads: its calls wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from arcpipe.client import encoding
from arcpipe.client.core import Core, Stats
from arcpipe.client.encoding import Part, Record, Stream
from arcpipe.client.errors import Call, Closed, Full, Refusal
from arcpipe.client.options import Options


class Client:
    """Sends records to arcpipe, each exactly once. Every thread may use it.

    with Client("http://127.0.0.1:8000", Options(database="production")) as client:
        client.write("cpu", {"host": "web-1", "usage": 0.5}, tags=["host"])
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        options: Options | None = None,
        on_refused: Callable[[Refusal], None] | None = None,
    ) -> None:
        """Start sending, at first what a former process left in the spool.

        Args:
            urls: of one server, or of several.
            on_refused: called in the sender's thread with each batch that is refused for good. Without it `flush` and
                `close` raise Refused.

        Raises:
            ClientError: an URL, an option or a certificate cannot be used.
            SpoolError: the spool directory cannot be used.
        """
        self._core = Core(urls, options or Options(), on_refused)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(
        self,
        measurement: str,
        records: Record | Iterable[Record],
        tags: Sequence[str] = (),
        database: str | None = None,
    ) -> None:
        """Accept one record, or several. A record without `time` gets that of now.

        Args:
            tags: names of columns that are tags.
            database: another one than that of the options.

        Raises:
            BadRecord: a record cannot be sent.
            Full: there is no room, and the options say to raise.
            Closed: the client takes no more.
            SpoolError: the spool's disk did not take it.
        """
        self._put(self._core.stream("msgpack", database), self._core.parts_of(measurement, records, tags))

    def write_columns(
        self, measurement: str, columns: Mapping[str, Any], tags: Sequence[str] = (), database: str | None = None
    ) -> None:
        """Accept records as columns of one length: the fastest way. Raises as `write`."""
        self._put(self._core.stream("msgpack", database), self._core.parts_of_columns(measurement, columns, tags))

    def write_lines(self, lines: str | bytes | Iterable[str], database: str | None = None) -> None:
        """Accept line protocol. A line without a timestamp gets the time of its arrival. Raises as `write`."""
        part = encoding.encode_lines(lines)
        self._put(self._core.stream("lines", database), [] if part is None else [part])

    def flush(self, seconds: float | None = None) -> None:
        """Send all that was accepted before, and wait until a server has it.

        Raises:
            NotSent: it took longer; sending goes on.
            Refused: batches were refused since the last call, and there is no `on_refused`.
            Closed: it is closed, or belongs to another process.
            ClientError: `on_refused` calls it, and would wait for itself.
        """
        self._core.check_may_wait()
        number = self._core.buffer.seal_all()
        if not self._core.buffer.wait_done(number, seconds):
            raise self._core.not_sent(self._core.buffer.waiting()[0])
        self._core.take_refusals()

    def close(self, seconds: float | None = None) -> None:
        """Send what waits, and end. With a spool the rest stays there after `seconds`; without one it is lost.

        Raises:
            NotSent: the time was over, and there is no spool.
            Refused: batches were refused since the last call, and there is no `on_refused`.
            ClientError: `on_refused` calls it, and would wait for itself.
        """
        if self._core.is_closed:
            return
        self._core.check_may_wait()
        try:
            self._core.buffer.wait_done(self._core.buffer.end(), seconds)
        except Closed:
            if not self._core.is_closed:  # else another thread has closed it meanwhile
                raise
        finally:
            left = self._core.shut()
        if left and self._core.options.spool is None:
            raise self._core.not_sent(left)
        self._core.take_refusals()

    def stats(self) -> Stats:
        """Return figures since the client was made."""
        return self._core.stats()

    def _put(self, stream: Stream, parts: Iterable[Part]) -> None:
        options = self._core.options
        with Call() as call:
            for part in parts:
                if options.when_full == "raise" or self._core.is_in_sender:
                    taken = self._core.buffer.try_put(stream, part)
                else:
                    taken = self._core.buffer.put(stream, part, options.block_seconds)
                if not taken:
                    raise full(self._core)
                call.accepted += part.records


def full(core: Core) -> Full:
    """Make the error for a record that finds no room."""
    records, size = core.buffer.waiting()
    last = core.stats().last_error
    return Full(
        f"{records} records ({size} bytes) wait to be sent already" + (f"; the last error: {last}" * bool(last))
    )
