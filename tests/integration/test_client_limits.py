"""Limits per token and per address on a real server of several workers: 429, `Retry-After`, and who is undisturbed."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.support.http import Client, Response, pack, request_bytes
from tests.support.server import Server
from tests.support.tokens import arcpipe, bearer, create
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
BODY = pack({"m": "m", "columns": {"n": [1]}})
MB = 1 << 20
OTHER_ADDRESS = "127.0.0.2"  # all of 127.0.0.0/8 is this machine
_addresses = (str(IPv4Address("127.1.0.1") + number) for number in itertools.count())


def client_from(server: Server, address: str) -> Client:
    """A client whose address is another one."""
    client = Client.__new__(Client)
    client.socket = socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=(address, 0))
    client._received = b""
    return client


def limited(server: Server, by: str, limit: str, token: str = "") -> float:
    """How often the server has refused for that limit, as a client that never asked before is told."""
    with client_from(server, next(_addresses)) as client:
        text = client.request("GET", "/metrics", headers=bearer(token) if token else {}).body.decode()
    for line in text.splitlines():
        if line.startswith(f'arcpipe_limited_requests_total{{by="{by}",limit="{limit}"}}'):
            return float(line.split()[-1])
    raise AssertionError(f"{by}, {limit} is not counted")


def retry_after(response: Response) -> int:
    assert response.status == 429
    assert response.json()["code"] in ("too_many_requests", "too many requests")
    return int(response.headers["retry-after"])


def taken_one_by_one(clients: list[Client], headers: dict[str, str]) -> int:
    """Send one request from each client, each after the answer to the one before; return how many were accepted."""
    return [client.request("POST", V2, BODY, headers).status for client in clients].count(202)


def taken_in(clients: list[Client], tries: int, headers: dict[str, str] | None = None) -> tuple[int, float]:
    """Count the requests of `tries` that are taken over all connections at once, and measure the seconds."""
    start = time.monotonic()
    each = tries // len(clients)
    for client in clients:
        client.send(request_bytes("POST", V2, BODY, headers) * each)
    statuses = [client.receive().status for client in clients for _ in range(each)]
    assert len(statuses) == tries
    assert set(statuses) <= {202, 429}
    return statuses.count(202), time.monotonic() - start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("limits"),
        server_workers=3,
        # A burst of 40 requests and 4 MB, and so little a second that a slow machine does not get it back meanwhile.
        limits_per_address_requests_per_second=1,
        limits_per_address_mb_per_second=0.1,
        limits_burst_seconds=40,
    ) as server:
        yield server
        server.stop()


# Addresses


def test_an_address_has_its_rate_over_all_workers(server: Server) -> None:
    """An address has its rate over all workers and another one is undisturbed."""

    def is_kept(address: str) -> bool:
        with ExitStack() as stack:
            clients = [stack.enter_context(client_from(server, address)) for _ in range(12)]  # at all workers, likely
            taken, seconds = taken_in(clients, 300)
        assert taken >= 40 - 3
        return taken <= 40 + seconds + 5 + 3  # an eighth of the burst is the workers' own

    # A worker that is interrupted in the middle of counting loses what others count meanwhile.
    assert any(is_kept(next(_addresses)) for _ in range(3))
    with client_from(server, OTHER_ADDRESS) as other:
        assert [other.request("POST", V2, BODY).status for _ in range(10)] == [202] * 10
    wait_until(lambda: limited(server, "address", "requests") >= 1, "the refusals to be counted")


def test_who_waits_as_long_as_it_is_told_is_taken(server: Server) -> None:
    with client_from(server, "127.0.0.3") as client:
        for _ in range(3):
            while (response := client.request("POST", V2, BODY)).status == 202:
                pass
            time.sleep(retry_after(response))
            assert client.request("POST", V2, BODY).status == 202


def test_a_body_is_refused_by_its_head_before_it_is_there(server: Server) -> None:
    big = pack({"m": "m", "columns": {"s": ["x" * 1000] * 9000}})  # 5 MB more than the burst, at 0.1 MB/s
    head = f"POST {V2} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(big)}\r\n\r\n".encode()
    with client_from(server, "127.0.0.4") as client, client_from(server, "127.0.0.4") as second:
        client.send(head)
        assert client.receive().status == 100
        client.send(big)
        assert client.receive().status == 202
        second.send(head)
        response = second.receive()
        assert 1 <= retry_after(response) <= 52
        assert "MB of bodies per second" in response.reason
        second.assert_closed()


def test_a_chunked_body_is_paid_for_when_it_is_there(server: Server) -> None:
    big = pack({"m": "m", "columns": {"s": ["x" * 1000] * 9000}})
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(big), big)
    with client_from(server, "127.0.0.5") as client:
        client.send(f"POST {V2} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunked)
        assert client.receive().status == 202
        assert 1 <= retry_after(client.request("POST", V2, BODY)) <= 52


def test_what_probes_ask_is_never_limited(server: Server) -> None:
    with client_from(server, "127.0.0.6") as client:
        while client.request("POST", V2, BODY).status == 202:
            pass
        for path, status in (("/ping", 204), ("/health", 200), ("/ready", 200), ("/", 200)):
            assert [client.request("GET", path).status for _ in range(30)] == [status] * 30


def test_a_refusal_has_the_shape_of_its_path(server: Server) -> None:
    """A refusal has the shape of its path and leaves the connection open."""
    with client_from(server, "127.0.0.7") as client:
        client.send(request_bytes("POST", "/api/v2/write?bucket=b", b"m n=1") * 60)
        responses = [client.receive() for _ in range(60)]
        refused = [response for response in responses if response.status == 429]
        assert 5 <= len(refused) <= 20
        answer = refused[0].json()
        assert answer["code"] == "too many requests"
        assert answer["message"] == answer["error"]
        assert retry_after(refused[0]) == 1
        assert "connection" not in refused[0].headers


# Connections


def test_connections_of_an_address_are_counted_over_all_workers(
    tmp_path: Path,
) -> None:
    """Connections of an address are counted over all workers and those of a killed one no more."""
    with Server(tmp_path, server_workers=2, limits_per_address_connections=6) as server, ExitStack() as stack:

        def opened() -> Client | None:
            """A connection that is served, or None: it was refused."""
            client = server.client()
            response = client.request("GET", "/ping")
            if response.status == 204:
                return client
            assert retry_after(response) == 1
            assert response.headers["connection"] == "close"
            assert (
                response.reason == "this address has 6 open connections already, over all workers; nothing was written"
            )
            client.assert_closed()
            client.socket.close()
            return None

        held = [client for _ in range(6) if (client := opened()) is not None]
        for client in held:
            stack.enter_context(client)
        assert len(held) == 6
        assert [opened() for _ in range(8)] == [None] * 8
        with client_from(server, OTHER_ADDRESS) as other:
            assert other.request("GET", "/ping").status == 204
        held.pop().socket.close()

        def opened_one() -> Client | None:
            try:
                return opened()
            except OSError:  # of a worker that was killed
                return None

        held.append(stack.enter_context(wait_until(opened_one, "the place of the closed one")))
        dead = server.kill("ingest 1")
        server.wait_for_successor("ingest 1", dead)
        alive = []
        for client in held:
            try:
                if client.request("GET", "/ping").status == 204:
                    alive.append(client)
            except OSError:
                pass
        while len(alive) < 6:
            alive.append(stack.enter_context(wait_until(opened_one, "the place of a killed one")))
        assert opened_one() is None
        assert [client.request("GET", "/ping").status for client in alive] == [204] * 6
        # A killed worker takes the latest of its count along.
        wait_until(lambda: limited(server, "address", "connections") >= 1, "the refusals to be counted")
        server.stop()


# Tokens


def test_a_token_has_its_limits_and_another_token_is_undisturbed(tmp_path: Path) -> None:
    *common, other = (create(tmp_path, "--scope", "write") for _ in range(4))
    free = create(tmp_path, "--scope", "write,read", "--requests-per-second", "0")
    slow = create(tmp_path, "--scope", "write", "--requests-per-second", "0.5", "--connections", "2")
    with (
        Server(tmp_path, server_workers=2, auth_enabled=True, limits_per_token_requests_per_second=20) as server,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(server.client()) for _ in range(8)]
        for token in common:  # of one of them, counts may get lost, as above
            taken, seconds = taken_in(clients, 160, bearer(token))
            assert taken >= 20 - 2
            if is_kept := taken <= 20 + 20 * seconds + 3:
                break
        assert is_kept
        assert taken_in(clients, 16, bearer(other))[0] == 16
        assert taken_in(clients, 160, bearer(free))[0] == 160
        statuses = [client.request("POST", V2, BODY, bearer(slow)) for client in clients]
        assert statuses[0].status == 202
        assert {response.status for response in statuses[1:]} <= {202, 429}
        assert 1 <= retry_after(statuses[-1]) <= 2
        wait_until(lambda: limited(server, "token", "requests", free) >= 160 - taken, "the refusals to be counted")
        listed = arcpipe(tmp_path, "token", "list").stdout
        assert "0.5 requests/s,2 connections" in listed
        server.stop()


def test_limits_of_a_token_follow_a_reload(tmp_path: Path) -> None:
    token = create(tmp_path, "--scope", "write")
    path = tmp_path / "tokens.toml"
    before = path.read_text()
    with Server(tmp_path, server_workers=2, auth_enabled=True) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(6)]
        assert taken_in(clients, 60, bearer(token))[0] == 60
        path.write_text(before.replace("created", "requests_per_second = 0.01\ncreated"))
        server.reload()
        # One after the other: workers have no lock, and what two of them count at the same instant may count once.
        assert taken_one_by_one(clients, bearer(token)) == 1
        assert taken_in(clients, 60, bearer(token))[0] == 0
        path.write_text(before.replace("created", "connections = 3\ncreated"))
        server.reload()
        assert taken_one_by_one(clients, bearer(token)) == 3
        assert taken_in(clients, 60, bearer(token))[0] == 30  # of three of six connections
        path.write_text(before)
        server.reload()
        assert taken_in(clients, 60, bearer(token))[0] == 60
        server.stop()


def test_a_token_s_limit_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    create(tmp_path, "--scope", "write")
    path = tmp_path / "tokens.toml"
    good = path.read_text()
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server:
        for bad in ("requests_per_second = -1", "mb_per_second = 'x'", "connections = 1.5"):
            path.write_text(good.replace("created", f"{bad}\ncreated"))
            server.reload()
            assert "the tokens file is refused, and the former tokens stay in force" in server.log
        server.stop()
