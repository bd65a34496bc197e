"""The targets: one function each, that takes arbitrary bytes and asserts the rules that always hold.

The same functions are driven by hypothesis in CI (`test_fuzz.py`) and by atheris by hand (`make fuzz`).
"""

from __future__ import annotations

import atexit
import zlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Final, TypeVar

import msgspec

from arcpipe.codec import content_encoding
from arcpipe.codec.arrow_ipc.check import check_stream
from arcpipe.codec.arrow_ipc.parquet import parquet_stream
from arcpipe.codec.collected import ARROW_ROWS
from arcpipe.codec.columns import Encoded
from arcpipe.codec.entries import array_length, decode_entry, entry_records
from arcpipe.codec.envelope import KIND_ARROW, ArrowBody, arrow_front
from arcpipe.codec.line_protocol import body as line_protocol
from arcpipe.codec.line_protocol.grammar import ESCAPINGS, UNITS
from arcpipe.codec.messagepack import body as messagepack
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.otlp import body as telemetry
from arcpipe.codec.records import csv_lines, json_array, json_lines
from arcpipe.codec.records.report import Records
from arcpipe.codec.records.roles import Roles
from arcpipe.codec.remote_write import body as series
from arcpipe.codec.remote_write.tables import Layout
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.wal.format import envelope_prefix
from tests.support.edge import Edge, Peer
from tests.support.kernel import by_kernel
from tests.unit.codec.line_protocol.test_body import rows_of, typed
from tests.unit.codec.messagepack.test_by_kernel import same_with_both
from tests.unit.codec.protobuf.test_scan import is_refused_by_both

MAX_DECODED: Final = 1 << 16
RULES: Final = (TimeRule(), TimeRule("s"), TimeRule(as_arc=True))


RECORDS: Final = (json_lines.encode, json_array.encode, csv_lines.encode)
SIGNALS: Final[tuple[telemetry.Signal, ...]] = ("logs", "traces", "metrics")
LAYOUTS: Final = tuple(product((Layout(), Layout(per_metric=True, promote=("job", "value"))), (1, ARROW_ROWS)))

T = TypeVar("T")


def edge(data: bytes) -> None:
    """A connection's bytes in arbitrary reads.

    The first byte is the number of reads that follow by size, two bytes each; what is left comes in one read.

    No exception escapes, no answer is a 500, every request has one, and nothing is held for a client that has gone.
    """
    worker = _edge()
    context = worker.context
    bugs = context.refused["bug"]
    peer = worker.connect()
    count = data[0] if data else 0
    sizes = data[1 : 1 + 2 * count]
    stream = data[1 + 2 * count :]
    for at in range(0, len(sizes) - 1, 2):
        size = int.from_bytes(sizes[at : at + 2], "big")
        if stream[:size] and not _read(worker, peer, stream[:size]):
            break
        stream = stream[size:]
    if stream:
        _read(worker, peer, stream)
    worker.settle()
    peer.half_close()
    worker.settle()
    assert context.refused["bug"] == bugs, f"answered 500 to {data!r}"
    assert not worker.exceptions, worker.exceptions
    assert not peer.connection.exchanges, f"requests without an answer in {data!r}"
    # A client is given time to read the last answer.
    while context.connections or context.turned_away:
        worker.pass_seconds(400)
        worker.settle()
    assert worker.holds_no_body
    assert worker.commit.pending_bytes == 0


def _read(worker: Edge, peer: Peer, data: bytes) -> bool:
    if peer.feed(data):
        return True
    worker.settle()  # what it waits for comes by itself
    return peer.feed(data)


@cache
def _edge() -> Edge:
    worker = Edge(max_body_mb=1, max_inflight_mb=2, max_pipelined=2)
    worker.__enter__()
    atexit.register(worker.__exit__)
    return worker


def decode(data: bytes) -> None:
    """A body in each encoding: decoded within its bound, or refused."""
    for coding in ("gzip", "deflate", "zstd", "snappy"):
        try:
            assert len(content_encoding.decode(coding, data, MAX_DECODED)) <= MAX_DECODED
        except (BadPayload, PayloadTooLarge):
            pass


def msgpack(data: bytes) -> None:
    """A MessagePack body: refused, or MessagePack when it is encoded for the WAL, which needs no other encoding."""
    for rule in RULES:
        try:
            encoded = messagepack.encode(data, rule=rule)
        except BadPayload:
            continue
        assert encoded.records > 0
        again = messagepack.encode(encoded.body, rule=TimeRule(rule.precision))
        assert again == encoded


def lines(data: bytes) -> None:
    """A line-protocol body: the entry for the WAL is MessagePack, and every line is in it or an error."""
    for escapes in ESCAPINGS:
        found = line_protocol.encode(data, escapes=escapes, unit=UNITS["s"])
        if found.encoded is not None:
            assert found.encoded.records > 0
            msgspec.msgpack.decode(found.encoded.body)
        assert len(found.errors) <= data.count(b"\n") + 1


def native_lines(data: bytes) -> None:
    """A line-protocol body: the native kernel makes the rows and errors of it that the line reader makes."""
    for escapes in ESCAPINGS:
        by_line = line_protocol.encode_by_line(data, escapes=escapes, unit=UNITS["s"])
        for step_bytes in (30, 1 << 18):
            native = by_kernel(data, escapes=escapes, unit=UNITS["s"], step_bytes=step_bytes)
            assert native[1:] == by_line[1:]
            assert typed(rows_of(native.encoded)) == typed(rows_of(by_line.encoded))


