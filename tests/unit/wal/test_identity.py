"""Entries that name their segment: nothing else is ever taken for one, and no flipped bit hides one."""

from __future__ import annotations

import struct
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.errors import NotAWAL
from arcpipe.wal import source as source_module
from arcpipe.wal.format import (
    IDENTITY_BYTES,
    EndMeta,
    StartMeta,
    crc32,
    entry_head,
    envelope_prefix,
    identity_of,
    make_identity,
    pack_end,
    pack_start,
)
from arcpipe.wal.reader import Damage, Entry, ScanReport, SegmentScan
from arcpipe.wal.verdict import ScanVerdict
from tests.support.wal_files import (
    DAY,
    HEADER,
    IDENTITY,
    NAME,
    OTHER,
    TWIN,
    columnar,
    end,
    entry,
    envelope,
    segment,
    start,
    written_over,
)

HOUR = 3_600_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / f"{NAME}.wal"


def scan(path: Path) -> tuple[list[Entry], ScanReport]:
    scanning = SegmentScan(path)
    return list(scanning), scanning.report


def numbers(entries: list[Entry]) -> list[int]:
    return [msgpack.unpackb(found.payload)[3]["columns"]["number"][0] for found in entries]


def named(number: int, size: int = 50, identity: bytes = IDENTITY, value: bytes = b"") -> bytes:
    return columnar(number, size, identity, value=value)


def ours(count: int, closed: bool = True, size: int = 50, gap: int = 1) -> tuple[bytes, list[int]]:
    return segment([named(number, size) for number in range(count)], closed=closed, identity=IDENTITY, gap=gap)


def flip(content: bytes, offset: int, mask: int = 0x10) -> bytes:
    return content[:offset] + bytes([content[offset] ^ mask]) + content[offset + 1 :]


def forged(identity: bytes = b"", first: int = 100, count: int = 3, timestamp: int = DAY + 10) -> bytes:
    """Bytes that a client sends as a value: whole entries, with whatever identity they may think of."""
    return b"".join(
        entry(columnar(first + number, 30, identity, "another database"), timestamp + number) for number in range(count)
    )


# What programs write and read


def test_the_reader_finds_the_identity_that_the_packer_writes(file: Path) -> None:
    identity = make_identity(1, 1)
    content = HEADER + pack_start(StartMeta("node", 1, 1, DAY, "x", identity, (3, 4096)))
    for number, database in enumerate(("a", "b" * 31, "c" * 32, "d" * 128, "e" * 300, "a")):
        prefix = envelope_prefix(1, database, {"precision": "ns"}, identity)
        body = msgpack.packb({"m": "cpu", "columns": {"number": [number]}})
        content += entry_head(prefix, body, DAY + number + 1) + body
    content += pack_end(EndMeta(6, 6, len(content), False, identity), DAY + 7)
    file.write_bytes(content)
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2, 3, 4, 5]
    assert report.identity == identity
    assert report.start is not None
    assert report.start.replaces == (3, 4096)
    assert (report.verdict, report.damage) == (ScanVerdict.CLEAN, [])


