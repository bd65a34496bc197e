"""Request bodies: telemetry as agents send it, made before the load starts.

A body's values are fixed, its times are not: `at` returns the same records with present times, so that a long run fills
the hours of its duration and no others. Values come from a seeded generator, so every run sends the same.
"""

from __future__ import annotations

import copy
import gzip
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgpack
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.load.telegraf import HOSTS, REGIONS, gather
from benchmarks.load.telemetry import LogsBody, PointsBody, SeriesBody, SpansBody

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_RECORD_INTERVAL_US: Final = 1000  # a body of 1000 records spans a second

# Digits of a time in nanoseconds, from 2001 to 2286.
_DIGITS: Final = 19

# The place of a time in µs, from 2001 to 2286.
_ZEROS: Final = b"0000000000000000"

# A time by which its place is found.
_MARK: Final = 0x0123_4567_89AB_CDEF

# MessagePack's uint64, as every encoder writes a time in µs: a marker byte and the number, big-endian.
_UINT64: Final = np.dtype([("marker", "u1"), ("value", ">u8")])
_UINT64_BYTES: Final = 8

# Bodies of a load; fewer, if they are large, so that all together have about _ALL_RECORDS records.
_BODIES: Final = 64
_LEAST_BODIES: Final = 8
_ALL_RECORDS: Final = 1_000_000

# Compressors of clients: the usual levels of gzip and zstd.
ENCODERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": partial(gzip.compress, compresslevel=6),
    "zstd": partial(zstd.compress, level=3),
}


