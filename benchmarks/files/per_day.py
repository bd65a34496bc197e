"""Files of a day under a light load: `python -m benchmarks.files.per_day`.

Each host sends a line for each measurement, again and again, over a connection of its own. The real server takes them.
After the first batch, whole minutes are counted: the figure is that of a steady stream. Settings follow as `KEY=VALUE`:

    python -m benchmarks.files.per_day                                  # the defaults
    python -m benchmarks.files.per_day uploader.interval_seconds=0      # each segment at once
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

_DAY_SECONDS: Final = 86_400
_START_SECONDS: Final = 60.0


def main() -> int:
    """Run the load, and print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--minutes", type=float, default=3.0, help="time that is counted")
    options.add_argument("--hosts", type=int, default=100)
    options.add_argument("--measurements", type=int, default=10)
    options.add_argument("--every", type=float, default=4.0, help="seconds between two bodies of a host")
    options.add_argument("--workers", type=int, default=2)
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


async def _send(options: argparse.Namespace, port: int, host: int, sent: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(options.every * host / options.hosts)
    while True:
        now = time.time_ns()
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
