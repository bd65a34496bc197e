"""Memory of a worker while several clients send large bodies of telemetry: `python -m benchmarks.worst.senders`.

A server starts with one worker. Processes send bodies of one kind each, in turn: remote write, logs, spans and metric
points. Each waits for its answer and sends again at once. The output has the resident memory of the worker before, its
median and its peak meanwhile, after three seconds of rest, and the requests that were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.load.telemetry import LogsBody, PointsBody, SeriesBody, SpansBody
from benchmarks.system.server import Server
from benchmarks.worst.attacks import request
from benchmarks.worst.held import resident_bytes

COMMAND: Final = (sys.executable, "-m", "benchmarks.worst.senders")
_Body: TypeAlias = SeriesBody | LogsBody | SpansBody | PointsBody
KINDS: Final[dict[str, Callable[[int, random.Random], _Body]]] = {
    "series": SeriesBody,
    "logs": LogsBody,
    "spans": SpansBody,
    "points": PointsBody,
}
_LOOK_SECONDS: Final = 0.02
_REST_SECONDS: Final = 3.5


async def _send(host: str, port: int, kind: str, records: int) -> None:
    """Send a body again and again, and print a line for each answer."""
    made = KINDS[kind](records, random.Random(1))
    headers = [f"Content-Type: {made.content_type}"]
    if made.content_encoding:
        headers.append(f"Content-Encoding: {made.content_encoding}")
    data = request(made.path, made.at(1_800_000_000_000_000), "POST", *headers)
    reader, writer = await asyncio.open_connection(host, port)
    while True:
        writer.write(data)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
        print(head.split(b" ", 2)[1].decode(), flush=True)


async def measure(senders: int, records: int, requests: int, kinds: list[str]) -> dict[str, Any]:
    """Measure on a server of its own, until `requests` requests were answered."""
    with tempfile.TemporaryDirectory(prefix="senders-") as directory:
        settings = {
            "server.port": "0",
            "server.workers": "1",
            "wal.dir": f"{directory}/wal",
            "wal.min_free_mb": "16",
            "storage.url": f"file://{directory}/lake",
            "uploader.interval_seconds": "600",
            "flush.max_age_seconds": "600",
        }
        async with Server(Path(directory), settings) as server:
            pid = next(pid for pid, use in server.usage().items() if use.name == "ingest 1")
            before = resident_bytes(pid)
            programs = [
                await asyncio.create_subprocess_exec(
                    *COMMAND,
                    *("--send", kinds[number % len(kinds)], "--records", str(records)),
                    *("--to", server.host, str(server.port)),
                    stdout=subprocess.PIPE,
                )
                for number in range(senders)
            ]
            answers: dict[str, int] = {}

            async def count(program: asyncio.subprocess.Process) -> None:
                assert program.stdout is not None
                async for line in program.stdout:
                    status = line.decode().strip()
                    answers[status] = answers.get(status, 0) + 1

            counting = [asyncio.create_task(count(program)) for program in programs]
            seen = []
            began = time.monotonic()
            while sum(answers.values()) < requests:
                await asyncio.sleep(_LOOK_SECONDS)
                seen.append(resident_bytes(pid))
            seconds = time.monotonic() - began
            cpu = server.usage()[pid].cpu_seconds
            for program in programs:
                program.kill()
                await program.wait()
            await asyncio.gather(*counting)
            await asyncio.sleep(_REST_SECONDS)
            return {
                "senders": senders,
                "records": records,
                "kinds": kinds,
                "before_mb": before >> 20,
                "median_mb": int(statistics.median(seen)) >> 20,
                "p90_mb": sorted(seen)[len(seen) * 9 // 10] >> 20,
                "peak_mb": max(seen) >> 20,
                "after_mb": resident_bytes(pid) >> 20,
                "answers": answers,
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu, 1),
            }


def main() -> None:
    """Measure, or be a sender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--records", type=int, default=10_000, help="records of a body")
    parser.add_argument("--requests", type=int, default=400, help="answers, after which it ends")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="all of them by default")
    parser.add_argument("--send", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--to", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        asyncio.run(_send(arguments.to[0], int(arguments.to[1]), arguments.send, arguments.records))
    else:
        found = asyncio.run(
            measure(arguments.senders, arguments.records, arguments.requests, arguments.kind or list(KINDS))
        )
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
