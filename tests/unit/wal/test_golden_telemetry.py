"""Format stability of streams that arcpipe makes of telemetry: a file in the repository, read for ever.

Its entries are of kind 3: samples of remote write, and log records of OTLP. An Arrow stream is too long to be packed by
hand; `PYTHONPATH=. python tests/unit/wal/test_golden_telemetry.py` made the file once, and makes it if it is missing.
"""

from __future__ import annotations

import struct
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from arcpipe.codec.columns import Encoded
from arcpipe.codec.otlp.body import encode as encode_otlp
from arcpipe.codec.remote_write.body import encode as encode_series
from arcpipe.wal import WALReader
from arcpipe.wal.reader import SegmentScan
from tests.unit.codec.otlp.reading import REQUESTS
from tests.unit.codec.remote_write.test_body import STALE, make
from tests.unit.wal.test_golden import FILE_HEADER, GOLDEN, start

FILE: Final = GOLDEN / "streams" / "telemetry.wal"
TIME_MS: Final = 1_760_054_399_000
TIME: Final = datetime.fromtimestamp(TIME_MS / 1000, UTC)
SECOND_US: Final = 1_760_054_400_000_020  # timestamp of the second entry


def entry(database: str, precision: str, encoded: Encoded | None, timestamp_us: int) -> bytes:
    assert encoded is not None
    assert encoded.batch == 2
    front = b"\x94" + msgspec.msgpack.encode([3, database, {"precision": precision}])[1:]
    payload = front + bytes(encoded.body)
    return struct.pack(">IQI", len(payload), timestamp_us, zlib.crc32(payload)) + payload


def content() -> bytes:
    """Make the file as this version does."""
    series: Any = [
        ({"__name__": "up", "job": "a"}, [(TIME_MS, 1.5)], []),
        ({"__name__": "up", "job": "b"}, [(TIME_MS + 1, STALE)], []),
        ({"__name__": "up"}, [(TIME_MS + 2, -0.0)], []),
    ]
    samples = encode_series(make(series, 1), arrow_rows=1).encoded
    request = REQUESTS["logs"]()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope = resource.scope_logs.add()
    first = scope.log_records.add(time_unix_nano=TIME_MS * 1_000_000 + 7, severity_number=9, severity_text="INFO")
    first.body.string_value = "hello"
    first.attributes.add(key="user").value.string_value = "Ä"
    scope.log_records.add(severity_number=17).body.int_value = 3
    logs = encode_otlp(request.SerializeToString(), signal="logs", arrow_rows=1).encoded
    entries = entry("metrics", "ms", samples, SECOND_US - 10) + entry("default", "ns", logs, SECOND_US)
    return FILE_HEADER + start + entries


def test_the_streams_of_an_earlier_version_are_read() -> None:
    samples, logs = WALReader(FILE).read_all()
    value = [row.pop("value") for row in samples]
    assert [struct.pack("<d", one) for one in value] == [struct.pack("<d", one) for one in (1.5, STALE, -0.0)]
    assert samples == [
        {"measurement": "prometheus", "_database": "metrics", "metric": "up", "labels": labels, "time": time}
        for labels, time in (
            ('{"job":"a"}', TIME),
            ('{"job":"b"}', TIME + timedelta(milliseconds=1)),
            ("{}", TIME + timedelta(milliseconds=2)),
        )
    ]
    told = ("measurement", "time", "ServiceName", "SeverityText", "SeverityNumber", "Body", "LogAttributes")
    assert [[row.get(name) for name in told] for row in logs] == [
        ["otel_logs", TIME, "shop", "INFO", 9, "hello", '{"user": "Ä"}'],
        ["otel_logs", SECOND_US, "shop", "", 17, "3", "{}"],
    ]


def test_no_entry_of_the_file_is_damaged() -> None:
    scan = SegmentScan(FILE)
    assert len(list(scan)) == 2


if __name__ == "__main__" and not FILE.exists():
    FILE.write_bytes(content())
