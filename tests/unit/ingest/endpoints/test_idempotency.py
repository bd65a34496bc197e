"""Idempotency keys: which of them a worker remembers, and how they are in its entries; in Python and by the kernel."""

from __future__ import annotations

import errno
import functools
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from arcpipe.codec.envelope import KIND_COLUMNAR, decode_envelope
from arcpipe.ingest.endpoints.idempotency import AnyRecentKeys, Claim, RecentKeys, recent_keys
from arcpipe.wal import WALReader, WALWriter
from arcpipe.wal.format import (
    KeyedPrefix,
    Prefix,
    crc32,
    identity_of,
    with_identity,
)
from tests.support.edge import Edge, Peer
from tests.support.http import pack, request_bytes
from tests.support.kernel import can_be_built, kernel_of_checkout
from tests.support.wal_doubles import FaultyDisk

Make: TypeAlias = Callable[..., AnyRecentKeys]
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})
OWNER, ONE = b"db\xff\xff", b"one"


@pytest.fixture(params=["python", "kernel"])
def make(request: pytest.FixtureRequest) -> Make:
    """Make recent keys in Python, or by the native kernel."""
    by_kernel = None if request.param == "python" else kernel_of_checkout().RecentKeys
    return functools.partial(recent_keys, kernel=by_kernel)


# Recent keys


def write(recent: AnyRecentKeys, key: bytes, body: bytes, now: float) -> Claim | None:
    """Do as a worker does whose groups have one entry each, and are on disk at once."""
    claim = recent.claim(OWNER, key, body, now)
    if claim is None:
        return recent.earlier(OWNER, key)
    recent.settle(claim)
    return None


def knows(recent: AnyRecentKeys, key: bytes, now: float) -> bool:
    """Tell whether a key is known; if not, its claim is forgotten again."""
    claim = recent.claim(OWNER, key, b"?", now)
    if claim is not None:
        recent.forget([claim])
    return claim is None


def test_a_key_is_known_until_half_of_the_window_at_least_and_never_after_it(make: Make) -> None:
    recent = make(100.0)
    write(recent, ONE, b"abc", 1000.0)
    assert [knows(recent, ONE, 1000.0 + age) for age in (0.0, 49.0, 99.0, 101.0)] == [True, True, True, False]


def test_a_key_is_forgotten_while_nobody_writes(make: Make) -> None:
    recent = make(100.0)
    write(recent, ONE, b"abc", 1000.0)
    assert not knows(recent, ONE, 1300.0)


@pytest.mark.parametrize("in_a_group", [1, 7, 500])
def test_the_newest_keys_are_known_within_the_limit(make: Make, in_a_group: int) -> None:
    recent = make(100.0, limit=10)
    keys = [b"%d" % number for number in range(1000)]
    for number, key in enumerate(keys, 1):
        assert recent.claim(OWNER, key, b"abc", 1000.0) == number
        if isinstance(recent, RecentKeys):
            assert len(recent._young) + len(recent._old) <= 10
        if number % in_a_group == 0:
            recent.settle(recent.claimed)
    recent.settle(recent.claimed)
    if isinstance(recent, RecentKeys):
        kept = [*recent._old, *recent._young]
        assert kept == [OWNER + key for key in keys[-len(kept) :]]
    known = [*itertools.takewhile(lambda key: knows(recent, key, 1000.0), keys[::-1])][::-1]
    assert known == keys[-len(known) :]
    assert 5 <= len(known) <= 10
    assert all(recent.claim(OWNER, key, b"abc", 1000.0) is None for key in known[-5:])


def test_the_first_body_of_a_key_stays(make: Make) -> None:
    recent = make(100.0)
    write(recent, ONE, b"abc", 1000.0)
    for body in (b"abcd", b"abc"):
        assert write(recent, ONE, body, 1001.0) == (1, 3, crc32(b"abc"))


def test_a_key_is_not_known_before_its_group_is_on_disk(make: Make) -> None:
    recent = make(100.0)
    for number in (1, 2, 3):
        assert recent.claim(OWNER, ONE, b"abc", 1000.0) == number
        assert recent.claimed == number
    assert recent.claimed != recent.settled
    assert recent.settle(2) == 2
    assert recent.claim(OWNER, ONE, b"abc", 1000.0) is None
    assert recent.earlier(OWNER, ONE) == (1, 3, crc32(b"abc"))
    assert recent.claimed != recent.settled
    assert recent.settle(3) == 1
    assert recent.claimed == recent.settled


