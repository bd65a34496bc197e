"""CPU time of telemetry on its way to Parquet, by steps: `python -m benchmarks.micro.telemetry`.

For remote write and each signal of OTLP, bodies of the suites are encoded as by a worker, and the entries converted as
by the uploader. There is no HTTP, no WAL and no store. The output has µs of CPU time per record, of all threads: the
least of some rounds, and their median, because the machine may be busy. A goal in records/s is for all of two cores.

`--forms 64 --forms 512` compares the two forms that the WAL may hold bodies of so many records in, by turns: columnar
maps, and Arrow IPC streams.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from arcpipe.allocator import keep_freed_memory
from arcpipe.codec.collected import ARROW_ROWS
from arcpipe.codec.otlp import body as otlp
from arcpipe.codec.remote_write import body as remote_write
from arcpipe.codec.snappy import decode_block
from arcpipe.units import MB
from arcpipe.upload.uploader import KEPT_MEMORY_BYTES
from benchmarks.load.telemetry import LogsBody, PointsBody, SeriesBody, SpansBody
from benchmarks.micro.convert import convert as convert_entries

_NOW_US: Final = 1_800_000_000_000_000
_MOST_BYTES: Final = 100 * MB
# Records of a round, if two forms are compared.
_COMPARED_RECORDS: Final = 16_384


class _Case(NamedTuple):
    make: Callable[[int, random.Random], Any]
    records: int  # of a body
    precision: str  # of its times
    encode: Callable[[bytes, int], Any]  # a body, and the rows from which on it is a stream


def _encode_series(body: bytes, arrow_rows: int) -> Any:
    return remote_write.encode(decode_block(body, _MOST_BYTES), arrow_rows=arrow_rows).encoded


def _encode_otlp(signal: otlp.Signal) -> Callable[[bytes, int], Any]:
    return lambda body, arrow_rows: otlp.encode(body, signal=signal, arrow_rows=arrow_rows).encoded


CASES: Final = {
    "remote write": _Case(SeriesBody, 10_000, "ms", _encode_series),
    "otlp logs": _Case(LogsBody, 8192, "ns", _encode_otlp("logs")),
    "otlp traces": _Case(SpansBody, 8192, "ns", _encode_otlp("traces")),
    "otlp metrics": _Case(PointsBody, 8192, "ns", _encode_otlp("metrics")),
}


def convert(payloads: list[bytes]) -> tuple[int, int]:
    """Make entries Parquet; return the rows, and the bytes of the files."""
    converted = convert_entries(map(memoryview, payloads), threads=2, first_us=_NOW_US)
    return converted.rows, sum(converted.file_bytes)


class _Round(NamedTuple):
    """µs of CPU time per record, and bytes per record."""

    encoding: float
    conversion: float
    wal: float
    parquet: float


def _measure_round(case: _Case, contents: list[bytes], records: int, arrow_rows: int) -> _Round:
    began = time.process_time()
    encoded = [case.encode(content, arrow_rows) for content in contents]
    between = time.process_time()
    payloads = [
        msgspec.msgpack.encode([1 + one.batch, "db", {"precision": case.precision}, msgspec.Raw(one.body)])
        for one in encoded
    ]
    begun = time.process_time()
    rows, size = convert(payloads)
    ended = time.process_time()
    assert rows == records
    return _Round(
        (between - began) / records * 1e6,
        (ended - begun) / records * 1e6,
        sum(len(one.body) for one in encoded) / records,
        size / records,
    )


def _contents(case: _Case, bodies: int, records: int) -> list[bytes]:
    source = random.Random(1)
    return [case.make(records, source).at(_NOW_US + number * 1_000_000) for number in range(bodies)]


def measure(case: _Case, bodies: int, records: int, rounds: int) -> dict[str, str]:
    """Measure bodies of `records` records in this process."""
    contents = _contents(case, bodies, records)
    found = [_measure_round(case, contents, bodies * records, ARROW_ROWS) for _ in range(rounds)]
    encoding = [one.encoding for one in found]
    conversion = [one.conversion for one in found]
    both = [one.encoding + one.conversion for one in found]
    return {
        "encode µs": f"{min(encoding):.2f} ({statistics.median(encoding):.2f})",
        "convert µs": f"{min(conversion):.2f} ({statistics.median(conversion):.2f})",
        "both µs": f"{min(both):.2f} ({statistics.median(both):.2f})",
        "encoded/s per core": f"{1e3 / min(encoding):,.0f} k",
        "WAL B": f"{found[-1].wal:.0f}",
        "Parquet B": f"{found[-1].parquet:.0f}",
    }


def compare(case: _Case, records: int, rounds: int) -> dict[str, str]:
    """Compare the two forms of bodies of `records` records, by turns, in this process."""
    bodies = max(1, _COMPARED_RECORDS // records)
    contents = _contents(case, bodies, records)
    maps, streams = [], []
    for _ in range(rounds):
        maps.append(_measure_round(case, contents, bodies * records, records + 1))
        streams.append(_measure_round(case, contents, bodies * records, 1))
    least = [[min(one[at] for one in found) for found in (maps, streams)] for at in (0, 1)]
    both = [min(one.encoding + one.conversion for one in found) for found in (maps, streams)]
    middle = [statistics.median(one.encoding + one.conversion for one in found) for found in (maps, streams)]
    return {
        "records": str(records),
        "encode µs": f"{least[0][0]:.2f} {least[0][1]:.2f}",
        "convert µs": f"{least[1][0]:.2f} {least[1][1]:.2f}",
        "both µs": f"{both[0]:.2f} {both[1]:.2f}",
        "stream/maps": f"{both[1] / both[0]:.2f} ({middle[1] / middle[0]:.2f})",
        "WAL B": f"{maps[-1].wal:.0f} {streams[-1].wal:.0f}",
    }


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bodies", type=int, default=12, help="bodies of a case")
    parser.add_argument("--records", type=int, help="of a body; those of the suites by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--forms", type=int, action="append", help="compare the forms of bodies of so many records")
    parser.add_argument("--case", choices=list(CASES), action="append")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    keep_freed_memory(KEPT_MEMORY_BYTES)
    figures: dict[str, str] = {}
    for name in arguments.case or CASES:
        for records in arguments.forms or (0,):
            known = bool(figures)
            figures = (
                compare(CASES[name], records, arguments.rounds)
                if records
                else measure(CASES[name], arguments.bodies, arguments.records or CASES[name].records, arguments.rounds)
            )
            if not known:
                print(f"{'per record':14}" + "".join(f"{figure:>20}" for figure in figures))
            print(f"{name:14}" + "".join(f"{value:>20}" for value in figures.values()), flush=True)


if __name__ == "__main__":
    main()
