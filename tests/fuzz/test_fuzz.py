"""Arbitrary and nearly good bytes for the edge and every codec, a few hundred. `make fuzz` goes on for longer."""

from __future__ import annotations

import gzip
import zlib
from random import Random

import msgpack as msgpack_library
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.support.compression import zstd
from tests.support.kernel import can_be_built
from tests.unit.codec.arrow_ipc.streams import stream
from tests.unit.codec.arrow_ipc.test_parquet import file_of
from tests.unit.codec.otlp.messages import Maker
from tests.unit.codec.otlp.test_body import json_of
from tests.unit.codec.protobuf.test_scan import some_body
from tests.unit.codec.remote_write.test_body import Series, make

FUZZ = settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck), database=None)

LINES = b'cpu,host=a usage=0.5,n=1i,s="x" 1700000000\nmem free=1\n'
ESCAPED_LINES = b'a\\ b,t\\,x=\\=,h=a\\\\ f\\"="\\"\\\\",time=-0.5e-3,t=T -5\r\n#\nm t=18446744073709551615u\n'
COLUMNS = msgpack_library.packb({"m": "cpu", "columns": {"time": [1_700_000_000, 2], "a": [0.5, 1], "s": ["x", None]}})
MANY_COLUMNS = msgpack_library.packb(
    {
        "m": "cpu",
        "columns": {"time": [2**60 + row for row in range(20)], "s": ["text"] * 20, "f": [0.5] * 20},
        "tags": ["s"],
    }
)
ROWS = msgpack_library.packb([{"m": "cpu", "t": 1, "fields": {"a": 1}, "tags": {"b": "c"}}] * 2)
MANY_ROWS = msgpack_library.packb(
    [
        {
            "m": f"m{row % 3}",
            "t": 2**60 + row,
            "h": "x",
            "tags": {"b": "text"},
            "fields": {"f": 0.5, f"g{row % 2}": row},
        }
        for row in range(12)
    ]
)
JSON = b'{"t":1700000000,"k":"cpu","h":"a","v":1,"n":{"x":[1]}}\n{"v":2.5,"w":12345678901234567890}\n'
CSV = b't,h,v,w\n1700000000,a,1,2\n,"b\nc",x,\n'
ARROW = pa.table(
    {
        "t": pa.array([1, None], pa.timestamp("ms")),
        "h": pa.array(["a", "b"]).dictionary_encode(),
        "v": [1.5, None],
        "n": [[1], []],
        "s": ["abc", "é"],
    }
)
STREAMS = [stream(ARROW), stream(ARROW, "zstd"), stream(ARROW, "lz4", 1)]
FILES = [file_of(ARROW), file_of(ARROW, compression="zstd", data_page_version="2.0")]
ARRAY = b"[%b]" % JSON[:-1].replace(b"\n", b",")
SERIES: list[Series] = [
    ({"__name__": "up", "job": "x"}, [(1_700_000_000_000, 1.0)], [({"trace": "t"}, 1_700_000_000_000, 0.5)]),
    ({"__name__": "b", "text": "y" * 130}, [(1_700_000_000_000, -1.0), (5, 0.0)], []),
]
SERIES_1, SERIES_2, MANY_SERIES = make(SERIES, 1), make(SERIES, 2), make(SERIES * 40, 1)
# Seeds whose requests have records, of 1 to 10 kB.
_REQUESTS = [
    Maker(seed).request(signal, count)
    for seed, count in ((0, 3), (0, 2), (5, 2), (7, 2), (12, 2))
    for signal in ("logs", "traces", "metrics")
]
EXPORTS = [request.SerializeToString() for request in _REQUESTS]
JSON_EXPORTS = [json_of(request) for request in _REQUESTS]
BODIES = [
    b"",
    LINES,
    JSON,
    COLUMNS,
    ROWS,
    gzip.compress(COLUMNS),
    zlib.compress(LINES),
    zstd.compress(ROWS),
    b"x" * 3000,
]
EXAMPLES = {
    "native_lines": [LINES, ESCAPED_LINES],
    "native_columns": [COLUMNS, MANY_COLUMNS],
    "native_rows": [ROWS, MANY_ROWS],
    "json_lines": [JSON],
    "json_array": [ARRAY],
    "csv": [CSV],
    "arrow": STREAMS,
    "parquet": FILES,
    "remote_write_1": [SERIES_1, MANY_SERIES],
    "remote_write_2": [SERIES_2],
    "logs": EXPORTS[0::3],
    "traces": EXPORTS[1::3],
    "metrics": EXPORTS[2::3],
    "otlp_json": JSON_EXPORTS,
    "protobuf": [some_body(Random(seed)) for seed in range(10)],
}

