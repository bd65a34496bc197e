"""Duration of a start of the real server on a WAL that a crash left.

The time until it serves consists of Python's start, recovery, and the workers' start. That of a start without a WAL is
measured just before. Recovery verifies and seals the segments. They become Parquet afterwards, while the server serves.

The last rows do not wait for others to make a batch with. By default their turn comes up to a minute later
(`uploader.interval_seconds`), and the figure would be that of the wait. Batches are the same, because every segment is
there from the beginning.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from arcpipe.wal.directory import ACTIVE, WALDirectory
from benchmarks.report.progress import Status
from benchmarks.results.model import RecoveryRun
from benchmarks.suites.catalogue import CrashCase
from benchmarks.suites.parquet_files import ParquetFiles
from benchmarks.suites.stored import make_wal, write_back
from benchmarks.system.server import Server, ServerFailed

_STALL_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 60.0
_COMPLETE: Final = re.compile(r"WAL recovery complete: .* ([0-9.]+) s")
_LEAST_SCAN_SECONDS: Final = 0.01  # the resolution of the server's log


async def run_recovery(
    case: CrashCase, wal_bytes: int, round_number: int, directory: Path, status: Status
) -> RecoveryRun:
    """Start the server without a WAL and with one; remove their files.

    Args:
        case: The WAL to make.
        wal_bytes: Its size; the case may take a part of it.
        round_number: Number of the round, for the result.
        directory: For the server's files; does not exist yet.
        status: Called with the state of the run in words.

    Raises:
        ServerFailed: The server failed, so there is no figure.
    """
    os.mkdir(directory)
    try:
        return await _run(case, wal_bytes, round_number, directory, status)
    finally:
        shutil.rmtree(directory)


async def _run(case: CrashCase, wal_bytes: int, round_number: int, directory: Path, status: Status) -> RecoveryRun:
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    lake = directory / "lake"
    settings = {"server.port": "0", "wal.dir": str(directory / "wal"), "storage.url": f"file://{lake}"}
    settings["uploader.interval_seconds"] = "0"
    status("starting the server without a WAL")
    began = time.monotonic()
    async with Server(directory, settings) as server:
        empty_start_seconds = time.monotonic() - began
        await _stop(server)
    status("making the WAL")
    wal = WALDirectory(directory / "wal")
    records, segments = await asyncio.to_thread(
        make_wal, wal, int(wal_bytes * case.part_of_wal), case.records_per_entry, sealed=False
    )
    size = sum(file.size for file in wal.segments(ACTIVE))
    await asyncio.to_thread(write_back, wal, 0 if case.is_cold else None)
    status("starting the server")
    began = time.monotonic()
    async with Server(directory, settings) as server:
        start_seconds = time.monotonic() - began
        complete = _COMPLETE.search(server.log_tail())
        if complete is None:
            raise ServerFailed(f"the server logs no recovery:\n{server.log_tail()}")
        files = ParquetFiles(lake)
        progress_at, uploaded = time.monotonic(), -1
        while files.update() < records:
            server.check()
            if files.records != uploaded:
                progress_at, uploaded = time.monotonic(), files.records
            elif time.monotonic() - progress_at > _STALL_SECONDS:
                raise ServerFailed(f"no record came into Parquet in {_STALL_SECONDS:g} s:\n{server.log_tail()}")
            status(f"{uploaded / 1e6:.2f} of {records / 1e6:.2f} M records in Parquet")
            await asyncio.sleep(0.05)
        uploaded_seconds = time.monotonic() - began
        await _stop(server)
    return RecoveryRun(
        round=round_number,
        started_at=started_at,
        wal_bytes=size,
        segments=segments,
        records=records,
        parquet_records=ParquetFiles(lake).update(),
        empty_start_seconds=empty_start_seconds,
        start_seconds=start_seconds,
        scan_seconds=max(float(complete[1]), _LEAST_SCAN_SECONDS),
        uploaded_seconds=uploaded_seconds,
    )


async def _stop(server: Server) -> None:
    server.terminate()
    if not await server.stopped(_STOP_SECONDS):
        raise ServerFailed(f"the server did not stop in {_STOP_SECONDS:g} s:\n{server.log_tail()}")