@pytest.mark.parametrize("window", [300, 1024, 8 << 20])
def test_entries_of_many_databases_and_sizes_are_read(file: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(source_module, "WINDOW_BYTES", window)
    names = ["x" * length for length in (1, 31, 32, 60, 1)]
    payloads = [columnar(number, 7 * number, IDENTITY, names[number % 5]) for number in range(60)]
    content, offsets = segment(payloads, closed=True, identity=IDENTITY)
    file.write_bytes(content)
    entries, report = scan(file)
    assert [(found.offset, bytes(found.payload)) for found in entries] == list(zip(offsets, payloads, strict=True))
    assert [found.timestamp for found in entries] == [DAY + number + 1 for number in range(60)]
    assert (report.verdict, report.entries, report.last_timestamp) == (ScanVerdict.CLEAN, 60, DAY + 61)


# Others' entries


@pytest.mark.parametrize("identity", [b"", OTHER, TWIN])
@pytest.mark.parametrize("where", ["length", "crc", "payload"])
def test_a_damaged_entry_shows_nothing_of_what_is_in_its_value(file: Path, identity: bytes, where: str) -> None:
    """The issue's case: entries of another database, past the token's scope, after one flipped bit."""
    payloads = [named(0), named(1, value=forged(identity)), named(2)]
    content, offsets = segment(payloads, closed=True, identity=IDENTITY)
    at = offsets[1] + {"length": 3, "crc": 14, "payload": 40}[where]
    file.write_bytes(flip(content, at))
    entries, report = scan(file)
    assert numbers(entries) == [0, 2]
    assert [(found.offset, found.length) for found in report.damage] == [(offsets[1], offsets[2] - offsets[1])]
    assert report.verdict is ScanVerdict.DAMAGED


def test_a_segment_without_an_identity_shows_what_this_rule_is_about(file: Path) -> None:
    """Files from before the rule are read as they were: only the timestamp tells, and a client chooses that."""
    content, offsets = segment([columnar(0), columnar(1, value=forged()), columnar(2)], closed=True)
    file.write_bytes(flip(content, offsets[1] + 3))
    entries, _ = scan(file)
    assert numbers(entries) == [0, 100, 101, 102, 2]


@pytest.mark.parametrize("age", [HOUR, -HOUR])
def test_stale_entries_are_never_read_whatever_their_timestamps(file: Path, age: int) -> None:
    former, _ = segment(
        [named(100 + number, 80, OTHER) for number in range(20)], DAY - age, closed=True, identity=OTHER
    )
    present, offsets = segment([named(1, 80), named(2, 80)], identity=IDENTITY)
    file.write_bytes(written_over(former, present))
    entries, report = scan(file)
    assert numbers(entries) == [1, 2]
    assert (report.end_offset, report.damage, report.verdict) == (len(present), [], ScanVerdict.TORN)
    # The start itself is damaged: still none of them.
    file.write_bytes(written_over(former, flip(present, 40)))
    entries, report = scan(file)
    assert numbers(entries) == [1, 2]
    assert [(found.offset, found.length) for found in report.damage] == [(7, offsets[0] - 7)]


def test_a_stale_entry_that_shows_through_among_new_ones_is_damage(file: Path) -> None:
    former, old = segment([named(100 + number, 80, OTHER) for number in range(8)], identity=OTHER)
    present, offsets = segment([named(number, 80) for number in range(4)], identity=IDENTITY)
    assert old == offsets + old[4:]
    file.write_bytes(
        written_over(former, present[: offsets[1]] + former[offsets[1] : offsets[2]] + present[offsets[2] :])
    )
    entries, report = scan(file)
    assert numbers(entries) == [0, 2, 3]
    assert report.damage == [Damage(offsets[1], offsets[2] - offsets[1], "the entry is of another segment")]


def test_how_far_a_tail_is_torn_is_told_up_to_the_first_stale_entry(file: Path) -> None:
    former, old = segment([named(100 + number, 80, OTHER) for number in range(20)], identity=OTHER)
    present, _ = ours(2, closed=False, size=33)
    file.write_bytes(written_over(former, present + entry(named(2, 500), DAY + 3)[:100]))
    _, report = scan(file)
    assert report.end_offset == len(present)
    assert report.torn_bytes == min(offset for offset in old if offset >= len(present) + 100) - len(present)
    assert report.verdict is ScanVerdict.TORN


def test_the_end_entry_of_another_segment_ends_nothing(file: Path) -> None:
    content, offsets = ours(3, closed=False)
    foreign = end(1, offsets[1], DAY + 2, OTHER)
    file.write_bytes(content[: offsets[1]] + foreign + content[offsets[1] :])
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2]
    assert report.end is None


# Whose segment is it, if the start does not say


