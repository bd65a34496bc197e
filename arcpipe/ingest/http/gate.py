"""Limits per token and per address over the whole node, in requests, bytes and connections.

The gate takes the place of `Auth`. It counts the use of each client in memory that all workers share
(`arcpipe/meters.py`). To keep that cheap, a worker takes an allowance of several requests, or some bytes, at a time.
The unused part of allowances may be used later. So a client may exceed its burst by an eighth of it at most, over all
workers together.

A client without a rest of its allowance is refused. With any rest, a body of any size passes, and leaves a debt that
time pays. Refusals cost nothing: a client that keeps asking still gets its rate.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from arcpipe.config.listeners import UNIX
from arcpipe.config.settings import ClientLimits
from arcpipe.counters import LIMITED_BY, LIMITS
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.auth import Auth
from arcpipe.meters import BYTES, NS, REQUESTS, Meters
from arcpipe.units import MB

if TYPE_CHECKING:
    from arcpipe.config.settings import Limits
    from arcpipe.ingest.http.client_address import ForwardedFor
    from arcpipe.ingest.http.exchange import Exchange, Peer

# All workers' unused allowances together are at most this part of a burst.
_HELD_SHARE: Final = 8
# The smallest allowance, as a part of the usual one.
_LEAST_SHARE: Final = 4
# Clients that a worker remembers; above that it forgets those without a connection.
_MAX_KNOWN: Final = 8192
# Nanoseconds between two looks for a meter's place, which it may have lost to another one in a race.
_LOOK_AGAIN_NS: Final = NS
# Meters whose place is looked for in one tick.
_CHECKED_PER_TICK: Final = 256
# Nanoseconds of the longest debt, however large the body and small the rate: times are numbers of 64 bits.
_MAX_DEBT_NS: Final = 365 * 86400 * NS
# Seconds in `Retry-After`, at most; a client that asks sooner is answered, too.
_MAX_RETRY_SECONDS: Final = 3600
_CONNECTION_RETRY_SECONDS: Final = 1


class Meter:
    """A client as one worker knows it: its limits, its allowance, and its place in the shared memory."""

    __slots__ = (
        *("by", "burst_ns", "bytes", "connections", "hashed", "limits", "look_again", "max_connections", "ns_each"),
        *("least", "own_paid_until", "quantum", "requests", "slot"),
    )

    def __init__(self, by: str, hashed: int, limits: ClientLimits, burst_seconds: float, workers: int) -> None:
        self.by = by
        self.hashed = hashed
        self.slot: int | None = None  # None: without a place, this worker alone limits it
        self.look_again = 0
        self.own_paid_until = [0, 0]  # replaces the shared one while there is no slot
        self.connections = 0  # of this worker
        self.set_limits(limits, burst_seconds, workers)

    def set_limits(self, limits: ClientLimits, burst_seconds: float, workers: int) -> None:
        """Set the limits that hold from now on."""
        self.limits = limits
        self.max_connections = limits.connections
        rates = (limits.requests_per_second, limits.mb_per_second * MB)
        self.ns_each = [NS / rate if rate else 0.0 for rate in rates]
        self.burst_ns = [max(burst_seconds * NS, each) for each in self.ns_each]
        self.quantum = [max(1, int(rate * burst_seconds / _HELD_SHARE / workers)) for rate in rates]
        # Without a minimum, workers would take one by one at a client's limit, and often at the same moment.
        self.least = [max(1, quantum // _LEAST_SHARE) for quantum in self.quantum]
        # The allowance; without a limit it never ends.
        self.requests = 0.0 if rates[REQUESTS] else math.inf
        self.bytes = 0.0 if rates[BYTES] else math.inf


class Gate:
    """Judges requests as `Auth` does, and by limits."""

    def __init__(
        self,
        auth: Auth | None,
        limits: Limits,
        meters: Meters,
        worker: int,
        workers: int,
        forwarded: ForwardedFor | None = None,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        """Begin without debts.

        Args:
            forwarded: the header in which trusted proxies name the client.
            clock: nanoseconds, the same for all workers.
        """
        self._forwarded = forwarded
        self._clock = clock
        self.limited = [0] * (len(LIMITED_BY) * len(LIMITS))  # requests, as in `Worker.LIMITED`
        self.untracked = 0  # failed looks for a place
        self._auth = auth
        self._limits = limits
        self._shared = meters
        self._worker = worker
        self._workers = workers
        self._limits_addresses = limits.per_address.any
        self._by_client: dict[str, Meter | None] = {}
        self._by_hash: dict[int, Meter] = {}  # of addresses
        self._by_token: dict[str, Meter | None] = {}
        self._held: dict[Peer, dict[Meter, None]] = {}  # the clients that are charged for a connection
        self._owing: dict[Peer, list[Meter]] = {}  # the clients that pay for the chunked body that is arriving
        self._to_check: Iterator[Meter] = iter(())

    @property
    def is_needed(self) -> bool:
        """Whether there is any limit."""
        return (
            self._limits_addresses
            or self._limits.per_token.any
            or (self._auth is not None and self._auth.has_own_limits())
        )

    def refusal(self, exchange: Exchange, scope: str) -> bytes | None:
        """Return the refusal of a request that lacks `scope` or exceeds a limit, or None after noting its databases."""
        connection = exchange.connection
        size = len(exchange.body) or connection.announced_bytes
        owing = size < 0
        if owing:
            size = 0
        by_address: Meter | None = None
        by_token: Meter | None = None
        if self._limits_addresses:
            by_address = self._meter_of_address(exchange.client)
            if by_address is not None:
                limited = self._take(by_address, size)
                if limited is not None:
                    return limited
        if self._auth is not None:
            granted = self._auth.grant(exchange, scope)
            if isinstance(granted, bytes):
                return granted
            exchange.databases = granted.databases
            exchange.token = granted.token_id
            by_token = self._meter_of_token(granted.token_id)
            if by_token is not None:
                limited = self._take(by_token, size)
                if limited is None and by_token.max_connections:
                    limited = self._count(connection, by_token)
                if limited is not None:
                    return limited
        if owing:
            self._owing[connection] = [meter for meter in (by_address, by_token) if meter is not None]
        return None

    def opened(self, connection: Peer) -> responses.Refusal | None:
        """Count a new connection; return a refusal if its client has too many."""
        address = connection.address
        if not self._limits.per_address.connections or (self._forwarded is not None and self._forwarded.is_of(address)):
            return None  # a proxy's connection belongs to many clients
        meter = self._meter_of_address(address)
        return self._count(connection, meter) if meter is not None else None

    def closed(self, connection: Peer) -> None:
        """Stop counting a connection, which has ended."""
        self._owing.pop(connection, None)
        for meter in self._held.pop(connection, ()):
            meter.connections -= 1
            if meter.slot is not None:
                self._shared.count_connection(self._worker, meter.slot, -1)

    def arrived(self, exchange: Exchange, size: int) -> None:
        """Charge for a parsed body, which is complete now, if its head did not tell its size.

        Args:
            size: bytes of the body as it was sent; 0 if it was refused.
        """
        if not self._owing:
            return
        for meter in self._owing.pop(exchange.connection, ()):
            meter.bytes -= size
            if meter.bytes < 0:
                now = self._clock()
                self._buy(meter, BYTES, self._slot_of(meter, now), now, -meter.bytes)
                meter.bytes = 0.0

    def tick(self) -> None:
        """Move the connections of clients that have lost their place. Call it a few times a second."""
        now = self._clock()
        batch = list(islice(self._to_check, _CHECKED_PER_TICK))
        for meter in batch:
            if meter.connections:
                self._slot_of(meter, now)
        if len(batch) < _CHECKED_PER_TICK:
            by_token = [meter for meter in self._by_token.values() if meter is not None]
            self._to_check = iter([*self._by_hash.values(), *by_token])

    def reload(self) -> None:
        """Take over the limits of tokens that were reloaded."""
        assert self._auth is not None
        for token_id, meter in list(self._by_token.items()):
            if meter is None or not meter.connections:
                del self._by_token[token_id]
            else:
                limits = self._auth.limits_of(token_id, self._limits.per_token)
                meter.set_limits(limits, self._limits.burst_seconds, self._workers)

    # Its client

    def _meter_of_address(self, client: str) -> Meter | None:
        try:
            return self._by_client[client]
        except KeyError:
            pass
        if len(self._by_client) >= _MAX_KNOWN:
            self._by_client.clear()
            self._by_hash = {hashed: meter for hashed, meter in self._by_hash.items() if meter.connections}
        meter = None
        if client != UNIX:  # clients of a Unix socket have no address
            hashed = self._shared.hash_of(_address_key(client, self._limits.ipv6_prefix))
            meter = self._by_hash.get(hashed)
            if meter is None:
                meter = self._by_hash[hashed] = self._new("address", hashed, self._limits.per_address)
        self._by_client[client] = meter
        return meter

    def _meter_of_token(self, token_id: str) -> Meter | None:
        try:
            return self._by_token[token_id]
        except KeyError:
            pass
        assert self._auth is not None
        limits = self._auth.limits_of(token_id, self._limits.per_token)
        hashed = self._shared.hash_of(b"token " + token_id.encode("utf-8", "replace"))
        meter = self._by_token[token_id] = self._new("token", hashed, limits) if limits.any else None
        return meter

    def _new(self, by: str, hashed: int, limits: ClientLimits) -> Meter:
        return Meter(by, hashed, limits, self._limits.burst_seconds, self._workers)

    # Its limits

    def _take(self, meter: Meter, size: int) -> responses.Refusal | None:
        """Take one request and its bytes from the allowance; return a refusal if that is used up."""
        meter.requests -= 1
        meter.bytes -= size
        if meter.requests >= 0 and meter.bytes >= 0:
            return None
        now = self._clock()
        slot = self._slot_of(meter, now)
        wait = 0.0
        limit = REQUESTS
        if meter.requests < 0:
            bought, wait = self._try_to_buy(meter, REQUESTS, slot, now, 1)
            meter.requests += bought
        if not wait and meter.bytes < 0:
            limit = BYTES
            bought, wait = self._try_to_buy(meter, BYTES, slot, now, -meter.bytes)
            meter.bytes += bought
        if not wait:
            return None
        meter.requests += 1
        meter.bytes += size
        return self._refuse(meter, limit, math.ceil(wait / NS))

    def _try_to_buy(self, meter: Meter, rate: int, slot: int | None, now: int, missing: float) -> tuple[float, float]:
        """Return a further allowance and 0, or 0 and the nanoseconds until the client has a rest again."""
        each, burst = meter.ns_each[rate], meter.burst_ns[rate]
        paid_until = meter.own_paid_until[rate] if slot is None else self._shared.paid_until[rate][slot]
        ahead = max(0, paid_until - now)
        least = each * meter.least[rate]
        if ahead + least > burst + 1:  # one nanosecond for rounding
            return 0.0, ahead + least - burst
        # More than is missing only from a rest: otherwise unused allowances would exceed the burst.
        units = max(missing, min(missing - 1 + meter.quantum[rate], (burst - ahead) // each))
        self._buy(meter, rate, slot, now, units)
        return units, 0.0

    def _buy(self, meter: Meter, rate: int, slot: int | None, now: int, units: float) -> None:
        price = int(units * meter.ns_each[rate])
        paid_until = meter.own_paid_until if slot is None else self._shared.paid_until[rate]
        at = rate if slot is None else slot
        # Read and written in one line, because payments of other workers in between are lost.
        paid_until[at] = min(max(paid_until[at], now) + price, now + _MAX_DEBT_NS)

    def _count(self, connection: Peer, meter: Meter) -> responses.Refusal | None:
        """Count a connection for a client, once; return a refusal if it has too many."""
        held = self._held.setdefault(connection, {})
        if meter in held:
            return None
        slot = self._slot_of(meter, self._clock())
        if (meter.connections if slot is None else self._shared.connections(slot)) >= meter.max_connections:
            return self._refuse(meter, LIMITS.index("connections"), _CONNECTION_RETRY_SECONDS)
        held[meter] = None
        meter.connections += 1
        if slot is not None:
            self._shared.count_connection(self._worker, slot, 1)
        return None

    def _slot_of(self, meter: Meter, now: int) -> int | None:
        """Return the present place of a client, and move its connections there."""
        before = meter.slot
        if before is not None and now < meter.look_again and self._shared.is_at(before, meter.hashed):
            return before
        slot = self._shared.place(meter.hashed, now)
        if slot is None:
            self.untracked += 1
        if slot != before and meter.connections:
            if before is not None:
                self._shared.count_connection(self._worker, before, -meter.connections)
            if slot is not None:
                self._shared.count_connection(self._worker, slot, meter.connections)
        meter.slot = slot
        meter.look_again = now + _LOOK_AGAIN_NS
        return slot

    def _refuse(self, meter: Meter, limit: int, seconds: int) -> responses.Refusal:
        self.limited[LIMITED_BY.index(meter.by) * len(LIMITS) + limit] += 1
        limits = meter.limits
        given = (limits.requests_per_second, limits.mb_per_second, limits.connections)[limit]
        return _refusal(meter.by, LIMITS[limit], given, min(max(1, seconds), _MAX_RETRY_SECONDS))


@lru_cache(1024)
def _refusal(by: str, limit: str, given: float, seconds: int) -> responses.Refusal:
    retry = b"Retry-After: %d\r\n" % seconds
    match limit:
        case "requests":
            reason = f"this {by} has more than {given:g} requests per second, over all workers; nothing was written"
        case "bytes":
            reason = f"this {by} has more than {given:g} MB of bodies per second, over all workers; nothing was written"
        case _:
            reason = f"this {by} has {given:g} open connections already, over all workers; nothing was written"
    return responses.error(429, "too_many_requests", reason, retry)


def _address_key(client: str, ipv6_prefix: int) -> bytes:
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return b"name " + client.encode("utf-8", "replace")
    if address.version == 4:
        return b"4 " + address.packed
    return b"6 %x" % (int(address) >> (128 - ipv6_prefix))
