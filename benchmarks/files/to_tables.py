"""Rows from HTTP to tables, against files alone: `python -m benchmarks.files.to_tables`.

Starts the real server with each format in turns, sends bodies of 1000 records over one connection, and stops it: then
all rows are in their table. The figure is the CPU time of all its processes for a million rows, without that of a
server that gets one body, so the import of libraries and the start do not count. Rounds alternate, because a machine
with other work is slower at times; each ratio is of one round.

    python -m benchmarks.files.to_tables                        # none, iceberg and delta, five rounds of 4 M rows
    python -m benchmarks.files.to_tables --rounds 9 --bodies 2000 tables.commit_interval_seconds=60
"""

from __future__ import annotations

import argparse
import http.client
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

import pyarrow.dataset as ds

from arcpipe.config.load import load
from arcpipe.tables import open_format
from benchmarks.load.bodies import make_bodies

_FORMATS: Final = ("none", "iceberg", "delta")
_RECORDS: Final = 1_000  # of a body
_START_SECONDS: Final = 120.0
_NOW_US: Final = 1_790_000_000_000_000


def main() -> None:
    """Run the rounds, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bodies", type=int, default=4_000, help="of a thousand records, for each server")
    parser.add_argument("--data-dir", type=Path, help="on the disk to be measured")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    costs: dict[str, list[float]] = {name: [] for name in _FORMATS}
    for number in range(options.rounds):
        for name in _FORMATS[number % 3 :] + _FORMATS[: number % 3]:
            idle, loaded = (_run(options, name, bodies) for bodies in (1, options.bodies))
            costs[name].append((loaded - idle) / (options.bodies - 1) / _RECORDS * 1e6)
            print(
                f"round {number + 1}, {name}: {costs[name][-1]:.2f} s per million rows, start {idle:.1f} s", flush=True
            )
    for name, found in costs.items():
        ratios = [one / base for one, base in zip(found, costs["none"], strict=True)]
        print(
            f"{name}: {statistics.median(found):.2f} s of CPU per million rows, "
            f"{statistics.median(ratios):.3f} of files alone ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def _run(options: argparse.Namespace, format_name: str, bodies: int) -> float:
    """Serve, load, and stop. Returns the CPU seconds of all processes of the server."""
    with tempfile.TemporaryDirectory(prefix="to-tables-", dir=options.data_dir) as folder:
        variables = {
            "ARCPIPE_SERVER_PORT": "0",
            "ARCPIPE_SERVER_WORKERS": "1",
            "ARCPIPE_WAL_DIR": f"{folder}/wal",
            "ARCPIPE_STORAGE_URL": f"file://{folder}/lake",
            "ARCPIPE_TABLES_FORMAT": format_name,
            "ARCPIPE_TABLES_COMMIT_INTERVAL_SECONDS": "10",
            "ARCPIPE_SHUTDOWN_DRAIN_SECONDS": "600",
            "ARCPIPE_UPLOADER_INTERVAL_SECONDS": "5",
        }
        for key, _, value in (setting.partition("=") for setting in options.settings):
            variables[f"ARCPIPE_{key.replace('.', '_').upper()}"] = value
        log = Path(folder, "log")
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "arcpipe", "serve"], cwd=folder, env=os.environ | variables, stderr=output
            )
        try:
            _send(_port(server, log), bodies)
        finally:
            server.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(server.pid, 0)  # with the children that it has waited for
            server.returncode = os.waitstatus_to_exitcode(status)
        assert server.returncode == 0, log.read_text()
        assert _rows(variables, Path(folder, "lake")) == bodies * _RECORDS, log.read_text()
        return usage.ru_utime + usage.ru_stime


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"serving on http://\S+:(\d+) with", log.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise SystemExit(f"the server did not start: {log.read_text()}")


def _send(port: int, bodies: int) -> None:
    made = make_bodies("columnar", _RECORDS, seed=1)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for number in range(bodies):
        body = made[number % len(made)]
        while True:
            connection.request("POST", body.path, body.at(_NOW_US + number * 1_000))
            answer = connection.getresponse()
            answer.read()
            if answer.status != 503:  # uploads are behind
                break
            time.sleep(0.5)
        assert answer.status == 202, answer.status
    connection.close()


def _rows(variables: dict[str, str], lake: Path) -> int:
    """Count the rows, by the footers of those files that a reader would open."""
    settings = load(None, variables)
    if settings.tables.format == "none":
        keys = [str(path) for path in lake.rglob("*.parquet")]
    else:
        tables = open_format(settings.tables, settings.storage, settings.wal.dir)
        keys = [str(lake / key) for table in tables.all_tables() for key in tables.files(table)]
        tables.close()
    return int(ds.dataset(keys, format="parquet", partitioning=None).count_rows())


if __name__ == "__main__":
    main()
