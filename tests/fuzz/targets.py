"""The targets: one function each, that takes arbitrary bytes and asserts the rules that always hold.

The same functions are driven by hypothesis in CI (`test_fuzz.py`) and by atheris by hand (`make fuzz`).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import cache
from typing import Final

import msgspec

from arcpipe.codec import content_encoding
from arcpipe.codec.arrow_ipc.check import check_stream
from arcpipe.codec.arrow_ipc.parquet import parquet_stream
from arcpipe.codec.entries import array_length, decode_entry, entry_records
from arcpipe.codec.envelope import KIND_ARROW, ArrowBody, arrow_front
from arcpipe.codec.line_protocol import body as line_protocol
from arcpipe.codec.line_protocol.grammar import ESCAPINGS, UNITS
from arcpipe.codec.messagepack import body as messagepack
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.otlp import body as telemetry
from arcpipe.codec.records import csv_lines, json_array, json_lines
from arcpipe.codec.records.roles import Roles
from arcpipe.codec.remote_write import body as series
from arcpipe.codec.remote_write.tables import Layout
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.wal.format import envelope_prefix
from tests.support.edge import Edge, Peer

MAX_DECODED: Final = 1 << 16
RULES: Final = (TimeRule(), TimeRule("s"), TimeRule(as_arc=True))


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


def records(data: bytes) -> None:
    """A body of JSON or CSV: the entry for the WAL is what the MessagePack codec takes, and bad records are errors."""
    for roles in (Roles("m"), Roles("m", "t", "k", frozenset(("h",)), {"v": "f64", "w": "i64"})):
        for encode in (json_lines.encode, json_array.encode, csv_lines.encode):
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


def remote_write(data: bytes) -> None:
    """A body of remote write: refused, or written as far as its own counts say, in MessagePack."""
    for version in (1, 2):
        for layout in (Layout(), Layout(per_metric=True, promote=("job", "value"))):
            try:
                found = series.encode(data, version=version, layout=layout)
            except (BadPayload, PayloadTooLarge):
                continue
            if found.encoded is not None:
                content = msgspec.msgpack.decode(found.encoded.body)
                rows = [len(one["columns"]["metric"]) for one in (content if found.encoded.batch else [content])]
                assert sum(rows) == found.encoded.records >= found.samples + found.histograms + found.exemplars


def otlp(data: bytes) -> None:
    """A request of OTLP: refused, or written in MessagePack."""
    for signal in ("logs", "traces", "metrics"):
        for is_json in (False, True):
            try:
                found = telemetry.encode(data, signal=signal, is_json=is_json, promote=("host.name", "Body"))
            except (BadPayload, PayloadTooLarge):
                continue
            if found.encoded is not None:
                content = msgspec.msgpack.decode(found.encoded.body)
                rows = [len(one["columns"]["time"]) for one in (content if found.encoded.batch else [content])]
                assert sum(rows) == found.encoded.records


def parquet(data: bytes) -> None:
    """A Parquet file: refused, or a stream within its bound."""
    try:
        stream = parquet_stream(data, MAX_DECODED)
        check_stream(stream, MAX_DECODED, roles=Roles("m"))
    except (BadPayload, PayloadTooLarge):
        pass


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "edge": edge,
    "decode": decode,
    "msgpack": msgpack,
    "lines": lines,
    "records": records,
    "arrow": arrow,
    "remote_write": remote_write,
    "otlp": otlp,
    "parquet": parquet,
}