PATHS = [
    *("/write/v2/msgpack", "/api/v1/write/msgpack", "/write", "/write?db=a&precision=ms", "/api/v2/write?bucket=b"),
    *("/api/v3/write_lp?db=a&accept_partial=false", "/api/v1/write/line-protocol", "/query?q=SHOW+DATABASES", "/ping"),
    *(
        "/api/v1/ingest/cpu",
        "/api/v1/ingest/a%20b?format=ndjson",
        "/api/v1/ingest/a?format=arrow",
        "/api/v1/ingest/a?format=parquet",
        "/api/v1/ingest/cpu?format=csv&types=v:f64",
    ),
    *("/api/v1/ingest/", "/api/v1/ingest/a/b?format=json&time_field=t&tag_fields=h"),
    *("/health", "/ready", "/metrics", "/", "/nothing", "*", "http://x/ping", "/write?db=%ff&db=b"),
]
HEADERS = [
    *("Host: x", "Host: y", "Content-Encoding: gzip", "Content-Encoding: deflate", "Content-Encoding: zstd"),
    *("Content-Encoding: br", "Transfer-Encoding: chunked", "Content-Length: 5", "Expect: 100-continue"),
    *("Connection: close", "Connection: keep-alive", "Connection: upgrade", "Upgrade: h2c", "x-arc-database: prod"),
    *("Content-Type: application/json", "Content-Type: text/csv; charset=utf-8", "x-arc-tag-fields: a,b"),
    *("Authorization: Bearer x", "Authorization: Basic eDp5", "Accept: text/html", "A: \xff", " folded", "Bad : x"),
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is good, or nearly."""
    method = draw(st.sampled_from(["POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "PRI", "x"]))
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", ""]))
    body = draw(st.sampled_from(BODIES) | st.binary(max_size=50))
    lines = [f"{method} {draw(st.sampled_from(PATHS))} {version}", "Host: x"]
    lines += draw(st.lists(st.sampled_from(HEADERS), max_size=4))
    if draw(st.booleans()):
        lines.append(f"Content-Length: {len(body)}")
    elif draw(st.booleans()):
        lines.append("Transfer-Encoding: chunked")
        at = draw(st.integers(min_value=0, max_value=len(body)))
        pieces = [piece for piece in (body[:at], body[at:]) if piece]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        body += b"0\r\n" + draw(st.sampled_from([b"", b"A: b\r\n", b"x"])) + b"\r\n"
    end = draw(st.sampled_from(["\r\n"] * 9 + ["\n"]))
    return end.join([*lines, "", ""]).encode("latin-1") + body


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Some requests one after the other, with the reads that they come in; see `targets.edge`."""
    stream = b"".join(draw(st.lists(requests(), min_size=1, max_size=4)))
    if draw(st.booleans()):
        at = draw(st.integers(min_value=0, max_value=len(stream)))
        stream = stream[:at] + draw(st.binary(max_size=4)) + stream[at + draw(st.integers(0, 4)) :]
    sizes = draw(st.lists(st.integers(min_value=1, max_value=max(1, len(stream))), max_size=8))
    return bytes([len(sizes)]) + b"".join(size.to_bytes(2, "big") for size in sizes) + stream


@st.composite
def changed(draw: st.DrawFn, *originals: bytes) -> bytes:
    """One of the given with a few bytes changed."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(min_value=0, max_value=len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    return data


@given(streams() | st.binary(max_size=500))
@FUZZ
def test_no_bytes_on_a_connection_end_in_an_exception_or_a_500(data: bytes) -> None:
    targets.edge(data)


@given(changed(*BODIES, gzip.compress(COLUMNS) * 2, gzip.compress(bytes(1 << 17))) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_are_decoded_beyond_the_bound(data: bytes) -> None:
    targets.decode(data)


@given(changed(COLUMNS, ROWS) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_upset_the_msgpack_codec(data: bytes) -> None:
    targets.msgpack(data)


@given(changed(LINES, LINES * 100) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_upset_the_line_protocol_codec(data: bytes) -> None:
    targets.lines(data)


@given(changed(LINES, LINES * 3, ESCAPED_LINES) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_are_other_lines_to_the_native_kernel(data: bytes) -> None:
    if can_be_built():
        targets.native_lines(data)


@given(changed(COLUMNS, MANY_COLUMNS, ROWS, MANY_ROWS) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_are_other_columns_or_rows_to_the_native_kernel(data: bytes) -> None:
    if can_be_built():
        targets.native_columns(data)


@given(changed(JSON, ARRAY, CSV, JSON * 100) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_upset_the_codecs_of_records(data: bytes) -> None:
    targets.records(data)


@given(changed(*STREAMS) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_upset_the_reader_of_arrow(data: bytes) -> None:
    targets.arrow(data)


@given(changed(SERIES_1, SERIES_2, MANY_SERIES) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_upset_the_remote_write_codec(data: bytes) -> None:
    targets.remote_write(data)


@given(changed(*EXPORTS, *JSON_EXPORTS) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_upset_the_otlp_codec(data: bytes) -> None:
    targets.otlp(data)


@given(changed(*FILES) | st.binary(max_size=500))
@FUZZ
def test_no_bytes_upset_the_reader_of_parquet(data: bytes) -> None:
    targets.parquet(data)