def damaged_starts(content: bytes, offsets: list[int]) -> dict[str, bytes]:
    begin = 7 + 16
    at = content.index(IDENTITY)
    return {
        "a bit of its length": flip(content, 9),
        "a bit of its payload": flip(content, begin + 40),
        "a bit of its identity": flip(content, at + 12),
        "the slot in its identity": flip(content, at + 1),
        "all of it": content[:7] + bytes(offsets[0] - 7) + content[offsets[0] :],
        "header and all": bytes(offsets[0]) + content[offsets[0] :],
    }


@pytest.mark.parametrize("what", list(damaged_starts(*ours(1))))
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("identity", [b"", OTHER, TWIN])
def test_a_damaged_start_costs_no_entry_and_lets_none_in(file: Path, what: str, closed: bool, identity: bytes) -> None:
    payloads = [named(0, value=forged(identity)), named(1), named(2, value=forged(identity, 200))]
    content, offsets = segment(payloads, closed=closed, identity=IDENTITY)
    file.write_bytes(damaged_starts(content, offsets)[what])
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2]
    assert report.verdict is ScanVerdict.DAMAGED
    assert report.identity == IDENTITY


@pytest.mark.parametrize("identity", [OTHER, TWIN])
def test_a_lost_first_block_of_an_entry_full_of_others(file: Path, identity: bytes) -> None:
    """The first block is gone with the header of an entry full of others."""
    payloads = [named(0, value=b"f" * 4000 + forged(identity)), named(1)]
    content, _ = segment(payloads, closed=True, identity=IDENTITY)
    file.write_bytes(bytes(512) + content[512:])
    entries, report = scan(file)
    assert numbers(entries) == [1]
    assert report.verdict is ScanVerdict.DAMAGED


def test_a_forged_end_within_the_last_value_settles_nothing(file: Path) -> None:
    """A forged end within the last value of an active file settles nothing."""
    content, _ = ours(3, closed=False)
    for _ in range(3):  # the offset of the forged end depends on the header before it
        payload = named(3, value=end(1, 0, DAY + 9, TWIN))
        where = len(content) + 16 + len(payload) - len(end(1, 0, DAY + 9, TWIN))
    forged_end = end(1, where - 2, DAY + 9, TWIN)  # two bytes more for a larger number
    payload = named(3, value=forged_end)
    where = len(content) + 16 + len(payload) - len(forged_end)
    forged_end = end(1, where, DAY + 9, TWIN)
    payload = named(3, value=forged_end)
    whole = content + entry(payload, DAY + 4)
    assert whole.endswith(forged_end)
    assert whole.index(forged_end) == where
    file.write_bytes(flip(whole, 60))
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2, 3]
    assert report.identity == IDENTITY


def test_a_file_of_any_name_is_read_by_its_start(tmp_path: Path) -> None:
    file = tmp_path / "copy.wal"
    content, offsets = segment([named(0, value=forged(OTHER)), named(1)], closed=True, identity=IDENTITY)
    file.write_bytes(flip(content, offsets[0] + 2))
    entries, _ = scan(file)
    assert numbers(entries) == [1]
    file.write_bytes(flip(content, 40))
    entries, report = scan(file)
    assert numbers(entries) == [0, 1]
    assert report.identity == IDENTITY


def test_a_file_of_arc_takes_no_identity_from_its_values(tmp_path: Path) -> None:
    file = tmp_path / "worker-1-20251010_000000.wal"
    rows = [[{"measurement": "m", "v": number, "blob": forged(OTHER)}] for number in range(4)]
    content = HEADER + b"".join(entry(msgpack.packb(row), DAY + number) for number, row in enumerate(rows))
    for damaged in (content, flip(content, 60)):
        file.write_bytes(damaged)
        scanning = SegmentScan(file)
        values = [msgpack.unpackb(found.payload) for found in scanning]
        assert [row for row in values if isinstance(row[0], dict)][-3:] == rows[1:]
        assert scanning.report.identity == b""


def test_a_name_that_outlived_its_content_shows_nothing(file: Path) -> None:
    file.write_bytes(
        HEADER + start(DAY - HOUR, slot=2, seq=9, identity=OTHER) + entry(named(100, 50, OTHER), DAY - HOUR + 1)
    )
    entries, report = scan(file)
    assert entries == []
    assert (report.verdict, report.entries, report.damage) == (ScanVerdict.TORN, 0, [])


