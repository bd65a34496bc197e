"""What a record takes on the disk of the WAL, and in the store: bytes by the way it came.

    python -m benchmarks.micro.record_bytes [KIND …]

A server with one worker takes bodies of 1,000 records, and stops once all are uploaded. docs/sizing.md has the figures,
and reckons with them.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.load.bodies import ArrowBody, Body, ColumnarBody, LineBody, RowBody, TelegrafBody
from benchmarks.load.telemetry import PointsBody, SeriesBody

_RECORDS: Final = 1000  # of a body
_BODIES: Final = 100  # all different: values that come again would make the files smaller

KINDS: Final[dict[str, Callable[[int, random.Random], Body]]] = {
    "arrow": ArrowBody,
    "columns": ColumnarBody,
    "rows": RowBody,
    "lines": LineBody,
    "telegraf": TelegrafBody,
    "remote write": SeriesBody,
    "otlp metrics": PointsBody,
}


def main(kinds: Sequence[str]) -> None:
    """Print a line for each kind."""
    print(f"{'kind':<14}{'WAL, bytes':>12}{'Parquet, bytes':>16}")
    for kind in kinds or KINDS:
        source = random.Random(1)
        wal, parquet = measure([KINDS[kind](_RECORDS, source) for _ in range(_BODIES)])
        print(f"{kind:<14}{wal:>12.1f}{parquet:>16.1f}", flush=True)


def measure(bodies: list[Body]) -> tuple[float, float]:
    """Return bytes of the WAL and of Parquet for each record."""
    records = sum(body.records for body in bodies)
    with tempfile.TemporaryDirectory(prefix="arcpipe-cost-") as name:
        folder = Path(name)
        settings = {"SERVER_PORT": "0", "SERVER_WORKERS": "1", "WAL_MIN_FREE_MB": "16", "SHUTDOWN_DRAIN_SECONDS": "600"}
        environment = os.environ | {f"ARCPIPE_{key}": value for key, value in settings.items()}
        command = [sys.executable, "-m", "arcpipe", "serve"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            connection = http.client.HTTPConnection(_address(server, folder / "log"), timeout=120)
            for body in bodies:
                headers = {"Content-Type": body.content_type}
                if body.content_encoding:
                    headers["Content-Encoding"] = body.content_encoding
                _ask(connection, "POST", body.path, body.at(time.time_ns() // 1000), headers)
            while _counted(metrics := _ask(connection, "GET", "/metrics"), "records_total") < records:
                time.sleep(0.2)  # workers publish their counts a few times a second
            wal_bytes = _counted(metrics, "wal_bytes_total")
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait()
        if status:
            raise SystemExit(f"the server ended with exit code {status}:\n{(folder / 'log').read_text()}")
        parquet_bytes = float(sum(path.stat().st_size for path in folder.rglob("*.parquet")))
        return wal_bytes / records, parquet_bytes / records


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Send a request and return its answer, which has to be a good one."""
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    said = answer.read().decode(errors="replace")
    if answer.status >= 300:
        raise SystemExit(f"{path}: {answer.status} {said}")
    return said


def _counted(metrics: str, name: str) -> float:
    """Return the sum of a metric over its labels."""
    return sum(map(float, re.findall(rf"^arcpipe_{name}\S* (\S+)$", metrics, re.MULTILINE)))


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
