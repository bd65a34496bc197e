"""Limits per token and per address, of several workers over one memory, by a clock that stands still between steps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.config.listeners import UNIX
from arcpipe.config.settings import ClientLimits, Limits
from arcpipe.counters import LIMITED_BY, LIMITS
from arcpipe.ingest.http.auth import Auth
from arcpipe.ingest.http.client_address import ForwardedFor, TrustedProxies
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.gate import Gate
from arcpipe.ingest.http.router import WRITE
from arcpipe.meters import NS, WAYS, Meters
from arcpipe.units import MB
from tests.support.edge import Edge
from tests.support.http import request_bytes
from tests.support.tokens import new_token

ADDRESS = "192.0.2.7"


class Connection:
    """All that a gate asks of one."""

    def __init__(self, address: str = ADDRESS, forwarded: ForwardedFor | None = None) -> None:
        self.unrouted: defaultdict[bytes, int] = defaultdict(int)
        self.address = address
        self.announced_bytes = 0
        self._forwarded = forwarded

    def client_of(self, headers: dict[bytes, bytes]) -> str:
        return self.address if self._forwarded is None else self._forwarded.client(self.address, headers)

    def peer_certificate(self) -> None:
        return None


class Node:
    """The gates of several workers over the same memory."""

    def __init__(
        self,
        limits: Limits,
        workers: int = 1,
        auth: Auth | None = None,
        slots: int = 1024,
        forwarded: ForwardedFor | None = None,
    ) -> None:
        self.now = 1000 * NS
        self.meters = Meters(workers, slots)
        self.gates = [
            Gate(auth, limits, self.meters, worker, workers, forwarded, clock=lambda: self.now)
            for worker in range(1, workers + 1)
        ]

    def ask(
        self, worker: int, connection: Any, body: bytes = b"", token: str = "", headers: dict[str, str] | None = None
    ) -> int:
        """0 if the request is taken, else the seconds of `Retry-After`, or the status of another refusal."""
        sent = {name.encode(): value.encode() for name, value in (headers or {}).items()}
        exchange = Exchange(connection, sent | ({b"authorization": f"Bearer {token}".encode()} if token else {}))
        exchange.body = body
        return answered(self.gates[worker].refusal(exchange, WRITE))

    def taken(self, tries: int, connection: Any, **given: Any) -> int:
        """Deal `tries` requests to the workers in turn; return the number taken."""
        return sum(self.ask(number % len(self.gates), connection, **given) == 0 for number in range(tries))

    def limited(self, by: str, limit: str) -> int:
        at = LIMITED_BY.index(by) * len(LIMITS) + LIMITS.index(limit)
        return sum(gate.limited[at] for gate in self.gates)


def answered(refusal: bytes | None) -> int:
    if refusal is None:
        return 0
    if not refusal.startswith(b"HTTP/1.1 429"):
        return int(refusal[9:12])
    seconds = int(refusal.partition(b"Retry-After: ")[2].partition(b"\r\n")[0])
    assert seconds >= 1
    return seconds


def per_address(burst_seconds: float = 1.0, **limits: float) -> Limits:
    return Limits(burst_seconds=burst_seconds, per_address=msgspec.convert(limits, ClientLimits))


# Rates


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_rate_is_of_all_workers_together(workers: int) -> None:
    node = Node(per_address(requests_per_second=80), workers)
    connection = Connection()
    first = node.taken(1000, connection)
    assert first == 80
    total = first
    for _ in range(10):
        node.now += NS
        total += node.taken(1000, connection)
    assert 80 * 11 - 10 <= total <= 80 * 11 + 10
    assert node.limited("address", "requests") == 11000 - total
    assert node.limited("address", "bytes") == 0


def test_after_the_time_that_an_answer_tells_the_next_request_is_taken() -> None:
    for rate in (0.01, 0.3, 1, 7, 1000):
        node = Node(per_address(requests_per_second=rate, burst_seconds=0.5), 2)
        connection = Connection()
        for worker in (0, 1, 0, 1, 1):
            while (seconds := node.ask(worker, connection)) == 0:
                pass
            assert seconds <= 1 / rate + 1
            node.now += seconds * NS
            assert node.ask(worker, connection) == 0


def test_a_refusal_costs_nothing() -> None:
    node = Node(per_address(requests_per_second=10), 2)
    connection = Connection()
    node.taken(10_000, connection)
    node.now += NS
    assert node.taken(10_000, connection) >= 9


def test_a_body_of_any_size_passes_if_there_is_a_rest_and_is_paid_for() -> None:
    node = Node(per_address(mb_per_second=1), 2)
    connection = Connection()
    body = bytes(10 * MB)
    assert node.ask(0, connection, body) == 0
    assert node.ask(0, connection, b"x") in (9, 10)
    assert node.ask(1, connection, b"x") in (9, 10)
    assert node.ask(1, connection) in (0, 9, 10)  # it may have nothing to pay
    node.now += 8 * NS
    assert node.ask(1, connection, b"x") in (1, 2)
    node.now += 2 * NS
    assert node.ask(1, connection, b"x") == 0


def test_bytes_over_time_are_as_the_limit_says() -> None:
    node = Node(per_address(mb_per_second=2), 3)
    connection = Connection()
    body = bytes(MB // 7)
    bytes_taken = node.taken(100, connection, body=body) * len(body)
    assert bytes_taken <= 2 * MB * 1.125 + len(body)
    for _ in range(20):
        node.now += NS // 2
        bytes_taken += node.taken(30, connection, body=body) * len(body)
    assert 0.9 * 22 * MB < bytes_taken < 1.05 * 22 * MB


def test_an_announced_body_counts_before_it_is_there() -> None:
    """A body that is announced counts before it is there and a chunked one when it is."""
    node = Node(per_address(mb_per_second=1), 2)
    announcing = Connection()
    announcing.announced_bytes = 5 * MB
    assert node.ask(0, announcing) == 0
    assert node.ask(1, Connection(), b"x") in (4, 5)

    chunking = Connection("192.0.2.8")
    chunking.announced_bytes = -1
    other = Connection("192.0.2.8")
    exchange = Exchange(chunking, {})  # type: ignore[arg-type]
    assert node.gates[0].refusal(exchange, WRITE) is None
    assert node.ask(1, other, b"x") == 0
    exchange.body = bytes(5 * MB)
    node.gates[0].arrived(exchange, len(exchange.body))
    assert node.ask(1, other, bytes(MB)) in (4, 5)  # more than the worker holds
    node.gates[0].closed(chunking)  # type: ignore[arg-type]
    assert node.gates[0]._owing == {}


def test_a_body_that_is_too_large_costs_no_tokens(tmp_path: Path) -> None:
    """A body that is too large to be taken costs nothing however large it says it is."""
    write = request_bytes("POST", "/write", b"m v=1")
    with Edge(tmp_path, max_body_mb=1) as edge:
        limits = Limits(per_address=ClientLimits(mb_per_second=1))
        edge.context.auth = edge.context.gate = Gate(None, limits, Meters(1, 1024), 1, 1)
        refused, peer = edge.connect(), edge.connect()
        refused.feed(request_bytes("POST", "/write", headers={"Content-Length": "9" * 19}))
        peer.feed(write)
        edge.settle()
        assert refused.statuses == [413]
        assert peer.statuses == [204]


def test_a_debt_has_an_end_however_small_the_rate() -> None:
    node = Node(per_address(mb_per_second=1e-9))
    assert node.ask(0, Connection(), bytes(200 * MB)) == 0
    assert node.ask(0, Connection(), b"x") == 3600


@given(
    rate=st.sampled_from([0.5, 1, 3, 10, 100, 12345.6]),
    burst=st.sampled_from([0.01, 0.5, 1, 10]),
    workers=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30), st.floats(0, 2)), min_size=1, max_size=60),
)
def test_nobody_gets_more_than_burst_and_rate_and_the_eighth(
    rate: float, burst: float, workers: int, steps: list[tuple[int, int, float]]
) -> None:
    node = Node(per_address(requests_per_second=rate, burst_seconds=burst), workers)
    connection = Connection()
    start, taken = node.now, 0
    for worker, tries, seconds in steps:
        taken += sum(node.ask(worker % workers, connection) == 0 for _ in range(tries))
        passed = (node.now - start) / NS
        allowed = max(1, rate * burst) + rate * passed
        assert taken <= allowed + 1e-3
        node.now += int(seconds * NS)


# Who is who


def test_addresses_have_limits_of_their_own_and_tokens_of_theirs() -> None:
    """Addresses do not disturb each other and a token counts wherever it comes from."""
    text, token = new_token()
    other_text, other = new_token()
    limits = Limits(per_token=ClientLimits(requests_per_second=5), per_address=ClientLimits(requests_per_second=20))
    node = Node(limits, 2, Auth([token, other]))
    assert node.taken(10, Connection("192.0.2.1"), token=text) == 5
    assert node.taken(10, Connection("192.0.2.2"), token=text) == 0
    assert node.taken(10, Connection("192.0.2.2"), token=other_text) == 5
    # 20 are used: those that the token's limit refused count for the address, too.
    assert node.ask(0, Connection("192.0.2.2"), token="unknown") == 1
    assert node.ask(0, Connection("192.0.2.3"), token="unknown") == 401
    assert node.limited("token", "requests") == 20


def test_guesses_of_tokens_are_limited_by_address() -> None:
    _, token = new_token()
    node = Node(per_address(requests_per_second=3), 1, Auth([token]))
    guesses = [node.ask(0, Connection(), token=f"guess{number}") for number in range(5)]
    assert guesses == [401, 401, 401, 1, 1]


def test_an_ipv6_network_is_one_client_and_an_ipv4_address_is_one() -> None:
    node = Node(per_address(requests_per_second=10))
    same = [Connection(f"2001:db8:0:1::{number:x}") for number in range(50)]
    assert sum(node.ask(0, connection) == 0 for connection in same) == 10
    assert node.ask(0, Connection("2001:db8:0:2::1")) == 0
    assert node.ask(0, Connection("fe80::1%eth0")) == 0
    assert sum(node.ask(0, Connection(f"192.0.2.{number}")) == 0 for number in range(50)) == 50


def test_clients_without_an_address_are_not_limited_by_it() -> None:
    node = Node(per_address(requests_per_second=1, connections=1))
    assert node.taken(50, Connection(UNIX)) == 50
    assert [node.gates[0].opened(Connection(UNIX)) for _ in range(5)] == [None] * 5  # type: ignore[arg-type]


def test_a_trusted_proxy_is_not_limited_and_those_behind_it_are_one_by_one() -> None:
    forwarded = ForwardedFor(TrustedProxies(["10.0.0.0/8"]), "X-Forwarded-For")
    node = Node(per_address(requests_per_second=3, connections=2), forwarded=forwarded)
    gate = node.gates[0]
    proxy = Connection("10.0.0.1", forwarded)
    assert [gate.opened(cast(Any, Connection("10.0.0.1"))) for _ in range(5)] == [None] * 5
    for number in range(20):
        headers = {"x-forwarded-for": f"192.0.2.{number}"}
        assert [node.ask(0, proxy, headers=headers) for _ in range(4)] == [0, 0, 0, 1]


def test_a_token_s_own_limits_count_instead_of_the_common_ones() -> None:
    generous, more = new_token(requests_per_second=0)
    strict, less = new_token(requests_per_second=2.0)
    usual, common = new_token(mb_per_second=1.0)
    node = Node(Limits(per_token=ClientLimits(requests_per_second=5)), 2, Auth([more, less, common]))
    assert node.taken(100, Connection(), token=generous) == 100
    assert node.taken(100, Connection(), token=strict) == 2
    assert node.taken(100, Connection(), token=usual) == 5


def test_a_reload_changes_the_limits_of_tokens() -> None:
    text, token = new_token(requests_per_second=2.0)
    auth = Auth([token])
    node = Node(Limits(), 1, auth)
    assert node.gates[0].is_needed
    connection = Connection()
    assert node.taken(10, connection, token=text) == 2
    auth.replace([msgspec.structs.replace(token, requests_per_second=None)])
    node.gates[0].reload()
    assert not node.gates[0].is_needed
    assert node.taken(10, connection, token=text) == 10
    auth.replace([msgspec.structs.replace(token, requests_per_second=None, connections=1)])
    node.gates[0].reload()
    assert node.taken(10, connection, token=text) == 10
    assert node.taken(10, Connection(), token=text) == 0
    auth.replace([msgspec.structs.replace(token, requests_per_second=None, connections=2)])
    node.gates[0].reload()
    assert node.taken(10, Connection(), token=text) == 10


# Connections


def test_connections_of_an_address_count_over_all_workers() -> None:
    """Connections of an address are counted over all workers to their end."""
    node = Node(per_address(connections=3), 2)
    opened = [Connection() for _ in range(5)]
    outcomes = [answered(node.gates[number % 2].opened(one)) for number, one in enumerate(opened)]  # type: ignore[arg-type]
    assert outcomes == [0, 0, 0, 1, 1]
    for number, one in enumerate(opened):
        node.gates[number % 2].closed(one)  # type: ignore[arg-type]
    assert answered(node.gates[0].opened(Connection())) == 0  # type: ignore[arg-type]
    assert node.limited("address", "connections") == 2
    assert len(node.gates[0]._held) == 1
    assert node.gates[1]._held == {}


def test_a_token_counts_each_of_its_connections_once() -> None:
    """A token counts each connection once, and several tokens may share one."""
    text, token = new_token(connections=2)
    other_text, other = new_token(connections=1)
    node = Node(Limits(), 2, Auth([token, other]))
    one, two, three = Connection(), Connection(), Connection()
    assert [node.ask(0, one, token=text) for _ in range(5)] == [0] * 5
    assert node.ask(1, two, token=text) == 0
    assert node.ask(0, three, token=text) == 1
    assert node.ask(0, one, token=other_text) == 0
    assert node.ask(1, two, token=other_text) == 1
    node.gates[0].closed(one)  # type: ignore[arg-type]
    assert node.ask(0, three, token=text) == 0
    assert node.ask(1, two, token=other_text) == 0
    for gate in node.gates:
        for connection in (two, three):
            gate.closed(connection)  # type: ignore[arg-type]
    assert sum(node.meters.connections(slot) for slot in range(1024)) == 0


def test_connections_of_a_killed_worker_are_free_again() -> None:
    node = Node(per_address(connections=2), 2)
    for _ in range(2):
        assert node.gates[0].opened(Connection()) is None  # type: ignore[arg-type]
    assert answered(node.gates[1].opened(Connection())) == 1  # type: ignore[arg-type]
    node.meters.forget(1)
    assert node.gates[1].opened(Connection()) is None  # type: ignore[arg-type]


def test_a_client_that_lost_its_place_takes_its_connections_along() -> None:
    """Two workers took the same place at the same moment, for two clients: the second one's hash stands there."""
    node = Node(per_address(connections=2), 2)
    gate = node.gates[0]
    assert gate.opened(Connection()) is None  # type: ignore[arg-type]
    meter = gate._by_client[ADDRESS]
    assert meter is not None
    assert meter.slot is not None
    node.meters._hashes[meter.slot] = 12345
    for _ in range(2):
        gate.tick()
    assert meter.slot is not None
    assert node.meters.is_at(meter.slot, meter.hashed)
    assert node.meters.connections(meter.slot) == 1
    assert sum(node.meters.connections(slot) for slot in range(1024)) == 1


