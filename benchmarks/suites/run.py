"""One run: a fresh server on an empty directory, a load, samples over time, a graceful stop, and the count."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.factory import CACHED_BACKLOG_BYTES
from benchmarks.load.drive import Figures, LoadProcesses, load_processes, load_spec
from benchmarks.load.generator import Finished, LoadFailed
from benchmarks.report.progress import Status
from benchmarks.results.model import LoadOptions, LogUse, ProcessResult, Run, Sample, ToParquet, slope
from benchmarks.suites.catalogue import Case
from benchmarks.suites.device import SYNCS, device_limit
from benchmarks.suites.stored import make_log, write_back
from benchmarks.system.server import ProcessUse, Server, ServerFailed, make_certificate, make_token
from benchmarks.system.usage import Usage

_WAL: Final = "wal"
_SAMPLE_SECONDS: Final = 0.5
# A drain that ships nothing for so long will not end.
_STALL_SECONDS: Final = 120.0
_DRAIN_SECONDS: Final = 24 * 3600
# Of the disk alone, writing over and appending.
_DEVICE_SECONDS: Final = 0.5
# Within which the server's counters tell of the last records.
_COUNTERS_SECONDS: Final = 5.0
# What looking for new Parquet files may take of a core: there may be tens of thousands.
_LOOKING_SHARE: Final = 0.05


async def run_case(
    case: Case,
    round_number: int,
    load: LoadOptions,
    directory: Path,
    backlog_bytes: int,
    wait_for_parquet: bool,
    status: Status,
) -> Run:
    """Runs one case and removes what it wrote.

    Args:
        case: where the server listens and keeps its files is added to its settings.
        load: what is sent, all of the case included.
        directory: does not exist yet.
        backlog_bytes: of completed segments that are there when the server starts.
        wait_for_parquet: let everything become Parquet by itself before the server is stopped.
        status: is told now and then how far it is.

    Raises:
        LoadFailed, ServerFailed: there is no figure.
    """
    os.mkdir(directory)
    try:
        records = 0
        if backlog_bytes:
            status("making the backlog")
            log = WALDirectory(directory / _WAL)
            records, _ = await asyncio.to_thread(make_log, log, backlog_bytes, load.records_per_body, sealed=True)
            await asyncio.to_thread(write_back, log, CACHED_BACKLOG_BYTES)  # as a server leaves it
        # What was left to be written or given back must not be this run's burden.
        await asyncio.to_thread(os.sync)
        run = _Run(case, round_number, load, directory, wait_for_parquet, status)
        return await run.run(backlog_bytes, records)
    finally:
        shutil.rmtree(directory)


class ParquetFiles:
    """Counts rows in the footers of the Parquet files below a directory, each file once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: set[str] = set()
        self._next_look = 0.0
        self.records = 0

    def update(self) -> int:
        """Looks for new files, now and then if that takes long; the rows of all seen so far."""
        started = time.perf_counter()
        if started >= self._next_look:
            self._look()
            now = time.perf_counter()
            self._next_look = now + (now - started) / _LOOKING_SHARE
        return self.records

    def _look(self) -> None:
        for folder, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = os.path.join(folder, name)
                if name.endswith(".parquet") and path not in self._seen:
                    self._seen.add(path)
                    self.records += pq.read_metadata(path).num_rows


