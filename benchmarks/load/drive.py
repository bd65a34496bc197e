"""Load generators as the harness sees them: started together, followed, ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, cast

import msgspec

from benchmarks.load.generator import PATIENCE_SECONDS, Event, Failed, Finished, LoadFailed, LoadSpec, Progress, Ready
from benchmarks.results.histogram import Histogram
from benchmarks.results.model import Latency, LoadOptions
from benchmarks.system.children import end_processes, spawn


class Figures(NamedTuple):
    """Figures of all generators together, from warm-up to end of the load; `acknowledged_requests` is of all."""

    acknowledged_requests: int
    requests_per_second: float
    cores: float  # CPU seconds of the generators per second
    latency: Latency

    @classmethod
    def of(cls, finished: list[Finished]) -> Figures:
        """Put together the figures of each generator.

        Raises:
            LoadFailed: No request was answered within the measured time.
        """
        if not any(one.measured_requests for one in finished):
            raise LoadFailed("no request was answered within the measured time: measure longer (--seconds)")
        histogram = Histogram()
        for one in finished:
            histogram.merge(Histogram(one.histogram))
        return cls(
            acknowledged_requests=sum(one.acknowledged_requests for one in finished),
            requests_per_second=sum(one.measured_requests / one.measured_seconds for one in finished),
            cores=sum(one.cpu_seconds / one.measured_seconds for one in finished),
            latency=Latency(
                p50_seconds=histogram.percentile(50),
                p90_seconds=histogram.percentile(90),
                p99_seconds=histogram.percentile(99),
                p999_seconds=histogram.percentile(99.9),
                maximum_seconds=histogram.maximum_seconds,
                hdr_histogram=histogram.encoded(),
            ),
        )


class LoadProcesses:
    """Processes of load generators."""

    def __init__(self, specs: list[LoadSpec]) -> None:
        """Prepare a generator for each of `specs`, without starting it."""
        self._specs = specs
        self._processes: list[asyncio.subprocess.Process] = []
        self._acknowledged = [0] * len(specs)
        self.body_bytes = 0.0  # of one body, on average

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        return [process.pid for process in self._processes]

    @property
    def acknowledged_records(self) -> int:
        """Records acknowledged since the first request, as of the last progress event."""
        return sum(requests * spec.records for requests, spec in zip(self._acknowledged, self._specs, strict=True))

    async def start(self) -> None:
        """Start the processes, and wait until all are ready.

        Raises:
            LoadFailed: One of them cannot connect.
        """
        for spec in self._specs:
            process = await spawn("benchmarks.load.generator", stdin=True, stdout=True)
            self._processes.append(process)
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(spec) + b"\n")
        ready = await asyncio.gather(*(self._event(process) for process in self._processes))
        self.body_bytes = sum(event.body_bytes for event in ready if isinstance(event, Ready)) / len(ready)

    async def run(self) -> list[Finished]:
        """Let them send until every request is answered; return their figures.

        Raises:
            LoadFailed: The load ended early.
        """
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        return list(await asyncio.gather(*(self._follow(index) for index in range(len(self._processes)))))

    async def end(self) -> None:
        """End the processes that still run."""
        await end_processes(self._processes)

    async def _follow(self, index: int) -> Finished:
        while True:
            event = await self._event(self._processes[index])
            if isinstance(event, Finished):
                self._acknowledged[index] = event.acknowledged_requests
                return event
            if isinstance(event, Progress):
                self._acknowledged[index] = event.acknowledged_requests

    async def _event(self, process: asyncio.subprocess.Process) -> Event:
        assert process.stdout is not None
        try:
            # A generator that waits in vain fails first, with a better reason.
            line = await asyncio.wait_for(process.stdout.readline(), 2 * PATIENCE_SECONDS)
        except TimeoutError:
            raise LoadFailed(f"a load generator says nothing for {2 * PATIENCE_SECONDS:g} s") from None
        if not line:
            raise LoadFailed("a load generator ended without a word")
        event = msgspec.json.decode(line, type=Event)
        if isinstance(event, Failed):
            raise LoadFailed(event.reason)
        return cast(Event, event)


def load_spec(
    options: LoadOptions,
    host: str,
    port: int,
    *,
    headers: dict[str, str],
    tls: bool,
    path: str = "",
    verify_certificate: bool = False,
) -> LoadSpec:
    """Make the specification of a load. The arguments are as in `LoadSpec`."""
    return LoadSpec(
        host=host,
        port=port,
        format=options.format,
        records=options.records_per_body,
        connections=options.connections,
        warmup_seconds=options.warmup_seconds,
        seconds=options.seconds,
        requests_per_second=options.records_per_second / options.records_per_body,
        measurements=options.measurements,
        path=path,
        headers=headers,
        tls=tls,
        verify_certificate=verify_certificate,
    )


@asynccontextmanager
async def load_processes(spec: LoadSpec, processes: int) -> AsyncIterator[LoadProcesses]:
    """Start generators that share the connections and the rate of `spec`; end them with the block."""
    shares = [len(range(index, spec.connections, processes)) for index in range(processes)]
    specs = [
        msgspec.structs.replace(
            spec,
            connections=connections,
            requests_per_second=spec.requests_per_second * connections / spec.connections,
            seed=spec.seed + index,
        )
        for index, connections in enumerate(shares)
        if connections
    ]
    load = LoadProcesses(specs)
    try:
        await load.start()
        yield load
    finally:
        await load.end()
