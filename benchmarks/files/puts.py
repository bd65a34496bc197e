"""Objects per second into a store with latency: `python -m benchmarks.files.puts`.

A small S3 server, in a process of its own, takes each object and answers after 50 ms. The real uploader uploads a
backlog of many small tables to it. The rate is that from the first request of a put to the last answer. Settings follow
as `KEY=VALUE`:

    python -m benchmarks.files.puts                                  # the defaults
    python -m benchmarks.files.puts uploader.concurrent_uploads=8
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from arcpipe.codec.envelope import KIND_COLUMNAR
from benchmarks.worst.upload import Entry, block_sigterm, upload, write_segments

_COMMAND: Final = (sys.executable, "-m", "benchmarks.files.puts")
_US: Final = 1_700_000_000_000_000
_HEAD_BYTES: Final = 1 << 16


def main() -> None:
    """Upload, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--upload", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve(options.latency_ms / 1000))
    elif options.upload:
        sys.exit(upload(options.upload[0], "s3://bucket/lake", options.upload[1]))
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="puts-") as folder:
        wal = Path(folder) / "wal"
        write_segments(wal, _tables(options.tables, options.rows))
        arguments = ("--serve", "--latency-ms", str(options.latency_ms))
        server = subprocess.Popen([*_COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        variables = {
            f"ARCPIPE_{key.replace('.', '_').upper()}": value
            for key, _, value in (setting.partition("=") for setting in options.settings)
        }
        started = time.monotonic()
        child = subprocess.Popen(
            [*_COMMAND, "--upload", str(wal), f"http://127.0.0.1:{port}"],
            env=os.environ | variables,
            preexec_fn=block_sigterm,
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        server.send_signal(signal.SIGTERM)
        found = json.loads(server.stdout.read())
        server.wait()
        objects, took = found["objects"], found["seconds"]
        print(
            f"{objects} objects in {took:.1f} s: {objects / took:.0f} objects/s, "
            f"up to {found['at_once']} at once; uploader {seconds:.1f} s, CPU {usage.ru_utime + usage.ru_stime:.1f} s, "
            f"peak {usage.ru_maxrss / 1024:.0f} MB, exit code {child.returncode}"
        )
    if child.returncode:
        sys.exit(1)


def _tables(tables: int, rows: int) -> Iterator[Entry]:
    columns = {
        "time": [_US + number for number in range(rows)],
        "host": [f"host-{number % 10}" for number in range(rows)],
        "usage": [number / 7 for number in range(rows)],
    }
    for number in range(tables):
        yield KIND_COLUMNAR, msgspec.msgpack.encode({"m": f"m{number}", "columns": columns})


class _Figures:
    def __init__(self) -> None:
        self.objects = 0
        self.first = 0.0
        self.last = 0.0
        self.running = 0
        self.at_once = 0

    def shown(self) -> dict[str, Any]:
        return {"objects": self.objects, "seconds": max(self.last - self.first, 1e-9), "at_once": self.at_once}


async def _serve(latency: float) -> None:
    """Take objects as S3 does, drop them, answer late, and print the figures at SIGTERM."""
    figures = _Figures()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                is_object = head.startswith(b"PUT ")
                if is_object:
                    figures.first = figures.first or time.monotonic()
                    figures.running += 1
                    figures.at_once = max(figures.at_once, figures.running)
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(length[1]) if length else 0)
                await asyncio.sleep(latency)
                body = b""
                if head.startswith(b"POST "):
                    body = b"<InitiateMultipartUploadResult><UploadId>b</UploadId></InitiateMultipartUploadResult>"
                elif head.startswith(b"GET "):
                    body = b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
                status = b"204 No Content" if head.startswith(b"DELETE ") else b"200 OK"
                if is_object:
                    figures.objects += 1
                    figures.running -= 1
                    figures.last = time.monotonic()
                writer.write(b'HTTP/1.1 %b\r\nETag: "b"\r\nContent-Length: %d\r\n\r\n%b' % (status, len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=_HEAD_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    print(json.dumps(figures.shown()), flush=True)


if __name__ == "__main__":
    main()
