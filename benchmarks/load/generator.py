"""The load generator: one process, many keep-alive connections, requests that were built before.

It shares the machine with the server, so it does next to nothing per request: one comparison, one clock, one append,
one write.

Closed loop: each connection sends its next request when it has the answer to the last one.

Open loop (a rate is given): requests are due at fixed times, whatever the server does. A latency counts from the time
at which its request was due, so requests that a stall delayed count in full (no coordinated omission). Every request
that was due counts, even if its answer comes after the end of the load. The generator looks at the clock once per
millisecond and with each answer, so up to a millisecond of an open loop's latency is its own.

Only 2xx answers count. The first other answer ends the load with its text.

It runs as a process of its own, `python -m benchmarks.load.generator`. Specification and start signal come in on stdin,
one JSON line per event goes out on stdout. `drive` is the other end.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import ssl
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import httptools
import msgspec
import numpy as np
import uvloop

from benchmarks.load.bodies import Body, make_bodies
from benchmarks.results.histogram import Histogram

# Seconds after which a request gets present times again.
_RENEWAL_SECONDS: Final = 1.0
_PROGRESS_SECONDS: Final = 0.25
# Measurements of a load up to which that is done: of thousands of bodies each comes too rarely for its times to matter.
_FEW_MEASUREMENTS: Final = 16
_OPEN_LOOP_TICK_SECONDS: Final = 0.001
# Latencies to keep before they are sorted into buckets. Usual runs have fewer, and sort once, at their end.
_MAX_SAMPLES: Final = 4_000_000
# Seconds to wait for connections, for bodies, and for each of the last answers after the end of the load.
PATIENCE_SECONDS: Final = 60.0


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The load of one process. `requests_per_second` 0 is a closed loop."""

    host: str
    port: int
    format: str
    records: int
    connections: int
    warmup_seconds: float
    seconds: float
    requests_per_second: float = 0.0
    measurements: int = 1  # bodies take turns with them
    seed: int = 1
    path: str = ""  # with its query; "" is the body's own
    headers: dict[str, str] = {}  # sent with each request
    tls: bool = False
    verify_certificate: bool = False  # with the system's authorities or SSL_CERT_FILE


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Bodies are built and connections are open."""

    body_bytes: float  # of one body, on average


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Progress of a load, a few times a second."""

    acknowledged_requests: int


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Every request is answered. `measured_…` is from warm-up to the end of the load."""

    acknowledged_requests: int
    measured_requests: int
    measured_seconds: float
    cpu_seconds: float  # of this process, measured
    histogram: str  # HdrHistogram, encoded


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The load ended early."""

    reason: str


Event = Ready | Progress | Finished | Failed


