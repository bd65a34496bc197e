"""HTTP/1.1 over raw sockets: what a message may look like to the byte, and that no request can be smuggled past it.

Every refusal here is a 400 that ends the connection, because where a message ends is not certain any more; nothing that
came after it on the connection is served.
"""

from __future__ import annotations

import datetime
import email.utils
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.http import Client, pack, request_bytes
from tests.support.lake import lake_rows
from tests.support.server import Server
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"time": [1_700_000_000], "usage": [0.5]}})
SIZE = len(BODY)
# What an attacker would like to have served as a request of its own.
SMUGGLED = request_bytes("POST", V2, BODY, {"x-arc-database": "smuggled"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("strict"), server_max_body_mb=1, server_workers=1) as server:
        yield server
        server.write({"m": "cpu", "columns": {"last": [1]}}, "last")
        server.wait_for_rows(1, "last")
        assert lake_rows(server.lake, "smuggled") == []
        server.stop()


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """A write with these header lines after Host, each with its line end."""
    return b"POST /write/v2/msgpack HTTP/1.1\r\nHost: x\r\n" + b"".join(lines) + b"\r\n" + body


def chunked(data: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body=data)


LENGTH = b"Content-Length: %d\r\n" % SIZE
CHUNK = b"%x\r\n%b\r\n" % (SIZE, BODY)

MALFORMED: dict[str, bytes] = {
    # Content-Length
    "two lengths": post(LENGTH, b"Content-Length: 6\r\n", body=BODY),
    "the same length twice": post(LENGTH, LENGTH, body=BODY),
    "a list of lengths": post(b"Content-Length: 5, 5\r\n", body=BODY),
    "length with a plus": post(b"Content-Length: +5\r\n", body=BODY),
    "length with a minus": post(b"Content-Length: -5\r\n", body=BODY),
    "length in hex": post(b"Content-Length: 0x5\r\n", body=BODY),
    "empty length": post(b"Content-Length: \r\n", body=BODY),
    "length with a blank in it": post(b"Content-Length: 5 5\r\n", body=BODY),
    "length with an underscore": post(b"Content-Length: 5_0\r\n", body=BODY),
    "length with a fraction": post(b"Content-Length: 5.0\r\n", body=BODY),
    "length with a vertical tab": post(b"Content-Length: \x0b5\r\n", body=BODY),
    "length of 2**64 and 5": post(b"Content-Length: 18446744073709551621\r\n", body=BODY),
    # Transfer-Encoding
    "both, length first": post(b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n", body=b"0\r\n\r\n"),
    "both, length last": post(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 4\r\n", body=b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\n", body=b"0\r\n\r\n"),
    "chunked, chunked": post(b"Transfer-Encoding: chunked, chunked\r\n", body=b"0\r\n\r\n"),
    "identity": post(b"Transfer-Encoding: identity\r\n", body=BODY),
    "gzip": post(b"Transfer-Encoding: gzip\r\n", body=BODY),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked\r\n", body=b"0\r\n\r\n"),
    "gzip and chunked": post(b"Transfer-Encoding: gzip\r\n", b"Transfer-Encoding: chunked\r\n", body=b"0\r\n\r\n"),
    "chunked is not last": post(b"Transfer-Encoding: chunked, gzip\r\n", body=b"0\r\n\r\n"),
    "chunked and identity": post(
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", body=b"0\r\n\r\n"
    ),
    "xchunked": post(b"Transfer-Encoding: xchunked\r\n", body=b"0\r\n\r\n"),
    "chunked before a tab": post(b"Transfer-Encoding: chunked\t\r\n", body=b"0\r\n\r\n"),
    "chunked in quotes": post(b"Transfer-Encoding: 'chunked'\r\n", body=b"0\r\n\r\n"),
    "chunked with a parameter": post(b"Transfer-Encoding: chunked;q=1\r\n", body=b"0\r\n\r\n"),
    "chunked after a comma": post(b"Transfer-Encoding: ,chunked\r\n", body=b"0\r\n\r\n"),
    "chunked after a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", body=b"0\r\n\r\n"),
    "empty transfer encoding": post(b"Transfer-Encoding:\r\n", LENGTH, body=BODY),
    "chunked in HTTP/1.0": chunked(CHUNK + b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    # Lines
    "bare LF after the request line": post(LENGTH, body=BODY).replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "bare LF after a header": post(b"A: b\n", LENGTH, body=BODY),
    "bare LF at the end of the head": post(b"Content-Length: 0\r\n\n"),
    "bare LF before all": b"GET /health\nHost: x\r\n\r\n",
    "bare CR in a header": post(b"A: b\rC: d\r\n", LENGTH, body=BODY),
    "CR CR LF": post(b"A: b\r\r\n", LENGTH, body=BODY),
    "obs-fold": post(b"A: b\r\n c\r\n", LENGTH, body=BODY),
    "obs-fold with a tab": post(b"A: b\r\n\tc\r\n", LENGTH, body=BODY),
    "obs-fold of a length": post(b"Content-Length:\r\n %d\r\n" % SIZE, body=BODY),
    "obs-fold of chunked": post(b"Transfer-Encoding:\r\n chunked\r\n", body=b"0\r\n\r\n"),
    "obs-fold after the request line": post(LENGTH, body=BODY).replace(b"Host", b" Host"),
    "blank before the colon": post(b"Content-Length : %d\r\n" % SIZE, body=BODY),
    "tab before the colon": post(b"Content-Length\t: %d\r\n" % SIZE, body=BODY),
    "no name": post(b": b\r\n", LENGTH, body=BODY),
    "no colon": post(b"Ab\r\n", LENGTH, body=BODY),
    "a name that is none": post(b"A(b: c\r\n", LENGTH, body=BODY),
    "NUL in a value": post(b"A: b\0c\r\n", LENGTH, body=BODY),
    "control character in a value": post(b"A: b\x01c\r\n", LENGTH, body=BODY),
    # Chunks
    "chunk size that is none": chunked(b"zz\r\n"),
    "empty chunk size": chunked(b"\r\n"),
    "chunk size with 0x": chunked(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with a plus": chunked(b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with a minus": chunked(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk size after a blank": chunked(b" 5\r\nhello\r\n0\r\n\r\n"),
    "chunk size before a blank": chunked(b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size of 2**64 and 5": chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "bare LF after a chunk size": chunked(b"5\nhello\r\n0\r\n\r\n"),
    "bare LF after a chunk": chunked(b"5\r\nhello\n0\r\n\r\n"),
    "bare LF after the last chunk": chunked(b"5\r\nhello\r\n0\n\r\n"),
    "no line end after a chunk": chunked(b"5\r\nhello0\r\n\r\n"),
    "chunk longer than its size": chunked(b"4\r\nhello\r\n0\r\n\r\n"),
    "empty chunk extension": chunked(b"5;\r\nhello\r\n0\r\n\r\n"),
    "control character in a chunk extension": chunked(b"5;\x01\r\nhello\r\n0\r\n\r\n"),
    "bare LF in a chunk extension": chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "bare CR in a chunk extension": chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "length as a trailer": chunked(CHUNK + b"0\r\nContent-Length: 5\r\n\r\n"),
    "transfer encoding as a trailer": chunked(CHUNK + b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "obs-fold in a trailer": chunked(CHUNK + b"0\r\nA: b\r\n c\r\n\r\n"),
    # Host
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "the same host twice": b"GET /health HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET /health HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
    "host with a scheme and a path": b"GET /health HTTP/1.1\r\nHost: http://x/\r\n\r\n",
    "host with two schemes": b"GET /health HTTP/1.1\r\nHost: http://http://x\r\n\r\n",
    "host with another scheme": b"GET /health HTTP/1.1\r\nHost: ftp://x\r\n\r\n",
    "host with a path": b"GET /health HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "host with a blank": b"GET /health HTTP/1.1\r\nHost: x y\r\n\r\n",
    "host with a user": b"GET /health HTTP/1.1\r\nHost: user@x\r\n\r\n",
    "host with a port that is none": b"GET /health HTTP/1.1\r\nHost: x:http\r\n\r\n",
    # The request line
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/2.0 that wants to be kept": b"GET /health HTTP/2.0\r\nHost: x\r\nProxy-Connection: keep-alive\r\n\r\n",
    "HTTP/1.2": b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/0.9 with headers": b"GET /health\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
    "http in small letters": b"GET /health http/1.1\r\nHost: x\r\n\r\n",
    "an unknown method": b"FETCH /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method in small letters": b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is none": b"GET health HTTP/1.1\r\nHost: x\r\n\r\n",
    "control character in the target": b"GET /hea\x01lth HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes beyond ASCII in the target": b"GET /he\xc3\xa4lth HTTP/1.1\r\nHost: x\r\n\r\n",
    "blank after the version": b"GET /health HTTP/1.1 \r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_message_is_400_and_the_end_of_the_connection(client: Client, case: str) -> None:
    client.send(MALFORMED[case] + SMUGGLED)
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert response.json()["code"] == "bad_request"
    client.assert_closed()


@pytest.mark.parametrize("case", MALFORMED)
def test_it_is_refused_byte_by_byte_after_a_good_request_too(client: Client, case: str) -> None:
    """It is refused as well when it arrives byte by byte after a good request."""
    client.send(request_bytes("GET", "/ping"))
    assert client.receive().status == 204
    message = MALFORMED[case]
    for at in range(0, len(message), 7):
        try:
            client.send(message[at : at + 7])
        except ConnectionError:
            break
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (400, "close")


GOOD: dict[str, bytes] = {
    "length with zeros": post(b"Content-Length: 000%d\r\n" % SIZE, body=BODY),
    "length between blanks": post(b"Content-Length: \t%d \r\n" % SIZE, body=BODY),
    "chunks": chunked(b"1\r\n%b\r\n%X\r\n%b\r\n0\r\n\r\n" % (BODY[:1], SIZE - 1, BODY[1:])),
    "Chunked": post(b"transfer-ENCODING: Chunked\r\n", body=CHUNK + b"0\r\n\r\n"),
    "chunk size with zeros": chunked(b"0000%x\r\n%b\r\n0000\r\n\r\n" % (SIZE, BODY)),
    "chunk extensions": chunked(b'%x;a=b;c="d e"\r\n%b\r\n0;last\r\n\r\n' % (SIZE, BODY)),
    "trailers": chunked(CHUNK + b"0\r\nA: b\r\nHost: y\r\n\r\n"),
    "empty lines before the request": b"\r\n\r\n" + post(LENGTH, body=BODY),
    "no blank after the colon": post(b"Content-Length:%d\r\n" % SIZE, body=BODY),
    "bytes beyond ASCII in a value": post(b"A: \xff\xfe\r\n", LENGTH, body=BODY),
    "empty host": post(LENGTH, body=BODY).replace(b"Host: x", b"Host:"),
    "host with a port": post(LENGTH, body=BODY).replace(b"Host: x", b"Host: ingest.example:8000"),
    "host with a scheme": post(LENGTH, body=BODY).replace(b"Host: x", b"Host: http://ingest.example:8000"),
    "host with a scheme in capitals": post(LENGTH, body=BODY).replace(b"Host: x", b"Host: HTTPS://[::1]"),
    "IPv6 host": post(LENGTH, body=BODY).replace(b"Host: x", b"Host: [::1]:8000"),
    "keep-alive by name": post(b"Connection: keep-alive\r\n", LENGTH, body=BODY),
    "whole URL": post(LENGTH, body=BODY).replace(b"/write", b"http://other.example/write"),
}


for _name, _blanks in {"a blank": b" ", "a tab": b"\t", "blanks and tabs": b" \t \t"}.items():
    for _header, _line in {"host": b"Host: x", "length": LENGTH.strip(), "database": b"x-arc-database: a"}.items():
        _head = post(LENGTH, b"x-arc-database: a\r\n", body=BODY)
        GOOD[f"{_name} behind the {_header}"] = _head.replace(_line + b"\r\n", _line + _blanks + b"\r\n")
GOOD["a blank behind the coding"] = chunked(CHUNK + b"0\r\n\r\n").replace(b"chunked", b"chunked ")


@pytest.mark.parametrize("case", GOOD)
def test_what_is_unusual_but_good_is_taken_and_the_connection_goes_on(client: Client, case: str) -> None:
    client.send(GOOD[case] * 3 + request_bytes("GET", "/ping"))
    assert [client.receive().status for _ in range(4)] == [202, 202, 202, 204]


@given(blanks=st.text(" \t", max_size=5).map(str.encode), before=st.text(" \t", max_size=3).map(str.encode))
def test_blanks_around_a_value_are_no_part_of_it(server: Server, blanks: bytes, before: bytes) -> None:
    """RFC 9112 §5.1, the first time and when the head is known."""
    headers = [b"Host:%bx%b", b"Content-Length:%b0%b", b"x-arc-database:%b/%b", b"X-Request-Id:%bmine%b"]
    message = b"\r\n".join([b"POST /write HTTP/1.1", *(line % (before, blanks) for line in headers), b"", b""])
    with server.client() as client:
        client.send(message * 4)
        answers = [client.receive() for _ in range(4)]
    assert {answer.status for answer in answers} == {400}
    assert {answer.reason.partition(";")[0] for answer in answers} == {
        "header 'x-arc-database': '/' is no database name"
    }
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}


# Writes without a length


@pytest.mark.parametrize("path", [V2, "/api/v1/write/msgpack", "/write?db=a", "/api/v2/write", "/api/v3/write_lp"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_write_without_a_length_is_411(client: Client, path: str, version: bytes) -> None:
    client.send(b"POST %b HTTP/%b\r\nHost: x\r\n\r\n" % (path.encode(), version) + SMUGGLED)
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (411, "close")
    assert response.json()["code"] == "length_required"
    assert response.json()["error"].endswith("nothing was written")
    client.assert_closed()


@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
def test_a_body_without_a_length_is_not_lost_silently(client: Client, connection: bytes) -> None:
    client.send(b"POST /write?db=nocl HTTP/1.0\r\n%b\r\nm v=1 1790000000000000000\n" % connection)
    assert client.receive().status == 411
    client.assert_closed()


def test_a_length_of_zero_is_the_probe_of_a_client(client: Client) -> None:
    for path, status in (("/write", 204), ("/api/v2/write", 400), ("/api/v3/write_lp", 400), (V2, 400)):
        client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % path.encode())
        assert client.receive().status == status
        client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % path.encode())
        assert client.receive().status == status


def test_other_requests_need_no_length(client: Client) -> None:
    client.send(b"POST /query?q=CREATE%20DATABASE%20a HTTP/1.1\r\nHost: x\r\n\r\n" + request_bytes("GET", "/ping"))
    assert [client.receive().status for _ in range(2)] == [200, 204]
    client.send(b"GET /write HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.receive().status == 405


def test_good_requests_before_a_malformed_one_are_answered_first(client: Client) -> None:
    client.send(post(LENGTH, body=BODY) * 5 + MALFORMED["no host"] + SMUGGLED)
    assert [client.receive().status for _ in range(6)] == [202] * 5 + [400]
    client.assert_closed()


def test_http_1_0_needs_no_host_and_is_told_whether_it_is_kept_open(client: Client) -> None:
    """A client of HTTP/1.0 takes an answer without `keep-alive` for the last one (RFC 9112 §9.3)."""
    kept = b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    refused = b"GET /nothing HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    written = post(b"Connection: keep-alive\r\n", LENGTH, body=BODY).replace(b"HTTP/1.1", b"HTTP/1.0")
    client.send(kept + refused + written * 3 + b"GET /ping HTTP/1.0\r\n\r\n")
    answers = [client.receive() for _ in range(6)]
    assert [answer.status for answer in answers] == [204, 404, 202, 202, 202, 204]
    assert [answer.headers["connection"] for answer in answers] == ["keep-alive"] * 5 + ["close"]
    client.assert_closed()


def test_a_request_of_http_1_0_says_that_the_connection_ends(client: Client) -> None:
    """A request of http 1 0 that ends the connection says so and nothing else."""
    client.send(b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n")
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (400, "close")
    client.assert_closed()


def test_a_kept_connection_of_http_1_0_says_that_it_ends_early(client: Client) -> None:
    """A kept connection of http 1 0 that ends early says so and nothing else."""
    client.send(post(b"Connection: keep-alive\r\n", b"Content-Length: 2000000\r\n").replace(b"/1.1", b"/1.0"))
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (413, "close")
    client.assert_closed()


def test_every_answer_has_the_time_at_which_it_left(client: Client) -> None:
    """RFC 9110 §6.6.1; whole seconds, by the clock of this machine."""
    requests = [request_bytes("GET", path) for path in ("/ping", "/health", "/", "/metrics", "/nothing", "/ping")]
    for data in (*requests, post(LENGTH, body=BODY), post(LENGTH, body=BODY), post(LENGTH, body=b"x" * SIZE)):
        before = int(time.time()) - 60  # the worker looks at the clock four times a second, if it is let
        client.send(data)
        then = email.utils.parsedate_to_datetime(client.receive().headers["date"])
        assert before <= then.timestamp() <= time.time()
        assert then.utcoffset() == datetime.timedelta(0)
    client.send(MALFORMED["no host"])
    assert client.receive().headers["date"].endswith(" GMT")


def test_the_time_of_an_answer_goes_on(client: Client) -> None:
    first = client.request("POST", V2, BODY).headers["date"]
    wait_until(lambda: client.request("POST", V2, BODY).headers["date"] != first, "the next second")


LONG: dict[str, tuple[int, bytes]] = {
    "headers too large": (431, b"HEAD /ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n"),
    "headers that never end": (431, b"HEAD /ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 600_000),
    "too many headers": (431, b"HEAD /ping HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 101 + b"\r\n"),
    "URL too long": (414, b"HEAD /ping?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "no host": (400, b"HEAD /ping HTTP/1.1\r\n\r\n"),
    "bad header": (400, b"HEAD /ping HTTP/1.1\r\nHost: x\r\nA b\r\n\r\n"),
    "expectation": (417, b"HEAD /ping HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n"),
}


@pytest.mark.parametrize("case", LONG)
@pytest.mark.parametrize("size", [1 << 20, 1000], ids=["one read", "many reads"])
def test_a_head_request_refused_within_its_head_gets_no_body(client: Client, case: str, size: int) -> None:
    """A head request that is refused before its head was read gets no body either."""
    status, data = LONG[case]
    for at in range(0, len(data), size):
        try:
            client.send(data[at : at + size])
        except ConnectionError:
            break
        time.sleep(0.001)
    response = client.receive(is_head=True)
    assert (response.status, response.headers["connection"]) == (status, "close")
    client.assert_closed()


def test_a_get_behind_a_head_gets_its_body(client: Client) -> None:
    client.send(request_bytes("HEAD", "/ping") + b"GARBAGE\r\n\r\n")
    assert client.receive(is_head=True).status == 204
    assert client.receive().json()["code"] == "bad_request"


def test_an_offer_to_upgrade_hides_nothing(client: Client) -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    client.send(post(offer, LENGTH, body=BODY) + post(offer, LENGTH, body=BODY).replace(b"Host: x\r\n", b"") + SMUGGLED)
    assert [client.receive().status, client.receive().status] == [202, 400]
    client.assert_closed()


def test_a_tunnel_is_refused(client: Client) -> None:
    client.send(b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n" + SMUGGLED)
    response = client.receive()
    assert (response.status, response.headers["connection"]) == (404, "close")
    client.assert_closed()


def test_head_is_answered_without_a_body_wherever_it_stands_in_a_pipeline(client: Client) -> None:
    client.send(post(LENGTH, body=BODY) + request_bytes("HEAD", "/health") + request_bytes("HEAD", V2))
    client.send(request_bytes("HEAD", "/nothing") + request_bytes("GET", "/ping"))
    assert client.receive().status == 202
    assert [client.receive(is_head=True).status for _ in range(3)] == [200, 405, 404]
    assert client.receive().status == 204


def test_the_body_of_a_get_is_read_and_not_taken_for_a_request(client: Client) -> None:
    client.send(request_bytes("GET", "/ping", SMUGGLED) + request_bytes("GET", "/ping"))
    assert [client.receive().status, client.receive().status] == [204, 204]


def test_a_client_that_closes_its_side_gets_all_answers_and_then_the_end(client: Client) -> None:
    client.send(post(LENGTH, body=BODY) * 20 + post(LENGTH, body=BODY[:-1]))
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.receive().status for _ in range(20)] == [202] * 20
    client.assert_closed()


def test_a_client_that_closes_within_a_head_gets_earlier_answers(client: Client) -> None:
    """A client that closes its side within a head gets the answers before it."""
    client.send(post(LENGTH, body=BODY) + b"POST /write/v2/ms")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.receive().status == 202
    client.assert_closed()


def test_clients_that_leave_during_a_commit_leave_nothing_behind(server: Server) -> None:
    """Clients that go away while their writes are committed leave nothing behind."""
    for _ in range(20):
        with server.client() as client:
            client.send(post(LENGTH, body=BODY) * 50)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    with server.client() as client:
        assert client.request("POST", V2, BODY).status == 202

    def connections() -> int:
        text = server.get("/metrics").body.decode()
        return int(
            sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("arcpipe_connections{"))
        )

    wait_until(lambda: connections() <= 1, "the connections to be forgotten")
