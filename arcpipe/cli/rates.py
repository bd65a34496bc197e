"""Rates and latencies of the last seconds, from the difference of two pictures of a server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from arcpipe.monitoring.health import Picture
    from arcpipe.monitoring.process_state import Distribution, WorkerState


class Sample(NamedTuple):
    """A picture, and its time of arrival on this machine's monotonic clock, in seconds."""

    picture: Picture
    came_at: float


def are_apart(earlier: Sample, later: Sample) -> bool:
    """Tell whether two pictures cannot be compared, because the server was restarted."""
    now, before = later.picture.instance, earlier.picture.instance
    elapsed = now.uptime_seconds - before.uptime_seconds
    is_slow = abs(elapsed - (later.came_at - earlier.came_at)) > 2
    return elapsed < 0 or is_slow or len(now.workers) != len(before.workers)


class WorkerRates(NamedTuple):
    """Rates of a worker per second, and latencies in seconds; None if unknown."""

    records: float | None
    body_bytes: float | None
    requests: float | None
    refused: float | None
    ack_p99: float | None
    lag_p99: float | None


class Live(NamedTuple):
    """Figures from the difference of pictures. Rates are per second, latencies in seconds."""

    workers: dict[int, WorkerRates]
    ack: Distribution
    sync: Distribution
    groups: Distribution
    rows: float | None
    file_bytes: float | None
    retries: int
    databases: dict[str, float | None]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Live:
        """Compute rates of requests from the last two pictures, and all else from the first and the last."""
        chosen = samples[-1], samples[max(0, len(samples) - 2)], samples[0]
        now, before, first = (sample.picture.instance for sample in chosen)
        known = {worker.slot: worker for worker in before.workers}
        known_first = {worker.slot: worker for worker in first.workers}
        # The server's uptime advances evenly; its time of day may be set.
        seconds = now.uptime_seconds - first.uptime_seconds
        lately = now.uptime_seconds - before.uptime_seconds

        def grown(name: str) -> Distribution:
            parts = [getattr(worker, name) - getattr(known_first[worker.slot], name) for worker in now.workers]
            return cast("Distribution", reduce(add, parts))

        return cls(
            workers={
                worker.slot: _worker_rates(worker, known[worker.slot], known_first[worker.slot], lately)
                for worker in now.workers
            },
            ack=grown("ack_seconds"),
            sync=grown("sync_seconds"),
            groups=grown("group_entries"),
            rows=_rate(first.uploader.rows, now.uploader.rows, seconds),
            file_bytes=_rate(first.uploader.file_bytes, now.uploader.file_bytes, seconds),
            retries=sum(now.uploader.retries.values()) - sum(first.uploader.retries.values()),
            databases={
                name: _rate(first.databases[name].records if name in first.databases else 0, usage.records, seconds)
                for name, usage in now.databases.items()
            },
        )

    def total(self, name: str) -> float | None:
        """Return the sum of a rate over all workers for which it is known; None if there is none."""
        rates = [rate for rate in (getattr(worker, name) for worker in self.workers.values()) if rate is not None]
        return sum(rates) if rates else None


def _worker_rates(now: WorkerState, before: WorkerState, first: WorkerState, seconds: float) -> WorkerRates:
    # A worker publishes its counters with each heartbeat, four times a second, so they are as old as the last one.
    seconds += before.heartbeat_age_seconds - now.heartbeat_age_seconds
    return WorkerRates(
        records=_rate(before.records, now.records, seconds),
        body_bytes=_rate(before.body_bytes, now.body_bytes, seconds),
        requests=_rate(before.requests, now.requests, seconds),
        refused=_rate(before.writes_refused, now.writes_refused, seconds),
        ack_p99=(now.ack_seconds - first.ack_seconds).quantile(0.99),
        lag_p99=(now.loop_lag_seconds - first.loop_lag_seconds).quantile(0.99),
    )


def _rate(before: int, now: int, seconds: float) -> float | None:
    return (now - before) / seconds if seconds > 0.2 and now >= before else None
