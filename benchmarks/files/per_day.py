"""Files of a day under a light load: `python -m benchmarks.files.per_day`.

Each host sends a line for each measurement, again and again, over a connection of its own. The real server takes them.
After the first batch, whole minutes are counted: the figure is that of a steady stream. With `--compact` the records
are of an hour that is over. When the server has stopped, `arcpipe compact` merges it. A query over one measurement is
timed before and after, and on a single file of the same rows. Settings follow as `KEY=VALUE`:

    python -m benchmarks.files.per_day                                  # the defaults
    python -m benchmarks.files.per_day uploader.interval_seconds=0      # each segment at once
    python -m benchmarks.files.per_day --minutes 10 --compact
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

_DAY_SECONDS: Final = 86_400
_START_SECONDS: Final = 60.0
_AGO_SECONDS: Final = 7_200  # of the records, so that their hour is over
_QUERIES: Final = 15
_QUERY: Final = "select host, avg(value), max(load) from read_parquet(?, union_by_name = true) group by host"


def main() -> int:
    """Run the load, and print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--minutes", type=float, default=3.0, help="time that is counted")
    options.add_argument("--hosts", type=int, default=100)
    options.add_argument("--measurements", type=int, default=10)
    options.add_argument("--every", type=float, default=4.0, help="seconds between two bodies of a host")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--compact", action="store_true", help="merge the files afterwards, and time a query")
    options.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    return asyncio.run(_run(options.parse_args()))


async def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="files-per-day-") as folder:
        directory = Path(folder)
        variables = {
            "ARCPIPE_SERVER_PORT": "0",
            "ARCPIPE_SERVER_WORKERS": str(options.workers),
            "ARCPIPE_WAL_DIR": str(directory / "wal"),
            "ARCPIPE_STORAGE_URL": f"file://{directory / 'lake'}",
        }
        for setting in options.settings:
            key, _, value = setting.partition("=")
            variables[f"ARCPIPE_{key.replace('.', '_').upper()}"] = value
        log = directory / "log"
        with log.open("wb") as output:
            server = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "arcpipe", "serve"), env=os.environ | variables, stdout=output, stderr=output
            )
        try:
            await _measure(options, directory, await _port(log))
        finally:
            server.send_signal(signal.SIGTERM)
            await server.wait()
        if options.compact:
            _compact(options, directory, variables)
    return 0


async def _port(log: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not (found := re.search(r"serving on http://[^:]+:(\d+)", _read(log))):
        if time.monotonic() > deadline:
            raise SystemExit(_read(log))
        await asyncio.sleep(0.1)
    return int(found[1])


def _read(log: Path) -> str:
    return log.read_text()


def _files(directory: Path) -> int:
    return sum(1 for _ in (directory / "lake").rglob("*.parquet"))


async def _measure(options: argparse.Namespace, directory: Path, port: int) -> None:
    sent = [0]
    senders = [asyncio.create_task(_send(options, port, host, sent)) for host in range(options.hosts)]
    deadline = time.monotonic() + _START_SECONDS
    while not _files(directory) and time.monotonic() < deadline:  # noqa: ASYNC110 (another process makes them)
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # the rest of the first batch
    before, rows, began = _files(directory), sent[0], time.monotonic()
    await asyncio.sleep(options.minutes * 60)
    files = _files(directory) - before
    seconds = time.monotonic() - began
    print(
        f"{files} files in {seconds:.0f} s: {files * _DAY_SECONDS / seconds:,.0f} a day, "
        f"{(sent[0] - rows) / max(files, 1):.0f} rows each; {(sent[0] - rows) / seconds:.0f} rows/s"
    )
    for sender in senders:
        sender.cancel()
    await asyncio.gather(*senders, return_exceptions=True)


def _compact(options: argparse.Namespace, directory: Path, variables: dict[str, str]) -> None:
    """Merge the files, and print their number and the time of a query before and after."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = list((directory / "lake").rglob("*.parquet"))
    then = time.time() - _AGO_SECONDS
    for path in files:
        os.utime(path, (then, then))  # of younger ones, a request may still be on its way
    hours = len({path.parent for path in files}) // options.measurements
    before = _query_seconds(directory)
    tables = [pq.ParquetFile(path).read() for path in _of_one_measurement(directory)]
    pq.write_table(pa.concat_tables(tables).sort_by("time"), directory / "single.parquet", compression="zstd")
    command = (sys.executable, "-m", "arcpipe", "compact", "--json")
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    moments = [float(found) for found in re.findall(r'"visible_twice_ms": ?([0-9.]+)', done.stdout)]
    after = _query_seconds(directory)
    single = _query_seconds(directory / "single.parquet")
    count = _files(directory)
    print(
        f"compacted {hours} hours: {len(files)} files became {count}, {count * 24 // hours} a day; "
        f"rows seen twice for {max(moments):.0f} ms at most\n"
        f"query of one measurement: {before * 1e3:.1f} ms before, {after * 1e3:.1f} ms after; "
        f"{single * 1e3:.1f} ms of a single file"
    )


def _of_one_measurement(directory: Path) -> list[Path]:
    return sorted((directory / "lake").glob("*/m0/**/*.parquet"))


def _query_seconds(place: Path) -> float:
    """Return the median time of a query over a file, or over the files of one measurement in a lake."""
    import duckdb

    files = [str(place)] if place.is_file() else [str(path) for path in _of_one_measurement(place)]
    times = []
    with duckdb.connect() as connection:
        for _ in range(_QUERIES):
            began = time.perf_counter()
            connection.execute(_QUERY, [files]).fetchall()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _send(options: argparse.Namespace, port: int, host: int, sent: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(options.every * host / options.hosts)
    ago = _AGO_SECONDS if options.compact else 0
    while True:
        now = time.time_ns() - ago * 1_000_000_000
        lines = [
            f"m{number},host=host-{host} value={now % 997}i,load={now % 31 / 7} {now}"
            for number in range(options.measurements)
        ]
        body = "\n".join(lines).encode()
        writer.write(b"POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 204"), head
        sent[0] += options.measurements
        await asyncio.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
