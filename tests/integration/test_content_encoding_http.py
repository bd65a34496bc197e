"""Compressed bodies over real HTTP: the same records, the same refusals, and nobody waits for a bomb."""

from __future__ import annotations

import gzip
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcpipe.codec.content_encoding import Decoder
from tests.support.compression import zstd
from tests.support.http import Client, pack, request_bytes
from tests.support.server import Server

V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"time": [1_700_000_000], "usage": [0.5]}})
ENCODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("encodings"), server_max_body_mb=1, server_max_inflight_mb=2, server_workers=1
    ) as server:
        yield server
        server.stop()


def padded(size: int) -> bytes:
    """Make a good body of exactly `size` bytes that compresses well."""
    body = pack({"m": "padded", "columns": {"pad": [b"x" * 70_000]}})[:-70_005]
    return body + b"\xc6" + (size - len(body) - 5).to_bytes(4, "big") + bytes(size - len(body) - 5)


@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_encoded_bodies_are_written(server: Server, client: Client, coding: str, chunked: bool) -> None:
    database = f"{coding}-{chunked}"
    headers = {"Content-Encoding": coding, "x-arc-database": database}
    for number in range(3):
        body = ENCODERS[coding](pack({"m": "cpu", "columns": {"number": [number], "pad": ["p" * 500_000 * number]}}))
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert client.request("POST", V2, body, headers).status == 202
    assert sorted(row["number"] for row in server.wait_for_rows(3, database)) == [0, 1, 2]


@pytest.mark.parametrize("coding", ENCODERS)
def test_the_decoded_size_is_bounded_as_the_sent_one_is(client: Client, coding: str) -> None:
    headers = {"Content-Encoding": coding}
    assert client.request("POST", V2, ENCODERS[coding](padded(1 << 20)), headers).status == 202
    response = client.request("POST", V2, ENCODERS[coding](padded((1 << 20) + 1)), headers)
    assert (response.status, response.json()["code"]) == (413, "body_too_large")
    assert response.reason == "the decoded body exceeds server.max_body_mb = 1"
    assert client.request("POST", V2, ENCODERS[coding](BODY), headers).status == 202


@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-3], "truncated"),
        (lambda data: data + b"garbage", "trailing bytes after"),
        (lambda data: b"no such data" + data, "invalid"),
    ],
    ids=["truncated", "trailing garbage", "no such data"],
)
def test_damaged_bodies_are_400_and_the_connection_goes_on(
    client: Client, coding: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    response = client.request("POST", V2, damage(ENCODERS[coding](BODY)), {"Content-Encoding": coding})
    assert (response.status, response.json()["code"]) == (400, "bad_request")
    assert coding in response.reason
    if (coding, reason) != ("deflate", "invalid"):  # those bytes are the start of a raw deflate stream
        assert reason in response.reason
    assert client.request("POST", V2, BODY).status == 202


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, zstd", "gzip;q=1", "x" * 1000])
def test_other_encodings_are_415_with_those_that_are_supported(client: Client, coding: str) -> None:
    response = client.request("POST", V2, BODY, {"Content-Encoding": coding})
    assert (response.status, response.json()["code"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "gzip, deflate, zstd, snappy"
    assert client.request("POST", V2, BODY, {"Content-Encoding": "identity"}).status == 202


def test_two_fields_with_an_encoding_each_are_415(client: Client) -> None:
    request = request_bytes("POST", V2, gzip.compress(BODY), {"Content-Encoding": "gzip"})
    client.send(request.replace(b"\r\n\r\n", b"\r\nContent-Encoding: zstd\r\n\r\n", 1))
    assert client.receive().status == 415


def test_answers_keep_their_order_while_large_bodies_are_decoded(tmp_path: Path) -> None:
    large = request_bytes("POST", V2, gzip.compress(padded(1 << 20)), {"Content-Encoding": "gzip"})
    bomb = request_bytes("POST", V2, gzip.compress(bytes(64 << 20)), {"Content-Encoding": "gzip"})
    small = request_bytes("POST", V2, zstd.compress(BODY), {"Content-Encoding": "zstd"})
    # With memory for all of them: bodies that wait for a slow disk count.
    with Server(tmp_path, server_max_body_mb=1, server_workers=1) as server, server.client() as client:
        client.send((large + small + request_bytes("GET", "/nothing") + bomb + small) * 5)
        assert [client.receive().status for _ in range(25)] == [202, 202, 404, 413, 202] * 5


def test_all_that_is_ever_made_of_a_bomb_is_as_large_as_a_body_may_be(server: Server) -> None:
    """Shown by processor time, which does not depend on what else the machine does."""
    encoded = gzip.compress(bytes(64 << 20))
    before = time.thread_time()
    decoder = Decoder("gzip", encoded, 64 << 20)
    while not decoder.advance(256 << 10):
        pass
    whole = time.thread_time() - before
    with server.client() as attacker:
        before = cpu_seconds(server)
        for _ in range(40):
            assert attacker.request("POST", V2, encoded, {"Content-Encoding": "gzip"}).status == 413
        assert cpu_seconds(server) - before < 40 * whole / 4


def test_bodies_that_are_being_decoded_make_nobody_wait(tmp_path: Path) -> None:
    """Shown by order: while one is decoded, many requests of somebody else are answered, and not one each time."""
    bomb = request_bytes("POST", V2, gzip.compress(bytes(65 << 20)), {"Content-Encoding": "gzip"})
    with Server(tmp_path, server_max_body_mb=64, server_max_inflight_mb=256, server_workers=1) as server:
        with server.client() as attacker, server.client() as other:
            attacker.send(bomb * 10)
            refused: list[int] = []
            receiving = threading.Thread(target=lambda: refused.extend(attacker.receive().status for _ in range(10)))
            receiving.start()
            answered = 0
            while receiving.is_alive():
                assert other.request("GET", "/ping").status == 204
                answered += 1
            assert refused == [413] * 10
            assert answered > 20  # decoded in the loop, it is hardly more than one for each
        server.stop()


def cpu_seconds(server: Server) -> float:
    """Processor time of the worker so far."""
    with open(f"/proc/{server.pids()['ingest 1']}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