# The file header


@pytest.mark.parametrize("at", range(7))
def test_one_wrong_byte_in_the_file_header_is_damage(file: Path, tmp_path: Path, at: int) -> None:
    content, _ = ours(3)
    file.write_bytes(flip(content, at))
    if at in (4, 5):  # the version: the next one of this program may mean something else by what follows
        with pytest.raises(NotAWAL, match="format version"):
            SegmentScan(file)
        return
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2]
    assert (report.damage[0][:2], report.verdict) == ((0, 7), ScanVerdict.DAMAGED)
    # Without a name of ours, and without its start, nothing says that it is one.
    other = tmp_path / "other.wal"
    other.write_bytes(flip(flip(content, at), 40))
    with pytest.raises(NotAWAL):
        SegmentScan(other)


@pytest.mark.parametrize("content", [b"PAR1" + bytes(5000), bytes(5000), b"\xff" * 5000, forged(OTHER)])
def test_a_file_with_nothing_of_ours_in_it_is_no_log(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(NotAWAL):
        SegmentScan(file)


def test_a_damaged_start_and_nothing_intact_is_no_empty_segment(file: Path) -> None:
    """A segment with a damaged start and nothing intact is damaged, not empty."""
    content, offsets = ours(1, closed=False)
    file.write_bytes(flip(flip(content, 40), offsets[0] + 30))
    entries, report = scan(file)
    assert entries == []
    assert (report.verdict, len(report.damage)) == (ScanVerdict.DAMAGED, 1)
    file.write_bytes(HEADER + bytes(4000))
    assert scan(file)[1].verdict is ScanVerdict.TORN


# Timestamps


@pytest.mark.parametrize("bit", [0, 3, 20, 35, 40, 50, 63])
@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_flipped_timestamp_hides_no_entry_and_moves_no_other(file: Path, index: int, bit: int) -> None:
    content, offsets = ours(6, gap=1000)
    at = offsets[index] + 4
    [stamp] = struct.unpack_from(">Q", content, at)
    file.write_bytes(content[:at] + struct.pack(">Q", stamp ^ (1 << bit)) + content[at + 8 :])
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2, 3, 4, 5]
    stamps = [found.timestamp for found in entries]
    assert [DAY, *stamps] == sorted({DAY, *stamps})
    moved = [number for number in range(6) if stamps[number] != DAY + 1000 * (number + 1)]
    assert set(moved) <= {index - 1, index, index + 1}
    # The end entry's timestamp is the next one after the last entry's.
    assert len(report.damage) == (bit >= 20 or index == 5)
    assert all(found.length == 0 and "timestamp" in found.reason for found in report.damage)
    assert stamps[-1] < report.last_timestamp <= stamps[-1] + 2000


def test_the_start_entrys_timestamp_is_checked_too(file: Path) -> None:
    content, _ = ours(2)
    file.write_bytes(flip(content, 7 + 4 + 7, 1))
    entries, report = scan(file)
    assert [found.timestamp for found in entries] == [DAY + 1, DAY + 2]
    assert [(found.offset, found.length) for found in report.damage] == [(7, 0)]


def test_a_segment_that_waited_long_for_its_first_entry_is_in_order(file: Path) -> None:
    late = DAY + 60 * 24 * HOUR
    content = HEADER + start(identity=IDENTITY)
    content += b"".join(entry(named(number), late + number) for number in range(3))
    content += end(3, len(content), late + 4, IDENTITY)
    file.write_bytes(content)
    entries, report = scan(file)
    assert [found.timestamp for found in entries] == [late, late + 1, late + 2]
    assert report.damage == []


# Any bit, any bytes


