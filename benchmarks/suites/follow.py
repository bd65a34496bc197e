"""Follow a load from its first request to its last answer, and make the result of its run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

from benchmarks.load.drive import Figures, LoadProcesses
from benchmarks.results.model import DeviceLimit, LoadOptions, ProcessResult, Run, Sample, ToParquet, WALUse
from benchmarks.system.server import ProcessUse
from benchmarks.system.usage import Usage

_TICK_SECONDS: Final = 0.5


class Plan(NamedTuple):
    """A run to make."""

    case: str
    round_number: int
    load: LoadOptions


class Measured(NamedTuple):
    """Figures of a load, and the cores that were used meanwhile."""

    figures: Figures
    usage: Usage
    body_bytes: float
    seconds: float  # from the first request to the last answer


class Outcome(NamedTuple):
    """Results of a run besides those of its load. The defaults are those of a server that is left running."""

    acknowledged_records: int
    processes: Mapping[int, ProcessUse]  # by pid, as last seen
    workers: int = 0
    backlog_at_start_bytes: int = 0
    parquet_records: int | None = None
    drain_seconds: float = 0.0
    to_parquet: ToParquet | None = None
    complaints: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    wal: WALUse | None = None
    device: DeviceLimit | None = None


async def follow(
    generators: LoadProcesses,
    load: LoadOptions,
    server_use: Callable[[], dict[int, ProcessUse]],
    tick: Callable[[str], None],
) -> Measured:
    """Run the load to its last answer.

    Args:
        generators: They are ready to start.
        load: The load that they send.
        server_use: Returns the use of each of the server's processes, by pid.
        tick: Called about twice a second with the state of the load in words; its exceptions end the load.

    Raises:
        LoadFailed: The load ended early, or no request was answered within the measured time.
    """
    started = time.perf_counter()
    work = asyncio.create_task(generators.run())
    usage = Usage(server_use, generators.pids)
    window_end = load.warmup_seconds + load.seconds
    try:
        while not work.done():
            elapsed = time.perf_counter() - started
            if elapsed >= load.warmup_seconds and not usage.is_open:
                usage.open()
            if elapsed >= window_end and not usage.is_closed:
                usage.close()
            phase = "warming up" if elapsed < load.warmup_seconds else "loading"
            tick(f"{phase}, {elapsed:.0f} of {window_end:g} s")
            elapsed = time.perf_counter() - started
            edges = [edge - elapsed for edge in (load.warmup_seconds, window_end) if edge > elapsed]
            await asyncio.wait([work], timeout=min([*edges, _TICK_SECONDS]))
        finished = await work
    finally:
        work.cancel()
        with suppress(BaseException):
            await work
    seconds = time.perf_counter() - started
    if not usage.is_closed:
        usage.close()
    return Measured(Figures.of(finished), usage, generators.body_bytes, seconds)


def now_utc() -> str:
    """Return the time as results keep it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_run(plan: Plan, started_at: str, measured: Measured, outcome: Outcome) -> Run:
    """Put a run's result together."""
    figures, usage = measured.figures, measured.usage
    return Run(
        case=plan.case,
        round=plan.round_number,
        load=plan.load,
        started_at=started_at,
        workers=outcome.workers,
        seconds=plan.load.seconds,
        requests_per_second=figures.requests_per_second,
        records_per_second=figures.requests_per_second * plan.load.records_per_body,
        body_bytes_per_second=figures.requests_per_second * measured.body_bytes,
        latency=figures.latency,
        backlog_at_start_bytes=outcome.backlog_at_start_bytes,
        acknowledged_records=outcome.acknowledged_records,
        parquet_records=outcome.parquet_records,
        drain_seconds=outcome.drain_seconds,
        to_parquet=outcome.to_parquet,
        processes=[
            ProcessResult(use.name, use.peak_rss_bytes, usage.server_cores.get(pid, 0.0))
            for pid, use in sorted(outcome.processes.items())
        ],
        load_cores=figures.cores,
        other_cores=usage.other_cores,
        stolen_cores=usage.stolen_cores,
        complaints=list(outcome.complaints),
        samples=list(outcome.samples),
        wal=outcome.wal,
        device=outcome.device,
    )
