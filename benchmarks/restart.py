"""How long a start takes that finds a log: `python -m benchmarks.restart [--mb 1000] [--segments 10]`.

A log as a crash leaves it (active segments full of bodies of 1000 records), then `arcpipe serve` on it: the time until
it serves, which is Python's start, recovery and the workers' start, beside that of a start without a log; and the time
until all of it is in Parquet. Files are in the page cache, or read from the disk with `--cold`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console

from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import Group
from benchmarks import machine, report
from benchmarks.bodies import ColumnarBody
from benchmarks.server import Server

RECORDS: Final = 1000
_GROUP_BODIES: Final = 16
_SHIPPING_SECONDS: Final = 600.0


def make_log(directory: WALDirectory, total_bytes: int, segments: int) -> int:
    """Active segments, each of a slot of its own; the number of records in them."""
    directory.make()
    body = ColumnarBody(RECORDS, random.Random(1))
    prefix = envelope_prefix(1, "default")
    records = 0
    for slot in range(1, segments + 1):
        segment = Segment.make(directory, None, slot, 1, "node", sync=False)
        timestamp = segment.created
        content = body.at(timestamp)
        while segment.offset < total_bytes // segments:
            group = Group()
            for _ in range(_GROUP_BODIES):
                timestamp += 1
                group.add(prefix, content, RECORDS, timestamp)
            segment.write(group.buffers, group.size, group.entries, group.records, timestamp)
            records += group.records
    return records


def write_back(directory: Path, cold: bool) -> None:
    """What is in the page cache is on the disk, too; or nowhere else, if the start is to be cold."""
    for path in directory.glob("*.wal"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def start(directory: Path, records: int) -> tuple[float, float, str]:
    """Seconds until it serves, seconds until `records` are shipped, and what recovery said of itself."""
    settings = {"server.port": "0", "wal.dir": str(directory / "wal"), "storage.url": f"file://{directory}/lake"}
    began = time.monotonic()
    async with Server(directory, settings) as server:
        serving = time.monotonic() - began
        recovery = re.search(r"WAL recovery complete: .*", server.log_tail())
        async with asyncio.timeout(_SHIPPING_SECONDS):
            while True:
                if sum(map(int, re.findall(r" (\d+) rows shipped", server.log_tail()))) >= records:
                    break
                await asyncio.sleep(0.05)
        shipped = time.monotonic() - began
        server.terminate()
        await server.stopped(30.0)
    return serving, shipped, recovery[0] if recovery else "nothing to recover"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="on the disk to be measured; default: data")
    parser.add_argument("--mb", type=int, default=1000, help="of log, in 10^6 bytes; default: 1000")
    parser.add_argument("--segments", type=int, default=10, help="that it is in; default: 10")
    parser.add_argument("--cold", action="store_true", help="drop the log from the page cache first")
    options = parser.parse_args()
    options.data_dir.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    report.show_machine(console, machine.describe(options.data_dir))
    folder = Path(tempfile.mkdtemp(prefix="restart-", dir=options.data_dir)).resolve()
    try:
        empty, _, _ = asyncio.run(start(folder, 0))
        console.print(f"{'no log':<12} serves after {empty:.2f} s")
        records = make_log(WALDirectory(folder / "wal"), options.mb * 1_000_000, options.segments)
        write_back(folder / "wal", options.cold)
        serving, shipped, recovery = asyncio.run(start(folder, records))
        console.print(f"{options.mb:>5} MB{'':<5} serves after {serving:.2f} s ({recovery})")
        console.print(f"{'':<12} {records:,} records in Parquet after {shipped:.1f} s")
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
