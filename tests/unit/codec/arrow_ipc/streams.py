"""Streams of tables of many types, and entries of the WAL with them."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from arcpipe.codec.arrow_ipc.check import check_stream
from arcpipe.codec.envelope import KIND_ARROW, ArrowBody, arrow_front
from arcpipe.codec.records.roles import Roles, read_roles
from arcpipe.wal.format import envelope_prefix

MAX_BYTES = 1 << 24


def stream(table: pa.Table, compression: str | None = None, rows: int | None = None) -> bytes:
    """Write a table as a stream, in batches of so many rows."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def entry(body: bytes, roles: Roles | None = None, database: str = "db") -> bytes:
    """Make a stream the payload of an entry, as a worker does."""
    roles = roles or read_roles("m", "", "", "tag", "")
    checked = check_stream(body, MAX_BYTES, roles=roles)
    kept = ArrowBody(
        roles.measurement,
        checked.rows,
        memoryview(b""),
        checked.bytes,
        tuple(checked.tags) or None,
        None if roles.time == "time" else roles.time,
    )
    return envelope_prefix(KIND_ARROW, database).data + arrow_front(kept, len(body)) + body


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1))
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.int64(), st.integers(-(1 << 63), (1 << 63) - 1)),
    (pa.uint64(), st.integers(0, (1 << 64) - 1)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.string(), _TEXTS),
    (pa.large_string(), _TEXTS),
    (pa.string_view(), _TEXTS),
    (pa.dictionary(pa.int16(), pa.string()), _TEXTS),
    (pa.binary(), st.binary(max_size=4)),
    (pa.timestamp("us"), _MOMENTS),
    (pa.timestamp("ms", "UTC"), _MOMENTS.map(lambda moment: moment.replace(microsecond=0))),
    (pa.date32(), st.dates(datetime.date(1900, 1, 1))),
    (pa.duration("s"), st.integers(0, 1 << 40).map(lambda seconds: datetime.timedelta(seconds=seconds))),
    (pa.list_(pa.int32()), st.lists(st.integers(-5, 5), max_size=3)),
    (pa.struct([("x", pa.string())]), st.fixed_dictionaries({"x": _TEXTS})),
    (pa.null(), st.none()),
]
TIMES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.timestamp("us", "UTC"), _MOMENTS),
    (pa.timestamp("ns"), _MOMENTS),
    (pa.int64(), st.integers(1_600_000_000_000, 1_700_000_000_000)),
    (pa.float64(), st.floats(1e9, 2e9)),
]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table of a few columns, perhaps with times, perhaps in pieces."""
    count = draw(st.integers(1, 12))
    columns: dict[str, pa.Array] = {}
    if draw(st.booleans()):
        type_, values = draw(st.sampled_from(TIMES))
        columns["time"] = pa.array(draw(st.lists(st.none() | values, min_size=count, max_size=count)), type_)
    for name in draw(st.lists(st.sampled_from(["a", "b", "c", "tag"]), min_size=1, max_size=3, unique=True)):
        type_, values = draw(st.sampled_from(TYPES))
        columns[name] = pa.array(draw(st.lists(st.none() | values, min_size=count, max_size=count)), type_)
    return pa.table(columns)
