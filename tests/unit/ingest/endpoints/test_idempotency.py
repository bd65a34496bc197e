"""Idempotency keys: which of them a worker remembers, and how they are in its entries."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.envelope import KIND_BATCH, KIND_COLUMNAR, decode_envelope
from arcpipe.ingest.endpoints.idempotency import RecentKeys
from arcpipe.wal import WALReader, WALWriter
from arcpipe.wal.format import KeyedPrefix, Prefix, crc32, identity_of, with_identity

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
ONE = b"db\xa3keyone"


# Recent keys


def test_a_key_is_known_until_half_of_the_window_at_least_and_never_after_it() -> None:
    recent = RecentKeys(100.0)
    recent.note([(ONE, (3, 7))], 1000.0)
    assert [recent.find(ONE, 1000.0 + age) for age in (0.0, 49.0, 99.0, 101.0)] == [(3, 7), (3, 7), (3, 7), None]


def test_a_key_is_forgotten_while_nobody_writes() -> None:
    recent = RecentKeys(100.0)
    recent.note([(ONE, (3, 7))], 1000.0)
    assert recent.find(ONE, 1300.0) is None


def test_the_newest_keys_are_known_within_the_limit() -> None:
    recent = RecentKeys(100.0, limit=10)
    keys = [b"%d" % number for number in range(1000)]
    recent.note([(key, (1, 1)) for key in keys[:500]], 1000.0)
    for key in keys[500:]:
        recent.note([(key, (1, 1))], 1000.0)
    known = [key for key in keys if recent.find(key, 1000.0)]
    assert known == keys[-len(known) :]
    assert 5 <= len(known) <= 10


def test_the_first_content_of_a_key_stays() -> None:
    recent = RecentKeys(100.0)
    recent.note([(ONE, (3, 7))], 1000.0)
    recent.note([(ONE, (4, 8))], 1001.0)
    assert recent.find(ONE, 1002.0) == (3, 7)


def test_a_worker_without_a_window_knows_nothing() -> None:
    recent = RecentKeys(0.0)
    recent.note([(ONE, (3, 7))], 1000.0)
    assert recent.find(ONE, 1000.0) is None


# In the entry


@given(VISIBLE, st.none() | st.text("abcdefgh234567", min_size=8, max_size=8), st.integers(0, 70_000), st.booleans())
def test_the_key_is_in_the_meta_of_the_entry(key: str, token: str | None, part: int, has_more: bool) -> None:
    plain = Prefix(KIND_COLUMNAR, "db", {"precision": "ms", "clock": -7} if has_more else {})
    prefix = KeyedPrefix()
    prefix.make(Prefix(KIND_BATCH, "other", {}), b"former", "former")
    prefix.bind(b"f" * 16)
    prefix.make(plain, key.encode(), token, part)
    for identity in (b"0123456789abcdef", b"fedcba9876543210"):
        prefix.bind(identity)
        assert prefix.crc == crc32(prefix.data)
        payload = prefix.data + b"\x82\xa1m\xa3cpu\xa7columns\x81\xa1n\x91\x01"
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
    prefix = KeyedPrefix().make(Prefix(KIND_COLUMNAR, "db", {}), b"one", "tokenid1")
    group.add(prefix, b"\x82\xa1m\xa3cpu\xa7columns\x81\xa1n\x91\x01", 1, writer.next_timestamp())
    writer.commit(group)
    writer.append([{"measurement": "cpu", "n": 2, "_idempotency_key": "of another file"}], "db")
    writer.close()
    [sealed] = tmp_path.glob("*.sealed")
    keyed, plain = (records[0] for records in WALReader(sealed).read_all())
    assert (keyed["n"], keyed["_idempotency_key"]) == (1, "one")
    assert (plain["n"], "_idempotency_key" in plain) == (2, False)