def test_a_key_whose_group_was_refused_is_not_known(make: Make) -> None:
    recent = make(100.0)
    recent.claim(OWNER, ONE, b"abc", 1000.0)
    recent.forget([1])
    assert recent.claimed == recent.settled
    assert write(recent, b"two", b"abc", 1000.0) is None
    assert [knows(recent, key, 1000.0) for key in (ONE, b"two")] == [False, True]


@pytest.mark.parametrize("first_is_written", [True, False])
def test_of_two_requests_at_once_only_the_first_makes_its_key_known(make: Make, first_is_written: bool) -> None:
    """They are in two groups, one of which is refused."""
    recent = make(100.0)
    assert [recent.claim(OWNER, ONE, body, 1000.0) for body in (b"abc", b"again")] == [1, 2]
    if first_is_written:
        recent.settle(1)
        recent.forget([2])
    else:
        recent.forget([1])
        recent.settle(2)
    assert recent.claimed == recent.settled == 2
    assert recent.claim(OWNER, ONE, b"abc", 1000.0) == (None if first_is_written else 3)
    if first_is_written:
        assert recent.earlier(OWNER, ONE) == (1, 3, crc32(b"abc"))


def test_a_claim_counts_across_generations(make: Make) -> None:
    """The key of a request that waits for the disk while generations turn."""
    recent = make(100.0, limit=6)
    for number, key in enumerate((ONE, b"two", b"three", b"four"), 1):
        assert recent.claim(OWNER, key, b"abc", 1000.0) == number
    if isinstance(recent, RecentKeys):
        assert OWNER + ONE in recent._old
    assert recent.claim(OWNER, ONE, b"again", 1000.0) == 5
    assert recent.settle(2) == 2
    assert recent.claim(OWNER, b"two", b"again", 1000.0) is None
    assert recent.earlier(OWNER, b"two") == (2, 3, crc32(b"abc"))
    assert recent.settle(5) == 3
    assert recent.claimed == recent.settled


def test_a_worker_without_a_window_knows_nothing(make: Make) -> None:
    recent = make(0.0)
    write(recent, ONE, b"abc", 1000.0)
    assert not knows(recent, ONE, 1000.0)