def native_columns(data: bytes) -> None:
    """A MessagePack body: with the native kernel, it is taken, patched and refused as without it."""
    for rule in RULES:
        same_with_both(data, rule)


def records(data: bytes, encoders: Sequence[Callable[..., Records]] = RECORDS) -> None:
    """A body of JSON or CSV: the entry for the WAL is what the MessagePack codec takes, and bad records are errors."""
    for roles in (Roles("m"), Roles("m", "t", "k", frozenset(("h",)), {"v": "f64", "w": "i64"})):
        for encode in encoders:
            try:
                found = encode(data, roles=roles, rule=RULES[1])
            except BadPayload:
                continue
            if found.encoded is not None:
                assert found.encoded.records > 0
                again = messagepack.encode(found.encoded.body, rule=RULES[1])
                assert again == found.encoded
            lines = [error.line for error in found.errors]
            assert lines == sorted(set(lines))


def arrow(data: bytes) -> None:
    """An Arrow IPC stream: refused, or every reader of the entry for the WAL can read it."""
    for roles in (Roles("m"), Roles("m", "t", None, frozenset(("h",)))):
        try:
            checked = check_stream(data, MAX_DECODED, roles=roles, rule=RULES[1])
        except (BadPayload, PayloadTooLarge):
            continue
        body = ArrowBody("m", checked.rows, memoryview(data), checked.bytes, tuple(checked.tags), roles.time)
        payload = envelope_prefix(KIND_ARROW, "db", {"precision": "s"}).data + arrow_front(body, len(data)) + data
        rows = [
            array_length(memoryview(next(iter(maps.columns.values()))))[0] for _, maps in decode_entry(payload).maps
        ]
        assert sum(rows) == checked.rows == entry_records(payload)


def remote_write(data: bytes, versions: Sequence[series.Version] = (1, 2)) -> None:
    """A body of remote write: refused, or written as far as its own counts say, in one layout and form of the WAL."""
    layout, arrow_rows = _one_of(LAYOUTS, data)
    for version in versions:
        try:
            found = series.encode(data, version=version, layout=layout, arrow_rows=arrow_rows)
        except (BadPayload, PayloadTooLarge):
            continue
        assert _rows(found.encoded) >= found.samples + found.histograms + found.exemplars


def otlp(data: bytes, signals: Sequence[telemetry.Signal] = SIGNALS, forms: Sequence[bool] = (False, True)) -> None:
    """A request of OTLP, in protobuf or JSON: refused, or written in one form of the WAL."""
    arrow_rows = _one_of((1, ARROW_ROWS), data)
    for signal in signals:
        for is_json in forms:
            try:
                found = telemetry.encode(
                    data, signal=signal, is_json=is_json, promote=("host.name", "Body"), arrow_rows=arrow_rows
                )
            except (BadPayload, PayloadTooLarge):
                continue
            _rows(found.encoded)


def _one_of(choices: Sequence[T], data: bytes) -> T:
    """Choose by the input, so that it breaks again what it broke: each choice gets its share, and an input is cheap."""
    return choices[zlib.crc32(data) % len(choices)]


def _rows(encoded: Encoded | None) -> int:
    """Read an entry back and count its rows, which must be as many as it says."""
    if encoded is None:
        return 0
    if encoded.batch == 2:
        payload = envelope_prefix(KIND_ARROW, "db").data + encoded.body
        rows = [
            array_length(memoryview(next(iter(maps.columns.values()))))[0] for _, maps in decode_entry(payload).maps
        ]
        assert entry_records(payload) == encoded.records
    else:
        content = msgspec.msgpack.decode(encoded.body)
        rows = [len(next(iter(one["columns"].values()))) for one in (content if encoded.batch else [content])]
    assert sum(rows) == encoded.records
    return encoded.records


def parquet(data: bytes) -> None:
    """A Parquet file: refused, or a stream within its bound."""
    try:
        stream = parquet_stream(data, MAX_DECODED)
        check_stream(stream, MAX_DECODED, roles=Roles("m"))
    except (BadPayload, PayloadTooLarge):
        pass


def protobuf(data: bytes) -> None:
    """A message: the scanner refuses what protobuf's own parser refuses, and finds the same values."""
    is_refused_by_both(data)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "edge": edge,
    "decode": decode,
    "msgpack": msgpack,
    "lines": lines,
    "native_lines": native_lines,
    "native_columns": native_columns,
    "native_rows": native_columns,
    "json_lines": partial(records, encoders=RECORDS[:1]),
    "json_array": partial(records, encoders=RECORDS[1:2]),
    "csv": partial(records, encoders=RECORDS[2:]),
    "arrow": arrow,
    "parquet": parquet,
    "remote_write_1": partial(remote_write, versions=(1,)),
    "remote_write_2": partial(remote_write, versions=(2,)),
    "logs": partial(otlp, signals=("logs",), forms=(False,)),
    "traces": partial(otlp, signals=("traces",), forms=(False,)),
    "metrics": partial(otlp, signals=("metrics",), forms=(False,)),
    "otlp_json": partial(otlp, forms=(True,)),
    "protobuf": protobuf,
}