class LoadFailed(Exception):
    """An answer that was not 2xx, a lost connection, or silence."""


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    __slots__ = ("_load", "_parser", "_pieces", "_text", "since", "transport")

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []  # of an answer that is unusual or not yet whole
        self._text = b""
        self.transport: asyncio.Transport
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data == self._load.usual_answer and not self._pieces:
            self._load.acknowledged(self)
            return
        self._pieces.append(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._load.fail(f"an answer that is not HTTP ({error}): {data[:200]!r}")

    def on_body(self, body: bytes) -> None:
        self._text += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if not 200 <= status < 300:
            self._load.fail(f"HTTP {status}: {self._text[:1000].decode('utf-8', 'replace')}")
            return
        # The next answer of the same bytes need not be parsed.
        self._load.usual_answer = b"".join(self._pieces)
        self._pieces.clear()
        self._text = b""
        self._load.acknowledged(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(f"the server closed a connection{f' ({exc})' if exc else ''}")


class Load:
    """A load: it sends until the time is over, then waits for the last answers."""

    def __init__(self, spec: LoadSpec) -> None:
        """Prepare the load of a specification, without connecting."""
        self._spec = spec
        self._bodies = make_bodies(spec.format, spec.records, spec.seed, spec.measurements)
        # Compression would add to latencies.
        self._are_renewed = spec.measurements <= _FEW_MEASUREMENTS and not any(
            body.content_encoding for body in self._bodies
        )
        self._requests: list[bytes] = []
        self.body_bytes = 0.0
        self._turn = 0
        self.usual_answer = b""
        self._connections: list[_Connection] = []
        self._idle: deque[_Connection] = deque()
        self._sending = False
        self._interval = 1 / spec.requests_per_second if spec.requests_per_second else 0.0
        self._next_due = 0.0
        self._end = 0.0  # open loop: no request is due from then on
        self._latencies = array("d")
        self._due = array("d")  # open loop: when the request of each latency was due
        self._window = (0.0, 0.0)  # open loop: a latency counts if its request was due between these times
        self._histogram = Histogram()
        self._measured = 0
        self._acknowledged_before = 0  # no longer in `_latencies`
        self._done: asyncio.Future[None]

    async def connect(self) -> None:
        """Build the requests, and open the connections."""
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        now_us = time.time_ns() // 1000
        tls = ssl.create_default_context() if self._spec.tls else None
        if tls is not None and not self._spec.verify_certificate:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        contents = [body.at(now_us) for body in self._bodies]
        self._requests = list(map(self._request, self._bodies, contents))
        self.body_bytes = sum(map(len, contents)) / len(contents)
        for _ in range(self._spec.connections):
            _, connection = await loop.create_connection(
                lambda: _Connection(self), self._spec.host, self._spec.port, ssl=tls
            )
            self._connections.append(connection)
        self._idle = deque(self._connections)

    async def run(self, on_progress: Callable[[int], None]) -> Finished:
        """Send the load, and return its figures.

        Raises:
            LoadFailed: The load ended early.
        """
        loop = asyncio.get_running_loop()
        spec = self._spec
        self._sending = True
        if self._are_renewed:
            loop.call_later(_RENEWAL_SECONDS / len(self._requests), self._renew, 0)
        start = time.perf_counter()
        if self._interval:
            self._next_due = start
            self._end = start + spec.warmup_seconds + spec.seconds
            self._window = (start + spec.warmup_seconds, self._end)
            self._send_due()
        else:
            idle, self._idle = self._idle, deque()
            for connection in idle:
                self._send(connection, time.perf_counter())
        await self._until(start + spec.warmup_seconds, on_progress, measured=False)
        self._take_samples(measured=False)
        window_start = time.perf_counter()
        cpu_start = _cpu_seconds()
        await self._until(start + spec.warmup_seconds + spec.seconds, on_progress, measured=True)
        cpu = _cpu_seconds() - cpu_start
        window = time.perf_counter() - window_start
        self._sending = bool(self._interval)  # an open loop sends every request that was due, however late
        measured = self._cut_samples()
        await self._last_answers(on_progress)
        self._sending = False
        self._count_samples(*measured, measured=True)  # only now: it takes some ms, and nothing would be sent meanwhile
        self._take_samples(measured=False)
        self._done.set_result(None)  # from here on a lost connection is not a failure
        return Finished(
            acknowledged_requests=self._acknowledged_before,
            measured_requests=self._measured,
            measured_seconds=window,
            cpu_seconds=cpu,
            histogram=self._histogram.encoded(),
        )

    def acknowledged(self, connection: _Connection) -> None:
        """Count an answer, and send the next request. This is the hot path."""
        now = time.perf_counter()
        self._latencies.append(now - connection.since)
        if not self._interval:
            if self._sending:
                self._send(connection, now)
            else:
                self._idle.append(connection)
            return
        self._due.append(connection.since)
        if self._next_due <= now and self._is_more_due():
            self._send(connection, self._next_due)
            self._next_due += self._interval
        else:
            self._idle.append(connection)

    def fail(self, reason: str) -> None:
        """End the load early; the first reason counts."""
        self._sending = False
        if not self._done.done():
            self._done.set_exception(LoadFailed(reason))

    def _send(self, connection: _Connection, since: float) -> None:
        requests = self._requests
        turn = self._turn
        self._turn = turn + 1 if turn + 1 < len(requests) else 0
        connection.since = since
        connection.transport.write(requests[turn])

    def _is_more_due(self) -> bool:
        return self._sending and self._next_due < self._end

    def _send_due(self) -> None:
        """Open loop: send due requests on free connections; the others wait for an answer."""
        if not self._is_more_due():
            return
        now = time.perf_counter()
        while self._next_due <= now and self._idle and self._is_more_due():
            # In turn: the server closes a connection that never sends.
            self._send(self._idle.popleft(), self._next_due)
            self._next_due += self._interval
        asyncio.get_running_loop().call_later(_OPEN_LOOP_TICK_SECONDS, self._send_due)

    def _renew(self, index: int) -> None:
        """Give one request after the other present times."""
        if self._sending:
            body, count = self._bodies[index], len(self._bodies)
            self._requests[index] = self._request(body, body.at(time.time_ns() // 1000))
            asyncio.get_running_loop().call_later(_RENEWAL_SECONDS / count, self._renew, (index + 1) % count)

    def _request(self, body: Body, content: bytes) -> bytes:
        host = f"[{self._spec.host}]" if ":" in self._spec.host else self._spec.host
        head = (
            f"POST {self._spec.path or body.path} HTTP/1.1\r\nHost: {host}:{self._spec.port}\r\n"
            f"Content-Type: {body.content_type}\r\nContent-Length: {len(content)}\r\n"
        )
        if body.content_encoding:
            head += f"Content-Encoding: {body.content_encoding}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self._spec.headers.items())
        return f"{head}\r\n".encode("ascii") + content

    def _take_samples(self, measured: bool) -> None:
        self._count_samples(*self._cut_samples(), measured=measured)

    def _cut_samples(self) -> tuple[array[float], array[float]]:
        """Return the samples so far, and begin anew: latencies, and in an open loop when their requests were due."""
        samples = self._latencies, self._due
        self._latencies, self._due = array("d"), array("d")
        self._acknowledged_before += len(samples[0])
        return samples

    def _count_samples(self, samples: array[float], dues: array[float], *, measured: bool) -> None:
        latencies = np.frombuffer(samples, np.float64)
        if measured:
            self._measured += len(samples)
        if self._interval:
            due = np.frombuffer(dues, np.float64)
            self._histogram.add(latencies[(self._window[0] <= due) & (due < self._window[1])])
        elif measured:
            self._histogram.add(latencies)

    async def _until(self, deadline: float, on_progress: Callable[[int], None], measured: bool) -> None:
        while (left := deadline - time.perf_counter()) > 0:
            await self._wait(min(left, _PROGRESS_SECONDS))
            if len(self._latencies) >= _MAX_SAMPLES:
                self._take_samples(measured)
            on_progress(self._acknowledged_before + len(self._latencies))

    async def _last_answers(self, on_progress: Callable[[int], None]) -> None:
        """Wait until every request that was sent or is due is answered."""
        deadline, answered = 0.0, -1
        while len(self._idle) < len(self._connections) or (self._interval and self._is_more_due()):
            if len(self._latencies) != answered:
                deadline, answered = time.perf_counter() + PATIENCE_SECONDS, len(self._latencies)
            elif time.perf_counter() > deadline:
                missing = len(self._connections) - len(self._idle)
                raise LoadFailed(f"{missing} requests have no answer after {PATIENCE_SECONDS:g} s")
            await self._wait(0.01)
            on_progress(self._acknowledged_before + len(self._latencies))

    async def _wait(self, seconds: float) -> None:
        """Sleep; raise LoadFailed as soon as the load has failed."""
        await asyncio.wait([self._done], timeout=seconds)
        if self._done.done():
            self._done.result()


def _cpu_seconds() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def main() -> None:
    """Run the process: read a specification, send the load, write events."""
    spec = msgspec.json.decode(sys.stdin.readline(), type=LoadSpec)

    def tell(event: Event) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
        sys.stdout.buffer.flush()

    async def work() -> None:
        try:
            _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
            load = Load(spec)
            await load.connect()
            gc.disable()  # the load makes no cycles, and a collection would add to latencies
            tell(Ready(load.body_bytes))
            if sys.stdin.readline() != "go\n":
                return
            tell(await load.run(lambda acknowledged: tell(Progress(acknowledged))))
        except (LoadFailed, OSError) as error:
            tell(Failed(str(error)))

    uvloop.run(work())


if __name__ == "__main__":
    main()