class KnownKeys(RuleBasedStateMachine):
    """A worker's requests in groups, each of which is on disk, or refused, after all before it."""

    kernel: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.recent = recent_keys(100.0, 6, self.kernel)
        self.now = 1000.0
        self.waiting: list[int] = []
        self.written: set[int] = set()  # numbers of claims
        self.came: dict[int, tuple[bytes, float]] = {}
        self.counted = 0

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d", b"e"]))
    def request(self, key: bytes) -> None:
        claim = self.recent.claim(OWNER, key, b"body", self.now)
        if claim is not None:
            assert claim == self.recent.claimed
            self.came[claim] = key, self.now
            self.waiting.append(claim)
            return
        number = self.recent.earlier(OWNER, key)[0]
        assert number in self.written
        claimed, came = self.came[number]
        assert claimed == key
        assert self.now - came < 100.0

    @rule(count=st.integers(1, 5), is_written=st.booleans())
    def end(self, count: int, is_written: bool) -> None:
        group, self.waiting = self.waiting[:count], self.waiting[count:]
        if not group:
            return
        if is_written:
            self.counted += self.recent.settle(group[-1])
            self.written.update(group)
        else:
            self.recent.forget(group)
        assert self.counted == len(self.written)
        assert (self.recent.claimed != self.recent.settled) == bool(self.waiting)

    @rule(seconds=st.sampled_from([1.0, 30.0, 51.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds


TestKnownKeys = KnownKeys.TestCase
TestKnownKeys.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)

if can_be_built():

    class KnownByKernel(KnownKeys):
        kernel = kernel_of_checkout().RecentKeys

    TestKnownByKernel = KnownByKernel.TestCase
    TestKnownByKernel.settings = TestKnownKeys.settings


@pytest.mark.parametrize(("limit", "keys", "seed"), [(7, 9, 1), (400, 300, 2), (3000, 4000, 3), (2, 5, 4)])
def test_the_kernel_knows_the_keys_that_python_knows(limit: int, keys: int, seed: int) -> None:
    """Claims, replays, forgotten groups, turns of generations, and bodies of all kinds, in any order."""
    choose = random.Random(seed)
    both = recent_keys(100.0, limit, None), recent_keys(100.0, limit, kernel_of_checkout().RecentKeys)
    now, waiting, outcomes = 1000.0, list[int](), set()
    for _ in range(6000):
        # With other lengths of the owner, the same bytes are another key.
        identity = (
            b"db\xff%b\xff" % (b"k" * choose.randrange(3)),
            b"k" * choose.randrange(3) + b"%d" % choose.randrange(keys),
        )
        body: Any = choose.randbytes(choose.choice([0, 1, 7, 8, 60, 511, 512, 513, 2000]))
        front = choose.choice([b"", b"", b"", choose.randbytes(9)])
        if choose.random() < 0.1:
            body = memoryview(body)
        arguments: tuple[Any, ...] = (*identity, body, now, front)[: 5 if front or choose.random() < 0.5 else 4]
        first, again = (each.claim(*arguments) for each in both)
        assert first == again
        outcomes.add(first is None)
        if first is not None:
            waiting.append(first)
        else:
            assert both[0].earlier(*identity) == both[1].earlier(*identity)
        while waiting and choose.random() < 0.2:
            count = choose.randrange(1, len(waiting) + 1)
            group, waiting = waiting[:count], waiting[count:]
            if choose.random() < 0.7:
                assert both[0].settle(group[-1]) == both[1].settle(group[-1])
            else:
                for each in both:
                    each.forget(group)
        assert (both[0].claimed, both[0].settled) == (both[1].claimed, both[1].settled)
        now += choose.choice([0.0] * 50 + [1.0, 20.0, 60.0])
    assert outcomes == {False, True}


def test_the_kernel_refuses_what_is_no_claim() -> None:
    recent = recent_keys(100.0, 10, kernel_of_checkout().RecentKeys)
    bad: list[tuple[Any, ...]] = [(), (ONE,), (ONE, b""), ("one", b"", 1.0), (ONE, "body", 1.0), (ONE, b"", "now")]
    bad += [(ONE, b"", 1.0, "front"), (ONE, b"", 1.0, b"", 1), (ONE, None, 1.0)]
    for arguments in bad:
        for owner in (OWNER, "owner", None):
            with pytest.raises((TypeError, BufferError)):
                recent.claim(owner, *arguments)  # type: ignore[arg-type]
    for arguments in ((), (OWNER,), (OWNER, "one"), ("owner", ONE), (OWNER, ONE, 1)):
        with pytest.raises(TypeError):
            recent.earlier(*arguments)
    with pytest.raises(KeyError):
        recent.earlier(OWNER, ONE)
    for numbers, error in (
        (1, TypeError),
        ((1,), TypeError),
        ([0], ValueError),
        ([1], ValueError),
        (["1"], ValueError),
    ):
        with pytest.raises(error, match=r"takes a list of numbers|no claim has this number"):
            recent.forget(numbers)  # type: ignore[arg-type]
    for number in (-1, 1, 1 << 70):
        with pytest.raises(ValueError, match="no claim has this number"):
            recent.settle(number)
    with pytest.raises(ValueError, match="above 2"):
        recent_keys(100.0, 1 << 40, kernel_of_checkout().RecentKeys)
    assert (recent.claimed, recent.settled) == (0, 0)
    assert write(recent, ONE, b"abc", 1.0) is None


# Requests that were not written


def keyed(key: str) -> bytes:
    return request_bytes("POST", "/write/v2/msgpack", BODY, {"Idempotency-Key": key})


def replayed(peer: Peer) -> list[bool]:
    return [b"Idempotency-Replayed" in answer for answer in bytes(peer.transport.written).split(b"HTTP/1.1 ")[1:]]


def test_a_retry_of_a_request_that_a_full_disk_refused_is_written() -> None:
    disk = FaultyDisk()
    with Edge(None, disk) as edge:
        peer = edge.connect()
        with disk.failing("write", error=errno.ENOSPC):
            peer.feed(keyed("one"))
            edge.settle()
        peer.feed(keyed("one") + keyed("two"))
        edge.settle()
        peer.feed(keyed("one"))
        edge.settle()
        assert peer.statuses == [507, 202, 202, 202]
        assert replayed(peer) == [False, False, False, True]
        assert (edge.writes.keyed, edge.writes.replayed) == (2, 1)


def test_a_retry_of_a_request_that_met_a_bug_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its claim must not count as written once later ones are."""
    with Edge() as edge:
        peer = edge.connect()
        with monkeypatch.context() as patch:
            patch.setattr(edge.writes._commit, "append", lambda *_: 1 / 0)
            peer.feed(keyed("one"))
            edge.settle()
        for key in ("two", "one", "one"):
            peer.feed(keyed(key))
            edge.settle()
        assert peer.statuses == [500, 202, 202, 202]
        assert replayed(peer) == [False, False, False, True]
        assert edge.writes.keyed == 2


# In the entry


TOKENS = st.none() | st.text("abcdefgh234567", min_size=8, max_size=8)


@given(key=VISIBLE, token=TOKENS, part=st.integers(0, 70_000), has_more=st.booleans())
def test_the_key_is_in_the_meta_of_the_entry(key: str, token: str | None, part: int, has_more: bool) -> None:
    plain = Prefix(KIND_COLUMNAR, "db", {"precision": "ms", "clock": -7} if has_more else {})
    prefix = KeyedPrefix(plain, token, len(key), part)
    assert (prefix.token, prefix.key_bytes) == (token, len(key))
    assert prefix.owner == b"db\xff%b\xff" % (token or "").encode()
    for identity in (b"0123456789abcdef", b"fedcba9876543210"):
        prefix.bind(identity)
        assert (prefix.identity, prefix.crc) == (identity, crc32(prefix.data))
        payload = prefix.data + key.encode() + b"\x82\xa1m\xa3cpu\xa7columns\x81\xa1n\x91\x01"
        envelope = decode_envelope(payload)
        meta = envelope.meta
        assert (envelope.database, envelope.body.m) == ("db", "cpu")  # type: ignore[union-attr]
        assert (meta.key, meta.by, meta.part) == (key, token or "", part)
        assert (meta.precision, meta.clock) == (("ms", -7) if has_more else (None, 0))
        assert identity_of(payload) == identity
        moved = with_identity(payload, b"x" * 16)
        assert moved is not None
        assert decode_envelope(moved).meta.key == key


def test_a_reader_of_the_wal_shows_the_key(tmp_path: Path) -> None:
    writer = WALWriter(str(tmp_path), 1)
    group = writer.new_group()
    prefix = KeyedPrefix(Prefix(KIND_COLUMNAR, "db", {}), "tokenid1", 3)
    group.add(prefix, b"\x82\xa1m\xa3cpu\xa7columns\x81\xa1n\x91\x01", 1, writer.next_timestamp(), b"one")
    writer.commit(group)
    writer.append([{"measurement": "cpu", "n": 2, "_idempotency_key": "of another file"}], "db")
    writer.close()
    [sealed] = tmp_path.glob("*.sealed")
    keyed, plain = (records[0] for records in WALReader(sealed).read_all())
    assert (keyed["n"], keyed["_idempotency_key"]) == (1, "one")
    assert (plain["n"], "_idempotency_key" in plain) == (2, False)


@given(
    st.booleans(),
    st.lists(st.sampled_from([1, 31, 32, 128]) | st.sampled_from([b"f" * 16, b"g" * 16, b"h" * 16]), max_size=12),
)
def test_prefixes_of_one_plain_prefix_are_of_the_segment_that_is_known(
    is_shared: bool, steps: list[int | bytes]
) -> None:
    """Keys of any length, and segments, in any order."""
    plain = Prefix(KIND_COLUMNAR, "db", {})
    prefixes: dict[int, KeyedPrefix] = {}
    identity = b""
    for step in steps:
        if isinstance(step, bytes):
            identity = step
            if is_shared:
                plain.bind(identity)
            continue
        prefix = prefixes.setdefault(step, KeyedPrefix(plain, "tokenid1", step))
        if prefix.identity is not identity:
            prefix.bind(identity)
        assert identity_of(prefix.data + b"k" * step + b"\xc0") == identity
        assert prefix.crc == crc32(prefix.data)


def test_each_entry_of_a_worker_has_its_own_key(tmp_path: Path) -> None:
    """Keys of lengths that change from one request to the next, and requests without one, in large groups."""
    keys = [f"{number:0{size}}" if size else "" for number, size in enumerate([1, 128, 2, 0, 36, 36, 31, 32, 0, 2] * 3)]
    with Edge(tmp_path) as edge:
        peer = edge.connect()
        peer.feed(b"".join(keyed(key) if key else request_bytes("POST", "/write/v2/msgpack", BODY) for key in keys))
        edge.settle()
    assert peer.statuses == [202] * len(keys)
    [sealed] = tmp_path.glob("wal/*.sealed")
    assert [records[0].get("_idempotency_key", "") for records in WALReader(sealed).read_all()] == keys
