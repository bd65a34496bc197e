"""Largest memory of the uploader, whatever the segments hold: `python -m benchmarks.worst.upload`.

For each case, a process writes segments with the worst bodies that a client can send (one may have 100 MB). Then the
real uploader uploads them in another process, to a directory, or to a small S3 server that drops its objects. The
output has the peak of its resident memory and the time. With `--limit` the exit code is 1 if a case takes more memory.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from arcpipe.codec.arrow_ipc.check import check_stream
from arcpipe.codec.columns import array_header, pack_int64, pack_values
from arcpipe.codec.envelope import KIND_ARROW, KIND_BATCH, KIND_COLUMNAR, ArrowBody, arrow_front
from arcpipe.codec.messagepack.walk import value_end
from arcpipe.codec.records.roles import Roles
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.writer import WALOptions, WALWriter
from benchmarks.micro.convert import BODIES

_COMMAND: Final = (sys.executable, "-m", "benchmarks.worst.upload")
BODY_BYTES: Final = 100_000_000
_US: Final = 1_700_000_000_000_000

Entry = tuple[int, bytes]
"""The kind of an entry and its body."""


def _columnar(columns: Mapping[str, bytes], measurement: str = "m") -> Entry:
    raws = {name: msgspec.Raw(column) for name, column in columns.items()}
    return KIND_COLUMNAR, msgspec.msgpack.encode({"m": measurement, "columns": raws})


def _values_in(values: bytes) -> int:
    at = count = 0
    while at < len(values):
        at = value_end(values, at)
        count += 1
    return count


def _one_column(values: bytes) -> Iterator[Entry]:
    """Yield one body with one column that repeats these values."""
    count = _values_in(values)
    times = BODY_BYTES // len(values)
    yield _columnar({"value": array_header(count * times) + values * times})


def _one_value(marker: bytes, size: int, filling: bytes) -> Iterator[Entry]:
    yield _columnar({"time": pack_int64(np.array([_US])), "value": b"\x91" + marker + filling * size})


def _random_strings(size: int, rows: int) -> bytes:
    rng = np.random.default_rng(7)
    letters = rng.integers(0x61, 0x7B, (rows, size + 5), dtype=np.uint8)
    letters[:, 0] = 0xDB
    letters[:, 1:5] = np.frombuffer(struct.pack(">I", size), np.uint8)
    return array_header(rows) + letters.tobytes()


def _ordinary(body: str, entries: int) -> Iterator[Entry]:
    for entry in range(entries):
        yield _columnar(BODIES[body](entry, 1000))


def _remote_write(entries: int) -> Iterator[Entry]:
    """Yield what workers make of remote write: 10,000 series of ten labels in a request, a sample of each."""
    from arcpipe.codec.remote_write.body import encode  # a process that uploads is measured without these
    from arcpipe.codec.snappy import decode_block
    from benchmarks.load.telemetry import SeriesBody

    kinds = (KIND_COLUMNAR, KIND_BATCH, KIND_ARROW)
    made = []
    for seed in range(2):
        body = SeriesBody(10_000, random.Random(seed)).at(_US + seed * 100_000)
        encoded = encode(decode_block(body, BODY_BYTES)).encoded
        assert encoded is not None
        made.append((kinds[encoded.batch], bytes(encoded.body)))
    for entry in range(entries):
        yield made[entry % len(made)]


def _streams(tables: Sequence[pa.Table], entries: int) -> Iterator[Entry]:
    """Yield entries of compressed Arrow IPC streams, of these tables in turn."""
    made = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        stream = sink.getvalue().to_pybytes()
        checked = check_stream(stream, BODY_BYTES, roles=Roles("m"))
        front = ArrowBody("m", checked.rows, memoryview(b""), checked.bytes)
        made.append(arrow_front(front, len(stream)) + stream)
    for entry in range(entries):
        yield KIND_ARROW, made[entry % len(made)]


def _wide(columns: int, rows: int, column: bytes, entries: int = 1, per_entry: bool = False) -> Iterator[Entry]:
    for entry in range(entries):
        prefix = f"{entry}-" if per_entry else ""
        yield _columnar({f"{prefix}c{number}": column for number in range(columns)})


def _interleaved(tables: int, columns: int, hours: int, rounds: int, rows: int, value: bytes) -> Iterator[Entry]:
    """Yield entries of wide tables in turn, one of each hour of each table per round, with equal values."""
    row = {f"c{number}": array_header(rows) + value * rows for number in range(columns)}
    for entry in range(tables * hours * rounds):
        first = _US + entry // tables % hours * 3_600_000_000 + entry * rows
        yield _columnar({"time": pack_int64(first + np.arange(rows)), **row}, f"wide-{entry % tables}")


def _text(size: int) -> bytes:
    return b"\xda" + struct.pack(">H", size) + b"x" * size


def _tiny_maps(count: int) -> Iterator[Entry]:
    one = msgspec.msgpack.encode({"m": "m", "columns": {"v": [1]}})
    yield KIND_BATCH, array_header(count) + one * count


def _measurements(measurements: int, hours: int, entries: int) -> Iterator[Entry]:
    for entry in range(entries):
        moment = (_US + entry // measurements % hours * 3_600_000_000 + entry) * 1000
        columns = {"time": pack_values([moment]), "host": b"\x91\xa1h", "value": b"\x91\x01"}
        yield _columnar(columns, f"measurement-{entry % measurements}")


def _many_hours(rows: int) -> Iterator[Entry]:
    times = _US + np.random.default_rng(3).permutation(rows) * 36_000_000
    yield _columnar({"time": pack_int64(times), "value": array_header(rows) + b"\x01" * rows})


def _shapes(entries: int) -> Iterator[Entry]:
    """Yield entries that each have a column of their own."""
    for entry in range(entries):
        yield _columnar({f"column-{entry}": b"\x91\x01"})


def _late_float(rows: int) -> bytes:
    return array_header(rows) + b"\x01" * (rows - 1) + b"\xcb" + struct.pack(">d", 0.5)


CASES: Final[dict[str, Callable[[], Iterator[Entry]]]] = {
    "mixed": lambda: _ordinary("mixed", 5_000),
    "strings": lambda: _ordinary("texts", 3_000),
    "remote write": lambda: _remote_write(150),
    "100M small integers": lambda: _one_column(b"\x01"),
    "100M nils": lambda: _one_column(b"\xc0"),
    "100M empty strings": lambda: _one_column(b"\xa0"),
    "integers of two widths": lambda: _one_column(b"\x01\xcc\xff"),
    "integers and a late float": lambda: iter([_columnar({"value": _late_float(99_000_000)})]),
    "integers, strings, nils, floats": lambda: _one_column(b"\x01\xa3abc\xc0\xcb" + struct.pack(">d", 0.1)),
    "small integers, one long name each": lambda: iter(
        [_columnar({"n" * 256: array_header(BODY_BYTES // 2) + b"\x01\xc3" * (BODY_BYTES // 4)})]
    ),
    "arrays of nil": lambda: _one_column(b"\x91\xc0"),
    "empty maps and text": lambda: _one_column(b"\x80\xa1x"),
    "empty binary in arrays": lambda: _one_column(b"\x91\xc4\x00"),
    "arrays of 6 kB": lambda: _one_column(b"\xdc\x17\x70" + b"\x01" * 6_000),
    "nested 90 deep": lambda: _one_column(b"\x91" * 90 + b"\x01"),
    "nested 50M deep": lambda: _one_value(b"\x91" * 50_000_000 + b"\x01", 0, b""),
    "one array of 90M": lambda: _one_value(b"\xdd" + struct.pack(">I", 90_000_000), 90_000_000, b"\x01"),
    "one map of 30M": lambda: _one_value(b"\xdf" + struct.pack(">I", 30_000_000), 30_000_000, b"\x01\xc0"),
    "one string of 90 MB": lambda: _one_value(b"\xdb" + struct.pack(">I", 90_000_000), 90_000_000, b"x"),
    "one string of 90 MB, not UTF-8": lambda: _one_value(b"\xdb" + struct.pack(">I", 90_000_000), 90_000_000, b"\xff"),
    "one binary of 90 MB": lambda: _one_value(b"\xc6" + struct.pack(">I", 90_000_000), 90_000_000, b"x"),
    "strings of 1 MB": lambda: iter([_columnar({"value": _random_strings(1_000_000, 95)})]),
    "strings of 5 kB": lambda: iter([_columnar({"value": _random_strings(5_000, 19_000)})]),
    "strings of 5 kB, backwards": lambda: iter(
        [_columnar({"time": pack_int64(_US - np.arange(19_000)), "value": _random_strings(5_000, 19_000)})]
    ),
    "strings of 40 bytes": lambda: iter([_columnar({"value": _random_strings(40, 2_100_000)})]),
    "65,536 columns, one row": lambda: _wide(65_536, 1, b"\x91\x01"),
    "65,536 columns, 160 rows": lambda: _wide(65_536, 160, pack_values([0.5] * 160)),
    "65,536 columns, 100 entries": lambda: _wide(65_536, 1, b"\x91\x01", 100),
    "4,096 columns, 2,000 entries": lambda: _wide(4_096, 1, b"\x91\x01", 2_000),
    "4,096 columns, 2,700 rows": lambda: _wide(4_096, 2_700, pack_values([0.5] * 2_700)),
    "65,536 columns of their own, 50 times": lambda: _wide(65_536, 1, b"\x91\x01", 50, per_entry=True),
    "5M tiny maps in one body": lambda: _tiny_maps(5_000_000),
    "10,000 measurements": lambda: _measurements(10_000, 1, 200_000),
    "10,000 measurements, 24 hours": lambda: _measurements(10_000, 3, 60_000),
    "100,000 measurements": lambda: _measurements(100_000, 1, 100_000),
    "a column of its own in each entry": lambda: _shapes(300_000),
    "10,000 hours in one body": lambda: _many_hours(1_000_000),
    "16 tables, 4,000 columns, 4 hours": lambda: _interleaved(16, 4_000, 4, 2, 50, b"\x01"),
    "64 tables, 4,096 columns, 1 hour": lambda: _interleaved(64, 4_096, 1, 2, 50, b"\x01"),
    "16 tables, 4,096 columns, 24 hours": lambda: _interleaved(16, 4_096, 24, 1, 20, b"\x01"),
    "1 table, 4,096 columns, 500 hours": lambda: _interleaved(1, 4_096, 500, 1, 10, b"\x01"),
    "16 tables, 4,096 texts, 4 hours": lambda: _interleaved(16, 4_096, 4, 2, 20, b"\xabhello world"),
    "16 tables, 256 texts of 4 kB, 4 hours": lambda: _interleaved(16, 256, 4, 4, 1, _text(4_095)),
    "16 tables, 4,096 texts of 1 kB, 4 hours": lambda: _interleaved(16, 4_096, 4, 1, 1, _text(1_000)),
    "1 table, 4,096 texts of 4 kB, 4 hours": lambda: _interleaved(1, 4_096, 4, 3, 1, _text(4_095)),
    "16 tables, 300 columns, 4 hours": lambda: _interleaved(16, 300, 4, 20, 10, b"\x01"),
    "64 tables, 300 columns, 4 hours": lambda: _interleaved(64, 300, 4, 20, 10, b"\x01"),
    "64 tables, 40 columns, 4 hours": lambda: _interleaved(64, 40, 4, 5, 1_000, b"\xcb?\xb9\x99\x99\x99\x99\x99\x9a"),
    "64 tables, 256 texts of 4 kB, 2 hours": lambda: _interleaved(64, 256, 2, 2, 1, _text(4_095)),
    "Arrow: zeros": lambda: _streams([pa.table({"a": np.zeros(11_000_000, np.int64)})], 8),
    "Arrow: integers of a byte": lambda: _streams([pa.table({"a": np.zeros(90_000_000, np.int8)})], 1),
    "Arrow: booleans": lambda: _streams([pa.table({"a": np.zeros(500_000_000, np.bool_)})], 1),
    "Arrow: integers and floats": lambda: _streams(
        [pa.table({"a": np.zeros(11_000_000, kind)}) for kind in (np.int64, np.float64)], 4
    ),
    "Arrow: integers and texts": lambda: _streams(
        [pa.table({"a": np.zeros(11_000_000, np.int64)}), pa.table({"a": pa.repeat("x", 5_000_000)})], 4
    ),
    "Arrow: numbers in dictionaries": lambda: _streams(
        [pa.table({"a": pa.DictionaryArray.from_arrays(np.zeros(40_000_000, np.int8), ["x"])})], 2
    ),
    "Arrow: one text of 90 MB": lambda: _streams([pa.table({"a": ["x" * 90_000_000]})], 3),
    "Arrow: lists": lambda: _streams([pa.table({"a": [[1] * 10] * 900_000})], 2),
    "Arrow: maps": lambda: _streams([pa.table({"a": [{"a": 1, "b": "x"}] * 2_000_000})], 2),
    "Arrow: one stream of maps": lambda: _streams([pa.table({"a": [{"a": 1, "b": "x"}] * 4_000_000})], 1),
}


def write_segments(directory: Path, entries: Iterator[Entry]) -> int:
    """Write sealed segments with these entries; return the bytes of their bodies."""
    writer = WALWriter(str(directory), 1, WALOptions(max_size_bytes=100 << 20, sync_mode="async"))
    total = 0
    group = writer.new_group()
    for kind, body in entries:
        group.add(envelope_prefix(kind, "db"), body, 1, writer.next_timestamp())
        total += len(body)
        if group.size > 1 << 20:
            writer.commit(group)
            group = writer.new_group()
    if group.entries:
        writer.commit(group)
    writer.close()
    return total


def upload(wal: str, url: str, endpoint: str) -> int:
    """Run the uploader in this process; return its exit code."""
    os.kill(os.getpid(), signal.SIGTERM)  # pending until the uploader takes it: upload all there is, and end
    from arcpipe import logs
    from arcpipe.config.load import load
    from arcpipe.counters import Counters
    from arcpipe.upload import uploader
    from arcpipe.wal.directory import WALDirectory

    settings = load(
        None,
        {
            "ARCPIPE_WAL_DIR": wal,
            "ARCPIPE_STORAGE_URL": url,
            "ARCPIPE_STORAGE_S3_ENDPOINT_URL": endpoint,
            "ARCPIPE_STORAGE_S3_ACCESS_KEY_ID": "bench",
            "ARCPIPE_STORAGE_S3_SECRET_ACCESS_KEY": "bench",
            "ARCPIPE_STORAGE_S3_ADDRESSING_STYLE": "path",
        }
        | {name: value for name, value in os.environ.items() if name.startswith("ARCPIPE_UPLOADER_")},
    )
    logs.setup("WARNING", "text", "uploader")
    counters = Counters(1)

    directory = WALDirectory(wal)
    return uploader.run(settings, directory, counters, directory.next_boot())


def serve_s3() -> None:
    """Take objects as S3 does, and drop them; print the port."""
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        crc = 0
        async for data in request.content.iter_any():
            crc = zlib.crc32(data, crc)
        headers = {"ETag": '"bench"'}
        body = ""
        if request.method == "POST" and "uploads" in request.query:
            body = "<InitiateMultipartUploadResult><UploadId>bench</UploadId></InitiateMultipartUploadResult>"
        elif request.method == "POST":
            body = "<CompleteMultipartUploadResult><ETag>bench</ETag></CompleteMultipartUploadResult>"
        elif request.method == "GET":
            body = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
        return web.Response(status=204 if request.method == "DELETE" else 200, headers=headers, text=body or None)

    async def run() -> None:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    asyncio.run(run())


def block_sigterm() -> None:
    """Block it for all threads of the program that this process becomes, as the supervisor does for its children."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def measure(case: str, directory: Path, endpoint: str, seconds: float) -> dict[str, Any]:
    """Upload a case once; return its figures."""
    wal = directory / "wal"
    # In other processes: a child begins with the peak of resident memory of its parent.
    written = subprocess.run([*_COMMAND, "--write", case, str(wal)], check=True, stdout=subprocess.PIPE, text=True)
    url = "s3://bucket/lake" if endpoint else f"file://{directory}/lake"
    started = time.monotonic()
    child = subprocess.Popen([*_COMMAND, "--upload", str(wal), url, endpoint], preexec_fn=block_sigterm)
    watchdog = threading.Timer(seconds, child.kill)
    watchdog.start()
    _, status, usage = os.wait4(child.pid, 0)
    watchdog.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    is_uploaded = not child.returncode and not [*wal.glob("*.sealed"), *(wal / "batches").glob("*.j*")]
    return {
        "MB": round(int(written.stdout) / 1e6, 1),
        "peak RSS MB": round(usage.ru_maxrss / 1024),
        "seconds": round(time.monotonic() - started, 1),
        "CPU s": round(usage.ru_utime + usage.ru_stime, 1),
        "shipped": is_uploaded,
    }


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--s3", action="store_true", help="upload to S3 instead of to a directory")
    parser.add_argument("--limit", type=int, default=0, metavar="MB", help="fail if one case takes more")
    parser.add_argument("--seconds", type=float, default=600, help="time after which the uploader is killed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--upload", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve-s3", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        print(write_segments(Path(arguments.write[1]), CASES[arguments.write[0]]()))
        return
    if arguments.upload:
        sys.exit(upload(*arguments.upload))
    if arguments.serve_s3:
        serve_s3()
    endpoint = ""
    if arguments.s3:
        server = subprocess.Popen([*_COMMAND, "--serve-s3"], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    worst = 0
    failed = []
    for case in arguments.case or CASES:
        with tempfile.TemporaryDirectory() as directory:
            figures = measure(case, Path(directory), endpoint, arguments.seconds)
        worst = max(worst, figures["peak RSS MB"])
        if not figures["shipped"]:
            failed.append(case)
        if arguments.json:
            print(json.dumps({"case": case, **figures}), flush=True)
        else:
            print(f"{case:40}" + "".join(f"{value:>10} {name}" for name, value in figures.items()), flush=True)
    if arguments.s3:
        server.kill()
        server.wait()
    if failed:
        sys.exit(f"not uploaded: {failed}")
    if arguments.limit and worst > arguments.limit:
        sys.exit(f"{worst} MB are more than {arguments.limit}")


if __name__ == "__main__":
    main()
