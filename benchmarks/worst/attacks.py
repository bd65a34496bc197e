"""Streams of legal, small and costly requests, each made from a recipe of a few numbers.

A recipe is JSON, so that a search can change one, and the worst ones can be kept (`stall_corpus.json`).
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

CORPUS: Final = Path(__file__).with_name("stall_corpus.json")

Recipe = dict[str, Any]

_LINES: Final = "/write"
_MSGPACK: Final = "/write/v2/msgpack"


def request(path: str, body: bytes = b"", method: str = "POST", *headers: str) -> bytes:
    """Return a request as a client sends it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _repeated(piece: bytes, size: int) -> bytes:
    return piece * max(1, size // len(piece))


def _tiny(recipe: Recipe) -> bytes:
    """Return requests that are answered at once, as many as fit into a read."""
    return _repeated(request(recipe["path"], method="GET"), recipe["bytes"])


def _tiny_logs(recipe: Recipe) -> bytes:
    """Return requests of one empty log record each: some of the costliest for their bytes."""
    content_type = "Content-Type: application/x-protobuf"
    return _repeated(request("/v1/logs", b"\x0a\x04\x12\x02\x12\x00", "POST", content_type), recipe["bytes"])


def _parameters(recipe: Recipe) -> bytes:
    query = "&".join(f"{number:x}=%41" for number in range(recipe["parameters"]))
    return _repeated(request(f"/ping?{query}", method="GET"), recipe["bytes"])


def _headers(recipe: Recipe) -> bytes:
    lines = [f"{number:x}:" for number in range(recipe["headers"])]
    return _repeated(request("/ping", b"", "GET", *lines), recipe["bytes"])


def _chunks(recipe: Recipe) -> bytes:
    size = recipe["chunk"]
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    head = b"POST /write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + _repeated(chunk, recipe["bytes"]) + b"0\r\n\r\n"


def _lines(recipe: Recipe) -> bytes:
    """Return lines of `shapes` shapes in turn, `fields` fields each."""
    shapes, fields, run = recipe["shapes"], recipe["fields"], recipe["run"]
    lines, size, number = [], 0, 0
    while size < recipe["bytes"]:
        shape = number // run % shapes
        line = b"m " + b",".join(b"%x_%x=1" % (shape, field) for field in range(fields)) + recipe["end"].encode()
        lines.append(line)
        size += len(line) + 1
        number += 1
    return _encoded(_LINES, b"\n".join(lines), recipe)


def _text(recipe: Recipe) -> bytes:
    """Return a body of one repeated text: bad lines, blank ones, comments, quotes."""
    return _encoded(_LINES, _repeated(recipe["text"].encode(), recipe["bytes"]), recipe)


def _string(recipe: Recipe) -> bytes:
    """Return one line with one string, which repeats a text."""
    return _encoded(_LINES, b'm a="' + _repeated(recipe["text"].encode(), recipe["bytes"]) + b'"', recipe)


def _rows(recipe: Recipe) -> bytes:
    shapes, fields = recipe["shapes"], recipe["fields"]
    rows: list[Any] = []
    size = 0
    while size < recipe["bytes"]:
        shape = len(rows) % shapes
        row = {"m": "m", "fields": {f"{shape:x}_{field:x}": 1 for field in range(fields)}}
        rows.append(row)
        size += 12 + 7 * fields
    return _encoded(_MSGPACK, msgspec.msgpack.encode(rows), recipe)


def _columns(recipe: Recipe) -> bytes:
    """Return an array of `maps` columnar maps of many columns."""
    one = {"m": "m", "columns": {f"{column:x}": [1] for column in range(recipe["columns"])}}
    body = msgspec.msgpack.encode(one if recipe["maps"] == 1 else [one] * recipe["maps"])
    return _encoded(_MSGPACK, body, recipe)


def _bomb(recipe: Recipe) -> bytes:
    """Return zeros, compressed to a twentieth (snappy) or less than a thousandth."""
    coding = recipe["coding"]
    return request(_LINES, _COMPRESSORS[coding](bytes(recipe["bytes"])), "POST", f"Content-Encoding: {coding}")


def _body(recipe: Recipe) -> bytes:
    """Return a body of `benchmarks.worst.bodies` by its name, in a coding."""
    from benchmarks.worst.bodies import CASES  # it takes a second, and few attacks need it

    body = CASES[recipe["body"]][1](recipe["bytes"])
    headers = [f"Content-Type: {recipe['type']}"]
    if recipe["coding"]:
        headers.append(f"Content-Encoding: {recipe['coding']}")
        body = _COMPRESSORS[recipe["coding"]](body)
    return request(recipe["path"], body, "POST", *headers)


def _snappy(body: bytes) -> bytes:
    packed: bytes = pa.Codec("snappy").compress(body, asbytes=True)
    return packed


def _zstd(body: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(body, asbytes=True)
    return packed


_COMPRESSORS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": partial(gzip.compress, compresslevel=6),
    "deflate": zlib.compress,
    "zstd": _zstd,
    "snappy": _snappy,
}


def _of_body(body: str, path: str, type_: str, size: int, coding: str = "") -> Recipe:
    return {"kind": "body", "body": body, "path": path, "type": type_, "bytes": size, "coding": coding, "clients": 4}


_PROTOBUF: Final = "application/x-protobuf"
_RECORDS: Final = "/api/v1/ingest/m"


def _encoded(path: str, body: bytes, recipe: Recipe) -> bytes:
    if recipe.get("gzip"):
        return request(path, gzip.compress(body, 6), "POST", "Content-Encoding: gzip")
    return request(path, body)


_KINDS: Final[dict[str, Callable[[Recipe], bytes]]] = {
    "tiny": _tiny,
    "tiny logs": _tiny_logs,
    "parameters": _parameters,
    "headers": _headers,
    "chunks": _chunks,
    "lines": _lines,
    "text": _text,
    "string": _string,
    "rows": _rows,
    "columns": _columns,
    "bomb": _bomb,
    "body": _body,
}

# Attacks with the numbers that a search may change, and their largest values.
_MOST: Final[dict[str, int]] = {
    "bytes": 4 << 20,
    "shapes": 200_000,
    "fields": 200,
    "run": 64,
    "parameters": 32,
    "headers": 99,
    "chunk": 4096,
    "columns": 65_536,
    "maps": 4096,
    "clients": 40,
}

ATTACKS: Final[dict[str, Recipe]] = {
    "nothing": {"kind": "tiny", "path": "/ping", "bytes": 1, "clients": 1},
    "tiny requests": {"kind": "tiny", "path": "/a", "bytes": 256_000, "clients": 1},
    "tiny requests, 20 clients": {"kind": "tiny", "path": "/a", "bytes": 256_000, "clients": 20},
    "tiny logs": {"kind": "tiny logs", "bytes": 20_000, "clients": 40},
    "pages": {"kind": "tiny", "path": "/", "bytes": 256_000, "clients": 4},
    "metrics": {"kind": "tiny", "path": "/metrics", "bytes": 4_000, "clients": 4},
    "32 parameters": {"kind": "parameters", "parameters": 32, "bytes": 256_000, "clients": 1},
    "99 headers": {"kind": "headers", "headers": 98, "bytes": 256_000, "clients": 4},
    "one-byte chunks": {"kind": "chunks", "chunk": 1, "bytes": 1_000_000, "clients": 1},
    "lines of their own fields": {
        "kind": "lines",
        "shapes": 200_000,
        "fields": 1,
        "run": 1,
        "end": "",
        "bytes": 256_000,
        "gzip": True,
        "clients": 20,
    },
    "4,000 shapes": {
        "kind": "lines",
        "shapes": 4_000,
        "fields": 1,
        "run": 1,
        "end": "",
        "bytes": 100_000,
        "gzip": True,
        "clients": 20,
    },
    "blocks of eight lines": {
        "kind": "lines",
        "shapes": 200_000,
        "fields": 1,
        "run": 8,
        "end": " 1700000000000000000",
        "bytes": 256_000,
        "clients": 20,
    },
    "small bodies of 100 shapes": {
        "kind": "lines",
        "shapes": 200_000,
        "fields": 1,
        "run": 1,
        "end": "",
        "bytes": 1000,
        "clients": 40,
    },
    "bad lines": {"kind": "text", "text": "x\n", "bytes": 250_000, "clients": 10},
    "4 MB of bad lines": {"kind": "text", "text": "x\n", "bytes": 4_000_000, "gzip": True, "clients": 4},
    "blank lines": {"kind": "text", "text": "\n", "bytes": 4_000_000, "gzip": True, "clients": 4},
    "open quotes": {"kind": "text", "text": 'm a="x\n', "bytes": 250_000, "clients": 10},
    "escapes": {"kind": "text", "text": "m\\,\\ a,b\\=c=d a\\ b=1\n", "bytes": 250_000, "clients": 10},
    "rows of their own fields": {"kind": "rows", "shapes": 200_000, "fields": 1, "bytes": 1_000_000, "clients": 10},
    "rows": {"kind": "rows", "shapes": 1, "fields": 3, "bytes": 1_000_000, "clients": 10},
    "65,536 columns": {"kind": "columns", "columns": 65_536, "maps": 1, "clients": 10},
    "4,096 maps": {"kind": "columns", "columns": 1, "maps": 4096, "clients": 10},
    "strings of 20 MB": {"kind": "string", "text": "x", "bytes": 20_000_000, "gzip": True, "clients": 2},
    "strings of 20 MB of quotes": {"kind": "string", "text": '\\"', "bytes": 20_000_000, "gzip": True, "clients": 2},
    "gzip bombs": {"kind": "bomb", "coding": "gzip", "bytes": 90_000_000, "clients": 4},
    "series with empty labels": _of_body(
        "a series of many empty labels", "/api/v1/write", _PROTOBUF, 250_000, "snappy"
    ),
    "JSON array of numbers": _of_body("a JSON array of numbers", _RECORDS, "application/json", 250_000),
    "Arrow of zeros": _of_body("Arrow of zeros", _RECORDS, "application/vnd.apache.arrow.stream", 90_000_000),
}

# Of the release set: a wide line, and the worst of each new format in more sizes and forms.
MORE_ATTACKS: Final[dict[str, Recipe]] = {
    **{
        f"{coding} bombs": {"kind": "bomb", "coding": coding, "bytes": 90_000_000, "clients": 4}
        for coding in ("deflate", "zstd", "snappy")
    },
    "a line of 29,000 fields": {
        "kind": "lines",
        "shapes": 1,
        "fields": 29_000,
        "run": 1,
        "end": "",
        "bytes": 1,
        "clients": 4,
    },
    "histograms of many spans": _of_body("histograms of many spans", "/api/v1/write", _PROTOBUF, 4_000_000, "snappy"),
    "many exemplars": _of_body("OTLP: many exemplars", "/v1/metrics", _PROTOBUF, 4_000_000, "gzip"),
    "JSON of OTLP": _of_body("OTLP JSON of buckets", "/v1/metrics", "application/json", 4_000_000, "gzip"),
    "NDJSON of their own fields": _of_body("JSON lines of their own fields", _RECORDS, "application/x-ndjson", 250_000),
    "Parquet of zeros": _of_body("Parquet of zeros", _RECORDS, "application/vnd.apache.parquet", 90_000_000),
    **{
        f"{body}, {size} bytes": _of_body(body, "/api/v1/write", _PROTOBUF, size, "snappy")
        for body in ("a series of many labels", "series of single references", "symbols of control characters")
        for size in (250_000, 4_000_000)
    },
    **{
        f"{body}, {size} bytes": _of_body(body, f"/v1/{signal}", _PROTOBUF, size, "gzip")
        for body, signal in (
            ("OTLP: a list of bytes", "logs"),
            ("OTLP: one attribute of control characters", "logs"),
            ("OTLP: many attributes of two values", "logs"),
            ("OTLP logs nested 30 deep", "logs"),
            ("OTLP: events of nothing", "traces"),
            ("OTLP: a summary of many quantiles", "metrics"),
        )
        for size in (250_000, 4_000_000)
    },
    **{
        f"{body}, {size} bytes": _of_body(body, _RECORDS, type_, size)
        for body, type_ in (
            ("JSON lines of nothing", "application/x-ndjson"),
            ("a JSON array behind blanks", "application/json"),
            ("JSON lines of 60,000 fields", "application/x-ndjson"),
            ("CSV of 4,096 cells", "text/csv"),
            ("Arrow of 16,000 columns", "application/vnd.apache.arrow.stream"),
            ("Arrow of small batches", "application/vnd.apache.arrow.stream"),
            ("Parquet of small row groups", "application/vnd.apache.parquet"),
            ("Parquet of small pages", "application/vnd.apache.parquet"),
        )
        for size in (250_000, 4_000_000)
    },
    "OTLP JSON, 4 MB": _of_body("OTLP JSON", "/v1/logs", "application/json", 4_000_000, "gzip"),
    "OTLP JSON of unknown keys, 4 MB": _of_body(
        "OTLP JSON of unknown keys", "/v1/logs", "application/json", 4_000_000, "gzip"
    ),
}


def build(recipe: Recipe) -> bytes:
    """Make the bytes that a client of this attack sends repeatedly."""
    return _KINDS[recipe["kind"]](recipe)


def load_corpus() -> dict[str, Recipe]:
    """Load the worst recipes that searches have found."""
    found: dict[str, Recipe] = json.loads(CORPUS.read_text()) if CORPUS.exists() else {}
    return found


def changed(recipe: Recipe, source: random.Random) -> Recipe:
    """Return a recipe with one other number: doubled, halved, or random."""
    other = dict(recipe)
    name = source.choice([name for name in recipe if name in _MOST])
    value = source.choice([recipe[name] * 2, recipe[name] // 2, round(_MOST[name] ** source.random())])
    other[name] = min(max(1, value), _MOST[name])
    if recipe["kind"] in ("lines", "text", "string", "rows", "columns") and source.random() < 0.2:
        other["gzip"] = not recipe.get("gzip")
    return other