@pytest.fixture(scope="module")
def sample() -> tuple[bytes, list[int]]:
    """A segment with every kind of entry there is in the values of a client, and plain ones."""
    payloads = [
        named(0),
        named(1, value=forged(OTHER)),
        named(2, value=forged(TWIN)),
        named(3, value=forged()),
        columnar(4, 20, IDENTITY, "another database"),
        named(5, value=start(slot=1, seq=1, identity=TWIN) + forged(TWIN) + end(3, 900, DAY + 9, TWIN)),
        named(6),
    ]
    return segment(payloads, closed=True, identity=IDENTITY, gap=1000)


def check_flipped(path: Path, content: bytes, offsets: list[int], bit: int) -> None:
    """One bit is another: at most the entry that it hits is lost, nothing else is read, and it is reported."""
    at, mask = divmod(bit, 8)
    path.write_bytes(flip(content, at, 1 << mask))
    if at in (4, 5):
        with pytest.raises(NotAWAL):
            SegmentScan(path)
        return
    entries, report = scan(path)
    ends = [*offsets[1:], content.rindex(end(7, len(content) - 110, 0, IDENTITY)[16:20]) - 16]
    hit = [number for number, offset in enumerate(offsets) if offset <= at < ends[number]]
    found = numbers(entries)
    assert [found_entry.offset for found_entry in entries] == [offsets[number] for number in found]
    assert set(range(7)) - set(found) <= set(hit)
    for read in entries:
        assert bytes(read.payload) == content[read.offset + 16 : read.offset + 16 + len(read.payload)]
    is_timestamp = any(offset + 4 <= at < offset + 12 for offset in (*offsets, ends[-1]))
    if is_timestamp and not report.damage:  # the order is as good as before: nobody can tell
        stamps = [read.timestamp for read in entries]
        assert stamps == sorted(set(stamps))
        assert found == list(range(7))
    else:
        assert report.verdict is ScanVerdict.DAMAGED
        assert report.damage or (at >= ends[-1] and report.end is None)


@pytest.mark.slow
def test_no_flipped_bit_loses_more_than_its_entry(tmp_path: Path, sample: tuple[bytes, list[int]]) -> None:
    """Every seventh bit of all; hypothesis looks between."""
    content, offsets = sample
    for bit in range(0, 8 * len(content), 7):
        check_flipped(tmp_path / f"{NAME}.wal.sealed", content, offsets, bit)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bit_flips_the_rest_is_read(
    tmp_path: Path, sample: tuple[bytes, list[int]], data: st.DataObject
) -> None:
    content, offsets = sample
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    check_flipped(tmp_path / f"{NAME}.wal.sealed", content, offsets, bit)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.binary(max_size=40)
        | st.sampled_from([forged(), forged(OTHER), forged(TWIN), HEADER, start(identity=TWIN), end(1, 5, DAY, TWIN)])
        | st.builds(
            lambda kind, body: entry(envelope(kind, "x", {"in": TWIN}, body), DAY + 3),
            st.integers(0, 255),
            st.integers(0, 1000),
        ),
        max_size=6,
    ),
    at=st.integers(0, 400),
    length=st.sampled_from([1, 2, 16, 100, 300]),
    fill=st.sampled_from([b"\x00", b"\xff", b"\xa2"]),
)
def test_no_bytes_of_a_client_become_a_record(
    tmp_path: Path, pieces: list[bytes], at: int, length: int, fill: bytes
) -> None:
    """A damaged place anywhere after the start, over the header or within the value of the entry that has them."""
    payloads = [named(0), named(1, value=b"".join(pieces) or b"-"), named(2)]
    content, offsets = segment(payloads, closed=True, identity=IDENTITY)
    begin = offsets[0] + at
    content = content[:begin] + fill * len(content[begin : begin + length]) + content[begin + length :]
    path = tmp_path / f"{NAME}.wal.sealed"
    path.write_bytes(content)
    entries, _ = scan(path)
    for read in entries:
        assert read.offset in offsets
        assert identity_of(read.payload) == IDENTITY
        assert len(identity_of(read.payload)) == IDENTITY_BYTES
        assert crc32(read.payload) == struct.unpack_from(">I", content, read.offset + 12)[0]
