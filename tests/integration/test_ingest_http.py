"""The ingest workers over real HTTP: status codes, refusals with their reasons, and what HTTP/1.1 asks of a server."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from arcpipe import __version__
from tests.support.http import Client, Response, pack, request_bytes
from tests.support.lake import lake_rows
from tests.support.server import Server
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
V1 = "/api/v1/write/msgpack"
COLUMNAR = {"m": "cpu", "columns": {"time": [1_700_000_000], "usage": [0.5]}}
BODY = pack(COLUMNAR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only talk to it."""
    with Server(tmp_path_factory.mktemp("ingest"), server_max_body_mb=1, server_workers=2) as server:
        yield server
        server.stop()


def write_request(headers: Mapping[str, str] | None = None, body: bytes = BODY, path: str = V2) -> bytes:
    return request_bytes("POST", path, body, headers)


def marked(number: int) -> bytes:
    return pack({"m": "marks", "columns": {"number": [number]}})


def chunked(body: bytes, *sizes: int) -> bytes:
    chunks = []
    for size in sizes:
        chunks.append(b"%x\r\n%b\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    rest = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return b"".join(chunks) + rest + b"0\r\n\r\n"


# Status codes


@pytest.mark.parametrize(("path", "status"), [(V2, 202), (V1, 204)])
@pytest.mark.parametrize(
    "value",
    [
        COLUMNAR,
        {"m": "cpu", "t": 1_700_000_000, "h": "a", "fields": {"usage": 0.5}},
        {"batch": [{"m": "cpu", "fields": {"usage": 0.5}}, COLUMNAR]},
        [COLUMNAR, {"m": "cpu", "fields": {"usage": 0.5}}, COLUMNAR],
    ],
    ids=["columnar", "row", "batch", "array"],
)
def test_every_shape_is_acknowledged_without_a_body_on_both_paths(
    server: Server, path: str, status: int, value: Any
) -> None:
    response = server.post(path, pack(value))
    assert (response.status, response.body) == (status, b"")
    # RFC 9110 §8.6: no Content-Length in a 204.
    assert response.headers.pop("date")
    assert response.headers == ({} if status == 204 else {"content-length": "0"})


def test_health_says_who_answers(server: Server) -> None:
    response = server.get("/health")
    assert response.status == 200
    assert response.json() == {
        "name": "arcpipe",
        "status": "pass",
        "message": "accepts requests",
        "version": __version__,
        "workers": 2,
    }


def test_ready_says_that_writes_are_taken(server: Server) -> None:
    response = server.get("/ready")
    assert (response.status, response.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_head_gives_the_headers_of_get_and_no_body(client: Client, path: str) -> None:
    got = client.request("GET", path)
    head = client.request("HEAD", path)
    # A body would be read here as the start of the next answer.
    again = client.request("GET", path)
    for response in (got, head, again):
        assert response.headers.pop("date")  # the second may end between two of them
    assert (head.status, head.headers, head.body) == (200, got.headers, b"")
    assert again == got


@pytest.mark.parametrize("path", ["/index.html", "/write/v2/msgpack/", "//health", "/health/x", "/Health", "*"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_paths_are_404(client: Client, method: str, path: str) -> None:
    response = client.request(method, path, BODY if method == "POST" else b"")
    assert (response.status, response.json()["code"]) == (404, "not_found")
    assert client.request("GET", "/health").status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", V2, "POST"),
        ("HEAD", V2, "POST"),
        ("PUT", V1, "POST"),
        ("DELETE", V1, "POST"),
        ("OPTIONS", V1, "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("PATCH", "/ready", "GET, HEAD"),
    ],
)
def test_wrong_methods_are_405_with_those_that_are_allowed(
    client: Client, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path, BODY if method in ("POST", "PUT") else b"")
    assert (response.status, response.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert response.json() == {"error": f"this path takes {allowed}", "code": "method_not_allowed"}
    assert client.request("GET", "/health").status == 200


def test_a_query_does_not_change_the_path(server: Server) -> None:
    assert server.get("/health?verbose=1").status == 200


def test_the_target_may_be_a_whole_url(client: Client) -> None:
    assert client.request("GET", "http://127.0.0.1/health").status == 200
    assert client.request("POST", f"http://127.0.0.1:8000{V2}?db=urls", BODY).status == 202
    assert client.request("GET", "http://127.0.0.1/nothing").status == 404


# Bodies that are too large


def columnar_of(size: int) -> bytes:
    """Make a good body of exactly `size` bytes."""
    front = pack({"m": "large", "columns": {"pad": [b"x" * 70_000]}})[:-70_005]
    length = size - len(front) - 5
    return front + b"\xc6" + struct.pack(">I", length) + b"x" * length


def test_the_largest_body_is_taken(server: Server) -> None:
    assert server.post(V2, columnar_of(1 << 20)).status == 202


def test_a_body_one_byte_larger_is_413_before_it_is_sent(client: Client) -> None:
    client.send(write_request({"Content-Length": str((1 << 20) + 1)}, b""))
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (413, "close")
    assert response.json() == {"error": "the body exceeds server.max_body_mb = 1", "code": "body_too_large"}


def test_a_sender_of_a_large_body_reads_its_413(server: Server) -> None:
    response = server.post(V2, b"x" * (8 << 20))
    assert response.status == 413


def test_a_chunked_body_is_413_as_soon_as_it_is_too_large(client: Client) -> None:
    client.send(write_request({"Transfer-Encoding": "chunked"}, b""))
    client.send(b"%x\r\n%b\r\n" % (1 << 20, b"x" * (1 << 20)))
    client.send(b"1\r\nx\r\n")
    response = client.receive()
    assert (response.status, response.json()["code"]) == (413, "body_too_large")
    client.assert_closed()


def test_a_chunked_body_of_the_largest_size_is_taken(client: Client) -> None:
    body = columnar_of(1 << 20)
    client.send(write_request({"Transfer-Encoding": "chunked"}, chunked(body, 1000, 100_000)))
    assert client.receive().status == 202


def test_a_request_head_that_is_too_large_is_431(client: Client) -> None:
    client.send(write_request({"X-Long": "x" * 33_000}))
    response = client.receive()
    assert (response.status, response.json()["code"]) == (431, "header_too_large")
    client.assert_closed()


# Bad input: what is refused, and with which reason

GOOD_ROW = {"m": "cpu", "t": 1_700_000_000, "fields": {"usage": 0.5}}

BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "empty body": (b"", "body is empty"),
    "truncated columnar": (BODY[:-1], f"truncated MessagePack at byte {len(BODY) - 1}"),
    "truncated row": (pack(GOOD_ROW)[:-3], f"truncated MessagePack at byte {len(pack(GOOD_ROW)) - 3}"),
    "truncated batch": (pack({"batch": [GOOD_ROW]})[:-4], "truncated MessagePack at byte "),
    "one byte": (b"\x82", "truncated MessagePack at byte 1"),
    "trailing byte": (BODY + b"\xc0", f"trailing bytes after the MessagePack value at byte {len(BODY)}"),
    "trailing value": (BODY + BODY, f"trailing bytes after the MessagePack value at byte {len(BODY)}"),
    "reserved byte": (
        b"\x82\xa1m\xa3cpu\xa7columns\x81\xa1a\x92\x01\xc1",
        "invalid MessagePack at byte 20, in column 'a'",
    ),
    "json": (b'{"m": "cpu", "columns": {"a": [1]}}', "body is neither a map nor an array but an integer"),
    "line protocol": (b"cpu usage=0.5 1700000000", "body is neither a map nor an array but an integer"),
    "columnar without m": (pack({"columns": {"a": [1]}}), "measurement 'm' is missing"),
    "row without m": (pack({"fields": {"a": 1}}), "measurement 'm' is missing"),
    "empty m": (pack({"m": "", "columns": {"a": [1]}}), "measurement is empty"),
    "m with a control character": (pack({"m": "a\nb", "columns": {"a": [1]}}), "measurement 'a\\nb'"),
    "m too long": (pack({"m": "m" * 257, "columns": {"a": [1]}}), "has 257 bytes, more than 256"),
    "m not a string": (pack({"m": 1.5, "columns": {"a": [1]}}), "measurement 'm' is not a string"),
    "column is no array": (pack({"m": "x", "columns": {"a": [1], "b": 2}}), "column 'b' is not an array"),
    "unequal columns": (
        pack({"m": "x", "columns": {"a": [1, 2], "b": [1, 2, 3]}}),
        "column 'b' has 3 values, 'a' has 2",
    ),
    "columns not a map": (pack({"m": "x", "columns": [1]}), "'columns' is not a map"),
    "no columns": (pack({"m": "x", "columns": {}}), "'columns' is empty"),
    "no values": (pack({"m": "x", "columns": {"a": []}}), "column 'a' has no values"),
    "column twice": (b"\x82\xa1m\xa1x\xa7columns\x82\xa1a\x91\x01\xa1a\x91\x02", "column 'a' is there twice"),
    "unknown key": (pack({"m": "x", "columns": {"a": [1]}, "nope": 1}), "'nope'"),
    "tag that is no column": (pack({"m": "x", "columns": {"a": [1]}, "tags": ["b"]}), "tag 'b' is not a column"),
    "row without fields": (pack({"m": "x", "t": 1}), "'fields' is missing"),
    "row with empty fields": (pack({"m": "x", "t": 1, "fields": {}}), "'fields' is empty"),
    "row with a tag called time": (pack({"m": "x", "fields": {"a": 1}, "tags": {"time": 1}}), "'time'"),
    "time is no time": (
        pack({"m": "x", "columns": {"time": [1, "now"], "a": [1, 2]}}),
        "column 'time', row 1: text 'now'",
    ),
    "row without fields in a batch": (pack({"batch": [GOOD_ROW, {"m": "x", "t": 1}]}), "'fields' is missing"),
    "bad column in a batch": (
        pack({"batch": [GOOD_ROW, {"m": "x", "columns": {"usage": [1, 2], "late": 3}}]}),
        "column 'late' is not an array",
    ),
    "bad element in an array": (pack([COLUMNAR, GOOD_ROW, 7]), "element 2 is not a map"),
    "empty array": (b"\x90", "no records"),
    "empty batch": (pack({"batch": []}), "no records"),
    "batch within a batch": (pack({"batch": [{"batch": [GOOD_ROW]}]}), "batch"),
    "batch not an array": (pack({"batch": 1}), "'batch' is not an array"),
    "no map": (pack("cpu"), "body is neither a map nor an array"),
    "deep nesting": (b"\x82\xa1m\xa1x\xa7columns\x81\xa1a\x91" + b"\x91" * 3000 + b"\x01", "nested more than 1024"),
}

BAD_DATABASES = {
    "empty": "",
    "slash": "a/b",
    "dots": "..",
    "dot": ".",
    "too long": "d" * 129,
    "too many bytes": "ä" * 65,
    "control character": "a\x85b",
}


@pytest.mark.parametrize("path", [V2, V1])
@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_400_with_a_reason_that_says_where(server: Server, case: str, path: str) -> None:
    body, reason = BAD_BODIES[case]
    response = server.post(path, body)
    assert (response.status, response.json()["code"]) == (400, "bad_request")
    assert reason in response.reason


@pytest.mark.parametrize("case", BAD_DATABASES)
def test_a_bad_database_name_is_400_and_says_where_it_stood(server: Server, case: str) -> None:
    response = server.post(V2, BODY, {"x-arc-database": BAD_DATABASES[case]})
    assert (response.status, response.json()["code"]) == (400, "bad_request")
    assert response.reason.startswith("header 'x-arc-database': ")


@pytest.mark.parametrize("query", ["db=a/b", "db=", "bucket=..", "bucket=%2Fb", "db=a&db=b", "db=a&db=a", "db=%ff"])
def test_a_bad_database_in_the_query_is_400(server: Server, query: str) -> None:
    response = server.post(f"{V2}?{query}", BODY)
    assert (response.status, response.json()["code"]) == (400, "bad_request")
    assert "query" in response.reason


def test_a_database_header_given_twice_is_400(client: Client) -> None:
    """A name may have a comma, so its values are not joined by one."""
    twice = write_request().replace(b"\r\n\r\n", b"\r\nx-arc-database: one\r\nX-Arc-Database: two\r\n\r\n", 1)
    for _ in range(3):
        client.send(twice)
        response = client.receive()
        assert (response.status, response.reason[:35]) == (400, "header 'x-arc-database': 'one//two'")


def test_a_refused_body_leaves_the_connection_usable(client: Client) -> None:
    for body, _ in BAD_BODIES.values():
        assert client.request("POST", V2, body).status == 400
    assert client.request("POST", V2, BODY).status == 202


@pytest.mark.parametrize(
    "request_head",
    [
        b"not http at all\r\n\r\n",
        b"POST /write/v2/msgpack\r\n\r\n",
        b"POST /write/v2/msgpack HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /write/v2/msgpack HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /write/v2/msgpack HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /write/v2/msgpack HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /write/v2/msgpack HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /write/v2/msgpack HTTP/1.1\r\nHost : x\r\nBad\x00Header: 1\r\n\r\n",
    ],
)
def test_malformed_http_is_400_and_ends_the_connection(client: Client, request_head: bytes) -> None:
    client.send(request_head)
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert response.json()["code"] == "bad_request"
    client.assert_closed()


def test_an_unknown_content_encoding_is_415(client: Client) -> None:
    response = client.request("POST", V2, BODY, {"Content-Encoding": "br"})
    assert (response.status, response.json()["code"]) == (415, "unsupported_encoding")
    assert client.request("POST", V2, BODY, {"Content-Encoding": "identity"}).status == 202


def test_nothing_that_was_refused_is_written(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, server_max_body_mb=1) as server:
        with server.client() as client:
            for body, _ in BAD_BODIES.values():
                for path in (V2, V1):
                    assert client.request("POST", path, body).status == 400
            for name in BAD_DATABASES.values():
                assert client.request("POST", V2, BODY, {"x-arc-database": name}).status == 400
            assert client.request("POST", f"{V2}?db=a/b", BODY).status == 400
            assert client.request("POST", "/write/v3/msgpack", BODY).status == 404
            assert client.request("PUT", V2, BODY).status == 405
            assert client.request("POST", V2, BODY, {"Content-Encoding": "br"}).status == 415
        assert server.post(V2, b"x" * (2 << 20)).status == 413
        server.write({"m": "marker", "columns": {"time": [1_700_000_000], "good": [True]}})
        server.stop()
        server.assert_log_is_shipped()
        assert lake_rows(server.lake) == [{"time": 1_700_000_000_000_000, "good": True}]
        assert not (server.lake / "_dead_letter").exists()


# Databases


@pytest.mark.parametrize(
    ("query", "headers", "database"),
    [
        ("", {}, "default"),
        ("", {"x-arc-database": "from_header"}, "from_header"),
        ("", {"X-ARC-Database": "From-Header-2"}, "From-Header-2"),
        ("?db=from_db", {}, "from_db"),
        ("?bucket=from_bucket", {}, "from_bucket"),
        ("?db=query", {"x-arc-database": "header-wins"}, "header-wins"),
        ("", {"x-arc-database": "d" * 64}, "d" * 64),
    ],
)
def test_the_database_comes_from_header_or_query(
    server: Server, query: str, headers: dict[str, str], database: str
) -> None:
    measurement = f"database_{database}"
    assert server.post(V2 + query, pack({"m": measurement, "columns": {"a": [1]}}), headers).status == 202
    server.wait_for_rows(1, "*", measurement)
    assert [path.name for path in server.lake.glob(f"*/{measurement}")] == [measurement]
    assert (server.lake / database / measurement).is_dir()


# Connections


def test_a_connection_serves_many_requests(client: Client) -> None:
    for _ in range(200):
        assert client.request("POST", V2, BODY).status == 202
        assert client.request("GET", "/health").status == 200


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """Writes wait for the disk, the others do not: only the order of the requests can make this order."""
    kinds = [
        (write_request(), 202),
        (request_bytes("GET", "/health"), 200),
        (write_request(path=V1), 204),
        (request_bytes("GET", "/nothing"), 404),
        (write_request(body=b"\xc1"), 400),
        (request_bytes("GET", V2), 405),
    ]
    requests = [kinds[number * 7 % len(kinds)] for number in range(600)]
    client.send(b"".join(data for data, _ in requests))
    assert [client.receive().status for _ in requests] == [status for _, status in requests]


def test_pipelined_writes_are_all_written(server: Server, client: Client) -> None:
    client.send(b"".join(write_request({"x-arc-database": "pipelined"}, marked(number)) for number in range(500)))
    assert {client.receive().status for _ in range(500)} == {202}
    rows = server.wait_for_rows(500, "pipelined")
    assert sorted(row["number"] for row in rows) == list(range(500))


def test_requests_may_arrive_split_at_any_byte(client: Client) -> None:
    pair = write_request({"x-arc-database": "split"}) + request_bytes("GET", "/nothing")
    for at in range(1, len(pair)):
        client.send(pair[:at])
        if at % 8 == 0:
            time.sleep(0.001)  # more often than not the worker has read the front by then; either way is right
        client.send(pair[at:])
        assert [client.receive().status, client.receive().status] == [202, 404]


def test_requests_may_arrive_byte_by_byte(client: Client) -> None:
    for byte in write_request() + write_request({"Transfer-Encoding": "chunked"}, chunked(BODY, 1, 2, 3)):
        client.send(bytes([byte]))
    assert [client.receive().status, client.receive().status] == [202, 202]


def test_chunked_bodies_are_put_together(server: Server, client: Client) -> None:
    body = pack({"m": "chunked", "columns": {"text": ["é" * 5000, "b"]}})
    client.send(write_request({"Transfer-Encoding": "chunked"}, chunked(body, *[97] * 60)))
    assert client.receive().status == 202
    rows = server.wait_for_rows(2, "*", "chunked")
    assert sorted(row["text"] for row in rows) == ["b", "é" * 5000]


def test_trailers_of_a_chunked_body_are_read_and_dropped(client: Client) -> None:
    data = chunked(BODY, 10).removesuffix(b"\r\n") + b"x-arc-database: ../..\r\n\r\n"
    client.send(write_request({"Transfer-Encoding": "chunked", "Trailer": "x-arc-database"}, data) + write_request())
    assert [client.receive().status, client.receive().status] == [202, 202]


def test_expect_100_continue_gets_its_go_ahead(client: Client) -> None:
    client.send(write_request({"Expect": "100-continue", "Content-Length": str(len(BODY))}, b""))
    assert client.receive() == Response(100, {}, b"")
    client.send(BODY)
    assert client.receive().status == 202
    assert client.request("POST", V2, BODY).status == 202


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/nothing", {}, 404),
        ("/health", {}, 405),
        (V2, {"Content-Length": "5000000"}, 413),
        (V2, {"Content-Encoding": "br"}, 415),
    ],
)
def test_expect_100_continue_is_refused_before_the_body_is_sent(
    client: Client, path: str, headers: dict[str, str], status: int
) -> None:
    client.send(write_request({"Expect": "100-continue", "Content-Length": "5", **headers}, b"", path))
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (status, "close")


def test_a_go_ahead_comes_in_order_after_a_pipelined_write(client: Client) -> None:
    """Expect 100 continue after a pipelined write gets its go ahead in order."""
    client.send(write_request() + write_request({"Expect": "100-continue", "Content-Length": str(len(BODY))}, b""))
    assert client.receive().status == 202
    assert client.receive().status == 100
    client.send(BODY)
    assert client.receive().status == 202


def test_an_unused_go_ahead_is_not_given_to_the_next_request(client: Client) -> None:
    """A go ahead that no body waited for is not given to the next request."""
    without_body = write_request({"Expect": "100-continue", "Content-Length": "0"}, b"")
    client.send(write_request() + without_body + write_request().removesuffix(BODY))
    assert [client.receive().status for _ in range(2)] == [202, 400]
    client.send(BODY)
    assert client.receive().status == 202


def test_http_1_0_never_gets_an_interim_answer(client: Client) -> None:
    request = write_request({"Expect": "100-continue"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    client.send(request)
    assert client.receive().status == 202
    client.assert_closed()


def test_other_expectations_are_417(client: Client) -> None:
    assert client.request("POST", V2, BODY, {"Expect": "the-unexpected"}).status == 417


def test_connection_close_ends_the_connection_behind_the_answer(client: Client) -> None:
    response = client.request("POST", V2, BODY, {"Connection": "close"})
    assert (response.status, response.headers["connection"]) == (202, "close")
    client.assert_closed()


@pytest.mark.parametrize("path", [V2, "/health"])
def test_what_follows_connection_close_is_not_served(server: Server, client: Client, path: str) -> None:
    method = "POST" if path == V2 else "GET"
    last = request_bytes(method, path, BODY if path == V2 else b"", {"Connection": "close"})
    client.send(last + write_request({"x-arc-database": "after-the-end"}))
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (202 if path == V2 else 200, "close")
    client.assert_closed()
    server.write(COLUMNAR, "before-the-end")
    server.wait_for_rows(1, "before-the-end")
    assert not (server.lake / "after-the-end").exists()


def test_http_1_0_is_answered_and_closed(client: Client) -> None:
    client.send(write_request().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert client.receive().status == 202
    client.assert_closed()


def test_http_1_0_with_keep_alive_stays_open(client: Client) -> None:
    for _ in range(2):
        client.send(write_request({"Connection": "keep-alive"}).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.receive().status == 202


def test_an_offer_to_upgrade_is_ignored(client: Client) -> None:
    """Java's HTTP client offers h2c with its first request; RFC 9110 §7.8 lets a server go on with HTTP/1.1."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    assert client.request("POST", V2, BODY, offer).status == 202
    assert client.request("GET", "/health", b"", offer).status == 200
    client.send(request_bytes("GET", "/health", b"", offer) + write_request(offer) + write_request())
    assert [client.receive().status for _ in range(3)] == [200, 202, 202]


def test_a_half_closed_client_still_gets_its_answer(client: Client) -> None:
    client.send(write_request() + write_request(path=V1))
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.receive().status, client.receive().status] == [202, 204]
    client.assert_closed()


def test_a_client_that_leaves_in_the_middle_of_a_body_writes_nothing(server: Server) -> None:
    for cut in (1, len(BODY) - 1):
        with server.client() as client:
            client.send(write_request({"x-arc-database": "half-sent"})[: cut - len(BODY)])
        with server.client() as client:
            client.send(write_request({"x-arc-database": "half-sent"})[: cut - len(BODY)])
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    server.write(COLUMNAR, "whole")
    server.wait_for_rows(1, "whole")
    assert not (server.lake / "half-sent").exists()


def test_a_client_that_leaves_during_a_commit_does_not_undo_it(server: Server) -> None:
    """Whether the worker reads the reset before the request is a matter of luck: each is written whole or not at all.

    The worker goes on either way.
    """
    for number in range(50):
        with server.client() as client:
            client.send(write_request({"x-arc-database": "left"}, marked(number)))
            if number % 2:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.write({"m": "marks", "columns": {"number": [-1]}}, "left")
    # A plain close lets everything arrive that was sent before it.
    certain = {-1, *range(0, 50, 2)}

    def found() -> list[int]:
        return [row["number"] for row in lake_rows(server.lake, "left")]

    wait_until(lambda: certain.issubset(found()), "what was sent before a plain close")
    numbers = found()
    assert len(numbers) == len(set(numbers))
    assert set(numbers) <= {-1, *range(50)}


def test_a_client_that_never_reads_its_answers_is_not_read_for_ever(server: Server) -> None:
    with Client(server.url, timeout_seconds=0.5) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(TimeoutError):
            client.send(request_bytes("GET", "/health") * 1_000_000)
    assert server.get("/health").status == 200


def test_idle_and_slow_connections_are_ended(tmp_path: Path) -> None:
    with Server(
        tmp_path,
        server_workers=1,
        server_keep_alive_seconds=1.5,
        server_header_timeout_seconds=1.5,
        server_body_timeout_seconds=1.5,
    ) as server:
        with server.client() as idle, server.client() as used:
            assert used.request("POST", V2, BODY).status == 202
            idle.assert_closed()
            used.assert_closed()
        for part in (write_request()[:20], write_request()[:-5]):
            with server.client() as slow:
                slow.send(part)
                response = slow.receive()
                assert (response.status, response.headers["connection"]) == (408, "close")
                slow.assert_closed()
        server.stop()


def test_connections_above_the_limit_are_503(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, server_max_connections=3) as server:
        clients = [server.client() for _ in range(3)]
        assert [client.request("GET", "/health").status for client in clients] == [200] * 3
        with server.client() as further:
            response = further.receive()
            assert (response.status, response.json()["code"]) == (503, "too_many_connections")
            further.assert_closed()
        clients.pop().socket.close()

        def taken() -> bool:
            with server.client() as client:
                try:
                    return client.request("GET", "/health").status == 200
                except ConnectionError:
                    return False

        wait_until(taken, "a place to be free")
        for client in clients:
            client.socket.close()


def test_no_space_for_the_log_is_507_and_not_ready(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_min_free_mb=1 << 29) as server:
        response = server.post(V2, BODY)
        assert (response.status, response.json()["code"]) == (507, "no_space")
        assert "wal.min_free_mb" in response.reason
        assert server.get("/ready").status == 507
        assert server.get("/health").status == 200
        server.stop()
        assert lake_rows(server.lake) == []


@pytest.mark.parametrize("wal_enabled", [True, False])
def test_a_worker_at_its_bytes_in_flight_goes_on_after_the_write(tmp_path: Path, wal_enabled: bool) -> None:
    """A worker that holds all the bytes it may goes on when they are written."""
    with Server(
        tmp_path, server_workers=1, server_max_body_mb=1, server_max_inflight_mb=1, wal_enabled=wal_enabled
    ) as server:
        body = columnar_of(900_000)
        with server.client() as client:
            for _ in range(6):
                assert client.request("POST", V2, body).status == 202
        server.stop()
        assert len(lake_rows(server.lake)) == 6