class Body(Protocol):
    """One body of a load."""

    path: str
    content_type: str
    content_encoding: str  # "" if it is not compressed
    records: int

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us` (µs since the epoch)."""


class ColumnarBody:
    """Columnar MessagePack: `time` in µs, two string tags, three floats of full precision.

    1000 records are 53 KiB. Strings are of different lengths. The floats are uniform random, which cannot be
    compressed: the hard case for Parquet.
    """

    path = "/write/v2/msgpack"
    content_type = "application/msgpack"
    content_encoding = ""

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` records, with values from `source`."""
        self.records = records
        columns: dict[str, list[str] | list[float]] = {
            "host": [f"server-{source.randrange(HOSTS)}" for _ in range(records)],
            "region": [source.choice(REGIONS) for _ in range(records)],
            "usage_user": [source.random() * 100 for _ in range(records)],
            "usage_system": [source.random() * 100 for _ in range(records)],
            "usage_idle": [source.random() * 100 for _ in range(records)],
        }
        packer = msgpack.Packer()
        self._to_measurement = packer.pack_map_header(2) + packer.pack("m")
        self._measurement = packer.pack("cpu")
        self._to_times = b"".join(
            (
                packer.pack("columns"),
                packer.pack_map_header(1 + len(columns)),
                packer.pack("time"),
                packer.pack_array_header(records),
            )
        )
        self._times = np.empty(records, _UINT64)
        self._times["marker"] = 0xCF
        self._ages_us = np.arange(records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US
        self._after = b"".join(packer.pack(name) + packer.pack(values) for name, values in columns.items())

    def named(self, measurement: str) -> ColumnarBody:
        """Return the same records with another measurement."""
        other = copy.copy(self)
        other._measurement = msgpack.packb(measurement)
        return other

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        self._times["value"] = now_us - self._ages_us
        return b"".join((self._to_measurement, self._measurement, self._to_times, self._times.data, self._after))


class RowBody:
    """Row-shaped MessagePack, an array of one map per record, with the records of `ColumnarBody`.

    1000 records are 118 KiB.
    """

    path = "/write/v2/msgpack"
    content_type = "application/msgpack"
    content_encoding = ""

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` records, with values from `source`."""
        self.records = records
        packer = msgpack.Packer()
        # The map's first two pairs, and the marker of the time, which follows.
        front = packer.pack_map_header(4) + packer.pack("m") + packer.pack("cpu") + packer.pack("t") + b"\xcf"
        pieces = [packer.pack_array_header(records)]
        places = []
        size = len(pieces[0])
        for _ in range(records):
            rest = packer.pack("tags") + packer.pack(
                {"host": f"server-{source.randrange(HOSTS)}", "region": source.choice(REGIONS)}
            )
            rest += packer.pack("fields") + packer.pack(
                {name: source.random() * 100 for name in ("usage_user", "usage_system", "usage_idle")}
            )
            places.append(size + len(front))
            pieces += [front, bytes(_UINT64_BYTES), rest]
            size += len(front) + _UINT64_BYTES + len(rest)
        self._content = np.frombuffer(bytearray(b"".join(pieces)), np.uint8)
        self._places = np.array(places)[:, np.newaxis] + np.arange(_UINT64_BYTES)
        self._ages_us = np.arange(records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        times = (now_us - self._ages_us).astype(">u8")
        self._content[self._places] = times.view(np.uint8).reshape(-1, _UINT64_BYTES)
        return self._content.tobytes()


class LineBody:
    """Line protocol with lines of one shape: two string tags, three floats of full precision.

    1000 lines are about 140 KiB, with the records of `ColumnarBody`. The path names the database
    only: times are in nanoseconds.
    """

    path = "/write?db=bench"
    content_type = "text/plain; charset=utf-8"
    content_encoding = ""

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` records, with values from `source`."""
        self.records = records
        self._lines = _StampedLines(
            [
                f"cpu,host=server-{source.randrange(HOSTS)},region={source.choice(REGIONS)} "
                f"usage_user={source.random() * 100},usage_system={source.random() * 100},"
                f"usage_idle={source.random() * 100}"
                for _ in range(records)
            ],
            np.arange(records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US,
        )

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        return self._lines.at(now_us)


class LineBodyV2(LineBody):
    """The same lines as clients of InfluxDB 2 send them."""

    path = "/api/v2/write?org=bench&bucket=bench&precision=ns"


class TelegrafBody:
    """Line protocol as Telegraf sends it: 13 measurements of 16 shapes, gathered from one host after the other.

    Names, tags and fields are those of Telegraf's inputs, and so are times in whole seconds, strings among the fields,
    floats of full precision and floats like `0`. 3000 lines are about 720 KiB.
    """

    path = "/write?db=bench"
    content_type = "text/plain; charset=utf-8"
    content_encoding = ""

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` records, with values from `source`."""
        self.records = records
        fronts: list[str] = []
        ages: list[int] = []
        while len(fronts) < records:
            gathered = gather(source)
            fronts += gathered
            ages += [source.randrange(10) * 1_000_000] * len(gathered)
        self._lines = _StampedLines(fronts[:records], np.array(ages[:records], np.int64))

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        return self._lines.at(now_us // 1_000_000 * 1_000_000)


class NDJSONBody:
    """NDJSON with the records of `ColumnarBody`, times in µs. 1000 lines are about 156 KiB."""

    path = "/api/v1/ingest/cpu?db=bench&tag_fields=host,region"
    content_type = "application/x-ndjson"
    content_encoding = ""

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` records, with values from `source`."""
        self.records = records
        lines = [self._line(source).encode() for _ in range(records)]
        self._text = np.frombuffer(bytearray(b"".join(lines)), np.uint8)
        sizes = np.array([len(line) for line in lines])
        starts = np.cumsum(sizes) - sizes + np.array([line.index(_ZEROS) for line in lines])
        self._places = starts[:, np.newaxis] + np.arange(len(_ZEROS))
        self._ages_us = np.arange(records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US

    def _line(self, source: random.Random) -> str:
        return (
            f'{{"time":{_ZEROS.decode()},"host":"server-{source.randrange(HOSTS)}","region":"{source.choice(REGIONS)}",'
            f'"usage_user":{source.random() * 100},"usage_system":{source.random() * 100},'
            f'"usage_idle":{source.random() * 100}}}\n'
        )

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        times = (now_us - self._ages_us)[:, np.newaxis]
        self._text[self._places] = times // 10 ** np.arange(len(_ZEROS) - 1, -1, -1) % 10 + ord("0")
        return self._text.tobytes()


class JSONBody(NDJSONBody):
    """The same records as a JSON array."""

    content_type = "application/json"

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        return b"[%b]" % super().at(now_us)[:-1].replace(b"\n", b",")


class CSVBody(NDJSONBody):
    """The same records as CSV. 1000 lines are about 88 KiB."""

    content_type = "text/csv"

    def _line(self, source: random.Random) -> str:
        values = ",".join(str(source.random() * 100) for _ in range(3))
        return f"{_ZEROS.decode()},server-{source.randrange(HOSTS)},{source.choice(REGIONS)},{values}\n"

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        return b"time,host,region,usage_user,usage_system,usage_idle\n" + super().at(now_us)


class ArrowBody:
    """An Arrow IPC stream with the records of `ColumnarBody`; its tags are dictionaries. 1000 records are 41 KiB."""

    path = "/api/v1/ingest/cpu?db=bench&tag_fields=host,region"
    content_type = "application/vnd.apache.arrow.stream"
    content_encoding = ""

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` records, with values from `source`."""
        self.records = records
        hosts = [f"server-{source.randrange(HOSTS)}" for _ in range(records)]
        regions = [source.choice(REGIONS) for _ in range(records)]
        columns = {
            "time": pa.array(np.full(records, _MARK), pa.timestamp("us", "UTC")),
            "host": pa.array(hosts).dictionary_encode(),
            "region": pa.array(regions).dictionary_encode(),
            **{
                name: pa.array([source.random() * 100 for _ in range(records)])
                for name in ("usage_user", "usage_system", "usage_idle")
            },
        }
        table = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        written = sink.getvalue().to_pybytes()
        self._content = np.frombuffer(bytearray(written), np.uint8)
        start = written.index(_MARK.to_bytes(8, "little") * min(records, 2))
        self._times = self._content[start : start + 8 * records].view("<i8")
        self._ages_us = np.arange(records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US

    def named(self, measurement: str) -> ArrowBody:
        """Return the same records for another measurement."""
        other = copy.copy(self)
        other.path = self.path.replace("/cpu?", f"/{measurement}?")
        return other

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        self._times[:] = now_us - self._ages_us
        return self._content.tobytes()


class EncodedBody:
    """Another body, compressed. That takes milliseconds, too long to be done while a load runs."""

    def __init__(self, body: Body, content_encoding: str) -> None:
        """Wrap a body; `content_encoding` is a key of ENCODERS."""
        self._body = body
        self.path = body.path
        self.content_type = body.content_type
        self.content_encoding = content_encoding
        self.records = body.records

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        return ENCODERS[self.content_encoding](self._body.at(now_us))


class _StampedLines:
    """Fixed lines, of which only the times are written over, in place."""

    def __init__(self, fronts: list[str], ages_us: npt.NDArray[np.int64]) -> None:
        lines = [f"{front} {'0' * _DIGITS}\n".encode() for front in fronts]
        self._text = np.frombuffer(bytearray(b"".join(lines)), np.uint8)
        ends = np.cumsum([len(line) for line in lines])
        self._places = ends[:, np.newaxis] - 1 - _DIGITS + np.arange(_DIGITS)
        self._ages_us, self._which = np.unique(ages_us, return_inverse=True)

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        times_ns = (now_us - self._ages_us) * 1000
        digits = times_ns[:, np.newaxis] // 10 ** np.arange(_DIGITS - 1, -1, -1) % 10 + ord("0")
        self._text[self._places] = digits[self._which]
        return self._text.tobytes()


def make_bodies(format: str, records: int, seed: int, measurements: int = 1) -> list[Body]:
    """Make different bodies, which a load sends in turn.

    Args:
        format: One of FORMATS.
        records: Records of each body.
        seed: Of the random values.
        measurements: If more than 1, make this many bodies, each with its own measurement; columnar and Arrow only.
    """
    kind, _, encoding = format.partition(" + ")
    source = random.Random(seed)
    all_records = _ALL_RECORDS // 10 if kind in _SLOWLY_MADE else _ALL_RECORDS
    count = max(_LEAST_BODIES, min(_BODIES, all_records // records))
    bodies = [KINDS[kind](records, source) for _ in range(count)]
    if measurements > 1:
        bodies = [_renamed(bodies[index % count], f"cpu_{index:05}") for index in range(measurements)]
    return [EncodedBody(body, encoding) for body in bodies] if encoding else bodies


def _renamed(body: Body, measurement: str) -> Body:
    assert isinstance(body, ColumnarBody | ArrowBody)
    return body.named(measurement)


KINDS: Final[dict[str, Callable[[int, random.Random], Body]]] = {
    "columnar": ColumnarBody,
    "rows": RowBody,
    "line protocol": LineBody,
    "line protocol, v2": LineBodyV2,
    "telegraf": TelegrafBody,
    "ndjson": NDJSONBody,
    "json": JSONBody,
    "csv": CSVBody,
    "arrow": ArrowBody,
    "remote write": SeriesBody,
    "otlp logs": LogsBody,
    "otlp traces": SpansBody,
    "otlp metrics": PointsBody,
}

# Each record takes some 50 µs to be made.
_SLOWLY_MADE: Final = frozenset({"remote write", "otlp logs", "otlp traces", "otlp metrics"})

# A body of remote write is compressed already.
FORMATS: Final = (
    *KINDS,
    *(f"{kind} + {encoding}" for kind in KINDS if kind != "remote write" for encoding in ENCODERS),
)