# Bounds


def test_more_clients_than_there_are_places_are_limited_by_each_worker() -> None:
    node = Node(per_address(requests_per_second=5, burst_seconds=10), 2, slots=WAYS)
    for number in range(100):
        assert node.taken(60, Connection(f"192.0.2.{number}")) >= 50 - 1
    overflowing = Connection("192.0.2.99")
    assert node.taken(1000, overflowing) == 40  # of 50 from each worker
    assert sum(gate.untracked for gate in node.gates) >= 84


@pytest.mark.slow
def test_clients_that_come_once_do_not_fill_the_memory() -> None:
    node = Node(per_address(requests_per_second=5, connections=5))
    gate = node.gates[0]
    kept = Connection("198.51.100.1")
    assert gate.opened(kept) is None  # type: ignore[arg-type]
    for number in range(30_000):
        node.now += NS
        connection = Connection(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        assert gate.opened(connection) is None  # type: ignore[arg-type]
        assert node.ask(0, connection) == 0
        gate.closed(connection)  # type: ignore[arg-type]
    assert len(gate._by_client) <= 8192
    assert len(gate._by_hash) <= 8193
    assert [*map(id, gate._held)] == [id(kept)]
    gate.closed(kept)  # type: ignore[arg-type]
    assert sum(node.meters.connections(slot) for slot in range(1024)) == 0
