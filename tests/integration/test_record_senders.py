"""Senders of JSON: the fetch of Node.js, and requests of Vector and Fluent Bit as their documentation has them."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.server import Server
from tests.support.waiting import WAIT_SECONDS

NEW_YEAR = 1_767_225_600_000_000

FETCH = """
const [url, count] = process.argv.slice(1);
const records = Array.from({length: Number(count)}, (_, n) => (
  {time: 1767225600000 + n, page: `/p/${n % 3}`, ms: n / 4, ok: n % 2 === 0, nothing: null, more: {n: [n]}}
));
const answer = await fetch(url, {
  method: "POST",
  headers: {"Content-Type": "application/json"},
  body: JSON.stringify(records),
});
console.log(answer.status);
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("senders"), server_workers=1) as server:
        yield server
        server.stop()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_fetch_sends_what_javascript_stringifies(server: Server, database: str) -> None:
    url = f"{server.url}/api/v1/ingest/pages?db={database}&tag_fields=page&types=ms:f64"
    command = ["node", "--input-type=module", "-e", FETCH, url, "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert done.stdout.strip() == "202"
    rows = server.wait_for_rows(500, database)
    assert [json.loads(row.pop("_rescued_data")) for row in rows] == [{"more": {"n": [n]}} for n in range(500)]
    assert rows == [
        {"time": NEW_YEAR + 1000 * n, "page": f"/p/{n % 3}", "ms": n / 4, "ok": n % 2 == 0} for n in range(500)
    ]


@pytest.mark.parametrize("framing", ["array", "newline_delimited"])
def test_vector_sends_arrays_or_lines_compressed(server: Server, database: str, framing: str) -> None:
    """The sink `http` with `encoding.codec = "json"`, and `compression = "gzip"`."""
    events = [
        {"host": "web-1", "message": f"line {n}", "source_type": "file", "timestamp": f"2026-01-01T00:00:00.{n:09d}Z"}
        for n in range(3)
    ]
    texts = [json.dumps(event) for event in events]
    is_array = framing == "array"
    body = f"[{','.join(texts)}]" if is_array else "\n".join(texts) + "\n"
    answer = server.post(
        f"/api/v1/ingest/logs?db={database}&time_field=timestamp&tag_fields=host,source_type",
        gzip.compress(body.encode()),
        {
            "content-type": "application/json" if is_array else "application/x-ndjson",
            "content-encoding": "gzip",
            "user-agent": "Vector/0.50.0 (x86_64-unknown-linux-gnu)",
            "accept-encoding": "identity",
        },
    )
    assert answer.status == 202
    rows = server.wait_for_rows(3, database)
    assert [(row["time"], row["message"], row["host"]) for row in rows] == [
        (NEW_YEAR, f"line {n}", "web-1") for n in range(3)
    ]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'[{"date":1767225600.5,"log":"a"},{"date":1767225601.25,"log":"b"}]'),
        ("application/json", b'{"date":1767225600.5,"log":"a"}\n{"date":1767225601.25,"log":"b"}\n'),
        ("application/x-ndjson", b'{"date":1767225600.5,"log":"a"}\n{"date":1767225601.25,"log":"b"}\n'),
        (
            "application/json",
            b'[{"date":"2026-01-01T00:00:00.500000Z","log":"a"},{"date":"2026-01-01T00:00:01.250000Z","log":"b"}]',
        ),
    ],
)
def test_fluent_bit_sends_arrays_or_lines(server: Server, database: str, content_type: str, body: bytes) -> None:
    """The output `http` with `format` json or json_lines, and `json_date_format` double or iso8601."""
    answer = server.post(
        f"/api/v1/ingest/logs?db={database}&time_field=date",
        body,
        {"Content-Type": content_type, "User-Agent": "Fluent-Bit"},
    )
    assert answer.status == 202
    rows = server.wait_for_rows(2, database)
    assert rows == [{"time": NEW_YEAR + 500_000, "log": "a"}, {"time": NEW_YEAR + 1_250_000, "log": "b"}]
