"""What a record costs on its whole road: bytes of the WAL, bytes of Parquet, CPU time of all processes.

    python -m benchmarks.micro.record_cost [KIND …]

A server with one worker takes bodies of 1,000 records, and stops once all are uploaded. The CPU time is that of all of
its processes, less that of a server that takes nothing. docs/sizing.md has the figures, and reckons with them.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.load.bodies import ArrowBody, Body, ColumnarBody, LineBody, RowBody, TelegrafBody
from benchmarks.load.telemetry import PointsBody, SeriesBody

_RECORDS: Final = 1000  # of a body
_ALL_RECORDS: Final = 600_000  # of a run: seconds of CPU time, beside which that of a start is small
_BODIES: Final = 20  # that are different

KINDS: Final[dict[str, Callable[[int, random.Random], Body]]] = {
    "arrow": ArrowBody,
    "columns": ColumnarBody,
    "rows": RowBody,
    "lines": LineBody,
    "telegraf": TelegrafBody,
    "remote write": SeriesBody,
    "otlp metrics": PointsBody,
}


class Cost(NamedTuple):
    """The cost of one record."""

    wal_bytes: float
    parquet_bytes: float
    cpu_us: float


def main(kinds: Sequence[str]) -> None:
    """Print a line for each kind."""
    idle = _run([], 0)[2]
    print(f"{'kind':<14}{'WAL, bytes':>12}{'Parquet, bytes':>16}{'CPU, µs':>10}")
    for kind in kinds or KINDS:
        source = random.Random(1)
        bodies = [KINDS[kind](_RECORDS, source) for _ in range(_BODIES)]
        cost = measure(bodies, idle)
        print(f"{kind:<14}{cost.wal_bytes:>12.1f}{cost.parquet_bytes:>16.1f}{cost.cpu_us:>10.2f}", flush=True)


def measure(bodies: list[Body], idle_seconds: float) -> Cost:
    """Run a server for one kind of body."""
    rounds = _ALL_RECORDS // sum(body.records for body in bodies)
    wal_bytes, parquet_bytes, cpu_seconds = _run(bodies, rounds)
    records = rounds * sum(body.records for body in bodies)
    return Cost(wal_bytes / records, parquet_bytes / records, (cpu_seconds - idle_seconds) * 1e6 / records)


def _run(bodies: list[Body], rounds: int) -> tuple[float, float, float]:
    """Return bytes written to the WAL, bytes of Parquet, and CPU seconds of all processes."""
    with tempfile.TemporaryDirectory(prefix="arcpipe-cost-") as name:
        folder = Path(name)
        settings = {"SERVER_PORT": "0", "SERVER_WORKERS": "1", "WAL_MIN_FREE_MB": "16", "SHUTDOWN_DRAIN_SECONDS": "600"}
        environment = os.environ | {f"ARCPIPE_{key}": value for key, value in settings.items()}
        command = [sys.executable, "-m", "arcpipe", "serve"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        wal_bytes = 0.0
        try:
            connection = http.client.HTTPConnection(_address(server, folder / "log"), timeout=120)
            for _ in range(rounds):
                for body in bodies:
                    headers = {"Content-Type": body.content_type}
                    if body.content_encoding:
                        headers["Content-Encoding"] = body.content_encoding
                    connection.request("POST", body.path, body.at(time.time_ns() // 1000), headers)
                    answer = connection.getresponse()
                    said = answer.read()
                    if answer.status >= 300:
                        raise SystemExit(f"{body.path}: {answer.status} {said.decode(errors='replace')}")
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
            wal_bytes = sum(map(float, re.findall(r"^arcpipe_wal_bytes_total\S* (\S+)$", metrics, re.MULTILINE)))
        finally:
            server.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(server.pid, 0)
        if status:
            raise SystemExit(f"the server ended with status {status}:\n{(folder / 'log').read_text()}")
        parquet_bytes = float(sum(path.stat().st_size for path in folder.rglob("*.parquet")))
        return wal_bytes, parquet_bytes, usage.ru_utime + usage.ru_stime


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server serves; its host and port."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"serving on http://(\S+) with", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise SystemExit(f"the server does not serve:\n{log.read_text()}")


if __name__ == "__main__":
    main(sys.argv[1:])