class _Run:
    def __init__(
        self,
        case: Case,
        round_number: int,
        load: LoadOptions,
        directory: Path,
        wait_for_parquet: bool,
        status: Status,
    ) -> None:
        self._case = case
        self._settings = case.settings
        self._directory = directory
        self._round = round_number
        self._options = load
        self._wait_for_parquet = wait_for_parquet
        self._status = status
        self._wal = directory / _WAL
        self._lake = directory / "lake"
        self._server = Server(
            directory,
            {
                **case.settings,
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
        self._records_before = 0

    async def run(self, backlog_bytes: int, records_before: int) -> Run:
        """Args: records_before: in the backlog."""
        self._records_before = records_before
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        options = self._options
        token = await make_token(self._directory) if self._settings.get("auth.enabled") == "true" else ""
        if certificate := self._settings.get("server.tls_cert"):
            await make_certificate(self._directory, certificate, self._settings["server.tls_key"])
        self._status("starting the server")
        async with self._server as server:
            spec = load_spec(
                options,
                server.host,
                server.port,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                tls=bool(certificate),
            )
            async with load_processes(spec, options.load_processes) as generators:
                try:
                    finished, usage = await self._load(generators)
                except LoadFailed as error:
                    raise LoadFailed(f"{error}\n{server.log_tail()}".rstrip()) from None
                body_bytes = generators.body_bytes
            load_seconds = time.perf_counter() - self._started
            figures = Figures.of(finished)
            loaded = figures.acknowledged_requests * options.records_per_body
            log = await self._log_use(figures, loaded, token)
            acknowledged = records_before + loaded
            to_parquet = None
            if self._wait_for_parquet:
                to_parquet = await self._catch_up(acknowledged, load_seconds)
            drain_seconds = await self._drain(acknowledged)
        sync = self._settings.get("wal.sync_mode", "fdatasync")
        device = None
        if log is not None and sync in SYNCS:
            self._status("measuring the disk alone")
            group_bytes = round(log.bytes_per_commit)
            seconds = min(_DEVICE_SECONDS, options.seconds / 5)
            device = await asyncio.to_thread(device_limit, self._directory, sync, group_bytes, server.workers, seconds)
        return Run(
            case=self._case.name,
            round=self._round,
            load=options,
            started_at=started_at,
            workers=server.workers,
            seconds=options.seconds,
            requests_per_second=figures.requests_per_second,
            records_per_second=figures.requests_per_second * options.records_per_body,
            body_bytes_per_second=figures.requests_per_second * body_bytes,
            latency=figures.latency,
            backlog_at_start_bytes=backlog_bytes,
            acknowledged_records=acknowledged,
            # Counted anew: a file that was written twice must not hide behind its first count.
            parquet_records=ParquetFiles(self._lake).update(),
            drain_seconds=drain_seconds,
            to_parquet=to_parquet,
            processes=[
                ProcessResult(peak.name, peak.peak_rss_bytes, usage.server_cores.get(pid, 0.0))
                for pid, peak in sorted(self._peaks.items())
            ],
            load_cores=figures.cores,
            other_cores=usage.other_cores,
            stolen_cores=usage.stolen_cores,
            complaints=server.complaints,
            samples=self._samples,
            log=log,
            device=device,
        )

    async def _load(self, generators: LoadProcesses) -> tuple[list[Finished], Usage]:
        """The load from the first request to the last answer, and who used the cores meanwhile."""
        options = self._options
        self._started = time.perf_counter()
        work = asyncio.create_task(generators.run())
        usage = Usage(self._server.usage, generators.pids)
        window_start = options.warmup_seconds
        window_end = options.warmup_seconds + options.seconds
        try:
            while not work.done():
                elapsed = time.perf_counter() - self._started
                if elapsed >= window_start and not usage.is_open:
                    usage.open()
                if elapsed >= window_end and not usage.is_closed:
                    usage.close()
                self._sample(self._records_before + generators.acknowledged_records)
                last = self._samples[-1]
                self._status(
                    f"{'warming up' if elapsed < window_start else 'loading'}, {elapsed:.0f} of {window_end:g} s, "
                    f"{_millions(last.acknowledged_records)} records acknowledged, "
                    f"{_millions(last.parquet_records)} in Parquet"
                )
                self._server.check()
                elapsed = time.perf_counter() - self._started
                edges = [edge - elapsed for edge in (window_start, window_end) if edge > elapsed]
                await asyncio.wait([work], timeout=min([*edges, _SAMPLE_SECONDS]))
            finished = await work
        finally:
            work.cancel()
            with suppress(BaseException):
                await work
        if not usage.is_closed:
            usage.close()
        return finished, usage

    async def _log_use(self, figures: Figures, records: int, token: str) -> LogUse | None:
        """What a request cost of the log in the whole load, times the requests per second that were measured: the
        counters are not fresh enough to be read at the edges of the measured time.
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
        return LogUse(size * per_second, commits * per_second, size / commits)

    async def _catch_up(self, acknowledged: int, load_seconds: float) -> ToParquet:
        """Waits until everything acknowledged is in Parquet."""
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
        """Stops the server; seconds that it took."""
        before = time.perf_counter()
        self._server.terminate()
        await self._follow_uploads(acknowledged, "draining", lambda: self._server.stopped(_SAMPLE_SECONDS))
        return time.perf_counter() - before

    async def _follow_uploads(self, acknowledged: int, what: str, is_over: Callable[[], Awaitable[bool]]) -> None:
        """Samples until something is over, as long as it gets on."""
        progress_at, progress = time.perf_counter(), -1
        while True:
            over = await is_over()
            self._sample(acknowledged)
            shipped = self._samples[-1].parquet_records
            self._status(f"{what}, {_millions(shipped)} of {_millions(acknowledged)} records in Parquet")
            if over:
                return
            if shipped != progress:
                progress_at, progress = time.perf_counter(), shipped
            elif time.perf_counter() - progress_at > _STALL_SECONDS:
                raise ServerFailed(
                    f"{what}: {acknowledged - shipped} records are not in Parquet and none came in "
                    f"{_STALL_SECONDS:g} s:\n{self._server.log_tail()}"
                )

    def _sample(self, acknowledged: int) -> None:
        waiting = 0
        with suppress(FileNotFoundError):  # retired while it was listed
            waiting = sum(entry.stat().st_size for entry in os.scandir(self._wal) if entry.name.endswith(".sealed"))
        shipped = self._files.update()
        self._peaks.update(self._server.usage())
        self._samples.append(Sample(time.perf_counter() - self._started, acknowledged, shipped, waiting))


def _millions(records: int) -> str:
    return f"{records / 1e6:.2f} M"
