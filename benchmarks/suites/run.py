"""One run: a fresh server on an empty directory, a load, samples over time, a graceful stop, and the count."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.factory import CACHED_BACKLOG_BYTES
from benchmarks.load.drive import Figures, load_processes, load_spec
from benchmarks.load.generator import LoadFailed
from benchmarks.report.progress import Status
from benchmarks.results.model import DeviceLimit, LoadOptions, Run, Sample, ToParquet, WALUse, slope
from benchmarks.suites.catalogue import Case
from benchmarks.suites.device import SYNCS, device_limit
from benchmarks.suites.follow import Measured, Outcome, Plan, follow, make_run, now_utc
from benchmarks.suites.parquet_files import ParquetFiles
from benchmarks.suites.stored import make_wal, write_back
from benchmarks.system.server import ProcessUse, Server, ServerFailed, make_certificate, make_token

_WAL: Final = "wal"
# Between two samples while the server stops.
_SAMPLE_SECONDS: Final = 0.5
# Without a new record in Parquet for this time, the run is given up.
_STALL_SECONDS: Final = 120.0
_DRAIN_SECONDS: Final = 24 * 3600
# Time to measure the disk alone, for writing over and for appending.
_DEVICE_SECONDS: Final = 0.5
# The server's counters include the last records after this time.
_COUNTERS_SECONDS: Final = 5.0


class Order(NamedTuple):
    """A run to make, and its surroundings."""

    case: Case
    round_number: int
    load: LoadOptions  # with the values of the case
    directory: Path  # for the server's files; does not exist yet
    backlog_bytes: int  # in sealed segments when the server starts
    wait_for_parquet: bool  # until every record is in Parquet, before the server is stopped
    status: Status


async def run_case(order: Order) -> Run:
    """Run one case, and remove its files.

    Raises:
        LoadFailed: The load failed, so there is no figure.
        ServerFailed: The server failed, so there is no figure.
    """
    directory = order.directory
    os.mkdir(directory)
    try:
        records = 0
        if order.backlog_bytes:
            order.status("making the backlog")
            wal = WALDirectory(directory / _WAL)
            size, each = order.backlog_bytes, order.load.records_per_body
            records, _ = await asyncio.to_thread(make_wal, wal, size, each, sealed=True)
            await asyncio.to_thread(write_back, wal, CACHED_BACKLOG_BYTES)  # as a server leaves it
        # Earlier runs leave dirty pages; write them back before this run starts.
        await asyncio.to_thread(os.sync)
        return await _Run(order, records).run()
    finally:
        shutil.rmtree(directory)


class _Run:
    def __init__(self, order: Order, records_before: int) -> None:
        self._order = order
        self._settings = order.case.settings
        self._options = order.load
        self._status = order.status
        self._records_before = records_before  # in the backlog
        self._wal = order.directory / _WAL
        self._lake = order.directory / "lake"
        self._server = Server(
            order.directory,
            {
                **self._settings,
                "server.host": "127.0.0.1",
                "server.port": "0",
                "wal.dir": str(self._wal),
                "storage.url": f"file://{self._lake}",
                "shutdown.drain_seconds": str(_DRAIN_SECONDS),
            },
        )
        self._files = ParquetFiles(self._lake)
        self._samples: list[Sample] = []
        self._peaks: dict[int, ProcessUse] = {}
        self._started = 0.0

    async def run(self) -> Run:
        order = self._order
        started_at = now_utc()
        token = await self._secrets()
        self._status("starting the server")
        async with self._server as server:
            measured = await self._load(token)
            loaded = measured.figures.acknowledged_requests * self._options.records_per_body
            wal = await self._wal_use(measured.figures, loaded, token)
            acknowledged = self._records_before + loaded
            to_parquet = await self._catch_up(acknowledged, measured.seconds) if order.wait_for_parquet else None
            drain_seconds = await self._drain(acknowledged)
        outcome = Outcome(
            acknowledged_records=acknowledged,
            processes=self._peaks,
            workers=server.workers,
            backlog_at_start_bytes=order.backlog_bytes,
            # A new count: a file that was written twice must be counted twice.
            parquet_records=ParquetFiles(self._lake).update(),
            drain_seconds=drain_seconds,
            to_parquet=to_parquet,
            complaints=tuple(server.complaints),
            samples=tuple(self._samples),
            wal=wal,
            device=await self._device(wal),
        )
        return make_run(Plan(order.case.name, order.round_number, self._options), started_at, measured, outcome)

    async def _secrets(self) -> str:
        """Make the certificate and the token that the settings ask for; return the token."""
        directory = self._order.directory
        token = await make_token(directory) if self._settings.get("auth.enabled") == "true" else ""
        if certificate := self._settings.get("server.tls_cert"):
            await make_certificate(directory, certificate, self._settings["server.tls_key"])
        return token

    async def _load(self, token: str) -> Measured:
        """Run the load from the first request to the last answer, with a sample at each tick."""
        server, options = self._server, self._options
        spec = load_spec(
            options,
            server.host,
            server.port,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            tls="server.tls_cert" in self._settings,
        )
        async with load_processes(spec, options.load_processes) as generators:

            def tick(state: str) -> None:
                self._sample(self._records_before + generators.acknowledged_records)
                last = self._samples[-1]
                self._status(
                    f"{state}, {_millions(last.acknowledged_records)} records acknowledged, "
                    f"{_millions(last.parquet_records)} in Parquet"
                )
                server.check()

            self._started = time.perf_counter()
            try:
                return await follow(generators, options, server.usage, tick)
            except LoadFailed as error:
                raise LoadFailed(f"{error}\n{server.log_tail()}".rstrip()) from None

    async def _device(self, wal: WALUse | None) -> DeviceLimit | None:
        """Measure the disk alone with groups of this run's size; None if the WAL is not synced per group."""
        sync = self._settings.get("wal.sync_mode", "fdatasync")
        if wal is None or sync not in SYNCS:
            return None
        self._status("measuring the disk alone")
        seconds = min(_DEVICE_SECONDS, self._options.seconds / 5)
        size = round(wal.bytes_per_commit)
        return await asyncio.to_thread(device_limit, self._order.directory, sync, size, self._server.workers, seconds)

    async def _wal_use(self, figures: Figures, records: int, token: str) -> WALUse | None:
        """Measure the use of the WAL; None if the server does not report it.

        Counters are up to a second old, so they cannot be read at the edges of the measured time. The result is the
        mean of a request over the whole load, multiplied by the measured requests per second.
        """
        if self._settings.get("wal.enabled") == "false":
            return None
        deadline = time.perf_counter() + _COUNTERS_SECONDS
        while True:
            counters = await self._server.counters(token)
            if counters["arcpipe_records_total"] >= records and counters["arcpipe_wal_commits_total"]:
                break
            if time.perf_counter() > deadline:
                return None
            await asyncio.sleep(0.1)
        size, commits = counters["arcpipe_wal_bytes_total"], counters["arcpipe_wal_commits_total"]
        per_second = figures.requests_per_second / figures.acknowledged_requests
        return WALUse(size * per_second, commits * per_second, size / commits)

    async def _catch_up(self, acknowledged: int, load_seconds: float) -> ToParquet:
        """Wait until every acknowledged record is in Parquet."""
        await self._follow_uploads(acknowledged, "waiting for the uploader", self._all_there(acknowledged))
        total_seconds = self._samples[-1].seconds
        half = self._options.warmup_seconds + self._options.seconds / 2
        second_half = [sample for sample in self._samples if half <= sample.seconds <= load_seconds]
        return ToParquet(
            parquet_records_per_second=slope(second_half, lambda sample: sample.parquet_records),
            backlog_growth_records_per_second=slope(second_half, lambda sample: sample.backlog_records),
            backlog_peak_records=max(sample.backlog_records for sample in self._samples),
            catch_up_seconds=total_seconds - load_seconds,
            records_per_second=acknowledged / total_seconds,
        )

    def _all_there(self, acknowledged: int) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            await asyncio.sleep(0.1)
            self._server.check()
            return self._files.update() >= acknowledged

        return check

    async def _drain(self, acknowledged: int) -> float:
        """Stop the server; return the seconds that this took."""
        before = time.perf_counter()
        self._server.terminate()
        await self._follow_uploads(acknowledged, "draining", lambda: self._server.stopped(_SAMPLE_SECONDS))
        return time.perf_counter() - before

    async def _follow_uploads(self, acknowledged: int, what: str, is_over: Callable[[], Awaitable[bool]]) -> None:
        """Take samples until `is_over` returns True.

        Raises:
            ServerFailed: No record came into Parquet for _STALL_SECONDS.
        """
        progress_at, progress = time.perf_counter(), -1
        while True:
            over = await is_over()
            self._sample(acknowledged)
            uploaded = self._samples[-1].parquet_records
            self._status(f"{what}, {_millions(uploaded)} of {_millions(acknowledged)} records in Parquet")
            if over:
                return
            if uploaded != progress:
                progress_at, progress = time.perf_counter(), uploaded
            elif time.perf_counter() - progress_at > _STALL_SECONDS:
                raise ServerFailed(
                    f"{what}: {acknowledged - uploaded} records are not in Parquet and none came in "
                    f"{_STALL_SECONDS:g} s:\n{self._server.log_tail()}"
                )

    def _sample(self, acknowledged: int) -> None:
        waiting = 0
        with suppress(FileNotFoundError):  # retired while it was listed
            waiting = sum(entry.stat().st_size for entry in os.scandir(self._wal) if entry.name.endswith(".sealed"))
        uploaded = self._files.update()
        self._peaks.update(self._server.usage())
        self._samples.append(Sample(time.perf_counter() - self._started, acknowledged, uploaded, waiting))


def _millions(records: int) -> str:
    return f"{records / 1e6:.2f} M"
