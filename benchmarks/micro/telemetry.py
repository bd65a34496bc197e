"""CPU time of telemetry on its way to Parquet, by steps: `python -m benchmarks.micro.telemetry`.

For remote write and each signal of OTLP, bodies of the suites are encoded as by a worker, and the entries converted as
by the uploader. There is no HTTP, no WAL and no store. The output has µs of CPU time per record, of all threads: the
least of some rounds, and their median, because the machine may be busy. A goal in records/s is for all of two cores.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from arcpipe.allocator import keep_freed_memory
from arcpipe.codec.otlp import body as otlp
from arcpipe.codec.remote_write import body as remote_write
from arcpipe.codec.snappy import decode_block
from arcpipe.config.settings import Parquet
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.units import MB
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.uploader import KEPT_MEMORY_BYTES
from benchmarks.load.telemetry import LogsBody, PointsBody, SeriesBody, SpansBody

_NOW_US: Final = 1_800_000_000_000_000
_MOST_BYTES: Final = 100 * MB


class _Case(NamedTuple):
    make: Callable[[int, random.Random], Any]
    records: int  # of a body
    precision: str  # of its times
    encode: Callable[[bytes], Any]


CASES: Final = {
    "remote write": _Case(
        SeriesBody, 10_000, "ms", lambda body: remote_write.encode(decode_block(body, _MOST_BYTES)).encoded
    ),
    "otlp logs": _Case(LogsBody, 8192, "ns", lambda body: otlp.encode(body, signal="logs").encoded),
    "otlp traces": _Case(SpansBody, 8192, "ns", lambda body: otlp.encode(body, signal="traces").encoded),
    "otlp metrics": _Case(PointsBody, 8192, "ns", lambda body: otlp.encode(body, signal="metrics").encoded),
}


def convert(payloads: list[bytes]) -> tuple[int, int]:
    """Make entries Parquet; return the rows, and the bytes of the files."""
    sizes: list[int] = []

    def on_file(key: str, blob: Spool, rows: Rows) -> None:
        sizes.append(blob.size)
        blob.close()

    with (
        tempfile.TemporaryDirectory() as spool,
        BatchTables(
            "bench",
            "arc",
            Parquet(),
            SchemaRegistry.load(Path(spool) / "schema.json"),
            threads=2,
            spool=spool,
            on_file=on_file,
            on_dead_letter=lambda letter: sys.exit(letter.reason),
        ) as tables,
    ):
        for number, payload in enumerate(payloads):
            tables.add(_NOW_US + number, memoryview(payload), number)
        tables.finish()
    return tables.rows, sum(sizes)


def measure(case: _Case, bodies: int, rounds: int) -> dict[str, str]:
    """Measure a case in this process."""
    source = random.Random(1)
    contents = [case.make(case.records, source).at(_NOW_US + number * 1_000_000) for number in range(bodies)]
    records = bodies * case.records
    encoding, conversion = [], []
    for _ in range(rounds):
        began = time.process_time()
        encoded = [case.encode(content) for content in contents]
        between = time.process_time()
        payloads = [
            msgspec.msgpack.encode([1 + one.batch, "db", {"precision": case.precision}, msgspec.Raw(one.body)])
            for one in encoded
        ]
        begun = time.process_time()
        rows, size = convert(payloads)
        ended = time.process_time()
        assert rows == records
        encoding.append((between - began) / records * 1e6)
        conversion.append((ended - begun) / records * 1e6)
    both = [sum(pair) for pair in zip(encoding, conversion, strict=True)]
    return {
        "encode µs": f"{min(encoding):.2f} ({statistics.median(encoding):.2f})",
        "convert µs": f"{min(conversion):.2f} ({statistics.median(conversion):.2f})",
        "both µs": f"{min(both):.2f} ({statistics.median(both):.2f})",
        "encoded/s per core": f"{1e3 / min(encoding):,.0f} k",
        "WAL B": f"{sum(len(one.body) for one in encoded) / records:.0f}",
        "Parquet B": f"{size / records:.0f}",
    }


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bodies", type=int, default=12, help="bodies of a case")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", choices=list(CASES), action="append")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    keep_freed_memory(KEPT_MEMORY_BYTES)
    for number, name in enumerate(arguments.case or CASES):
        figures = measure(CASES[name], arguments.bodies, arguments.rounds)
        if not number:
            print(f"{'per record':14}" + "".join(f"{figure:>20}" for figure in figures))
        print(f"{name:14}" + "".join(f"{value:>20}" for value in figures.values()), flush=True)


if __name__ == "__main__":
    main()
