"""Reading segments: what is there is read value for value, what is damaged is counted, what is over is left alone."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.errors import NotAWAL
from arcpipe.wal import WALReader
from arcpipe.wal import source as source_module
from arcpipe.wal.reader import Damage, Entry, ScanReport, SegmentScan, count_records
from arcpipe.wal.verdict import ScanVerdict
from tests.support.wal_doubles import BadBlocks
from tests.support.wal_files import (
    DAY,
    HEADER,
    IDENTITY,
    NAME,
    columnar,
    end,
    entry,
    envelope,
    segment,
    start,
    written_over,
)

HOUR = 3_600_000_000


def scan(path: Path, *, gently: bool = False) -> tuple[list[Entry], ScanReport]:
    scanning = SegmentScan(path, gently=gently)
    return list(scanning), scanning.report


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / f"{NAME}.wal"


def numbers(entries: list[Entry]) -> list[int]:
    return [msgpack.unpackb(found.payload)[3]["columns"]["number"][0] for found in entries]


def set_timestamp(content: bytes, offset: int, timestamp: int) -> bytes:
    return content[: offset + 4] + struct.pack(">Q", timestamp) + content[offset + 12 :]


def set_length(content: bytes, offset: int, length: int) -> bytes:
    return content[:offset] + struct.pack(">I", length) + content[offset + 4 :]


# Whole files


def test_entries_come_in_order_with_offset_timestamp_and_payload(file: Path) -> None:
    payloads = [columnar(number, size) for number, size in enumerate((0, 3000, 1, 70_000))]
    content, offsets = segment(payloads, closed=True)
    file.write_bytes(content)
    entries, report = scan(file)
    assert [found.offset for found in entries] == offsets
    assert [found.timestamp for found in entries] == [DAY + 1, DAY + 2, DAY + 3, DAY + 4]
    assert [bytes(found.payload) for found in entries] == payloads
    assert report.start is not None
    assert (report.start.slot, report.start.seq, report.start.created) == (1, 1, DAY)
    assert report.end is not None
    assert (report.end.entries, report.end.offset) == (4, offsets[-1] + 16 + len(payloads[-1]))
    assert (report.entries, report.last_timestamp, report.end_offset) == (4, DAY + 5, len(content))
    assert (report.damage, report.torn_bytes) == ([], 0)


def test_nothing_behind_the_end_entry_is_read(file: Path) -> None:
    content, _ = segment([columnar(1)], closed=True)
    file.write_bytes(content + entry(columnar(2), DAY + HOUR))
    entries, report = scan(file)
    assert numbers(entries) == [1]
    assert report.end_offset == len(content)


def test_a_file_may_be_read_again_and_keeps_no_descriptor(file: Path) -> None:
    file.write_bytes(segment([columnar(1), columnar(2)])[0])
    before = len(os.listdir("/proc/self/fd"))
    scanning = SegmentScan(file)
    assert numbers(list(scanning)) == numbers(list(scanning)) == [1, 2]
    assert scanning.report.entries == 2
    next(iter(SegmentScan(file)))
    SegmentScan(file)
    del scanning
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "only 0 bytes"),
        (HEADER[:6], "only 6 bytes"),
        (b"PAR1" + HEADER[4:] + bytes(50), "magic"),
        (b"ARCW\x00\x02\x01" + bytes(50), "version 2"),
        (b"ARCW\x00\x01\x02" + bytes(50), "checksum type 2"),
    ],
)
def test_a_file_that_does_not_begin_as_a_log_is_none(file: Path, content: bytes, what: str) -> None:
    file.write_bytes(content)
    with pytest.raises(NotAWAL, match=what):
        SegmentScan(file)


def test_entries_larger_than_a_window_are_read_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "WINDOW_BYTES", 1024)
    payloads = [columnar(number, number * 700) for number in range(12)]
    file.write_bytes(segment(payloads, closed=True)[0])
    entries, report = scan(file)
    assert [bytes(found.payload) for found in entries] == payloads
    assert not report.damage


# Tails


def test_zeros_behind_the_last_entry_are_no_torn_tail(file: Path) -> None:
    content, _ = segment([columnar(1)])
    file.write_bytes(content + bytes(10_000))
    entries, report = scan(file)
    assert numbers(entries) == [1]
    assert (report.end_offset, report.torn_bytes, report.damage) == (len(content), 0, [])


@pytest.mark.parametrize("kept", [4, 15, 16, 17, 60])
def test_a_torn_entry_at_the_end_is_told_apart_from_damage(file: Path, kept: int) -> None:
    content, offsets = segment([columnar(1), columnar(2, 50)])
    file.write_bytes(content[: offsets[1] + kept])
    entries, report = scan(file)
    assert numbers(entries) == [1]
    assert (report.end_offset, report.torn_bytes, report.damage) == (offsets[1], kept, [])


def test_the_former_life_behind_the_last_entry_is_neither_read_nor_torn(file: Path) -> None:
    former, _ = segment([columnar(100 + number, 80) for number in range(20)], DAY - HOUR, closed=True)
    present, _ = segment([columnar(1, 80), columnar(2, 80)])
    file.write_bytes(written_over(former, present))
    entries, report = scan(file)
    assert numbers(entries) == [1, 2]
    assert (report.end_offset, report.torn_bytes, report.damage) == (len(present), 0, [])


def test_the_remains_of_a_former_entry_are_a_torn_tail(file: Path) -> None:
    """The remains of a former entry are a torn tail up to the next whole one."""
    former, offsets = segment([columnar(100 + number, 80) for number in range(20)], DAY - HOUR)
    present, _ = segment([columnar(1, 33)])
    file.write_bytes(written_over(former, present))
    _, report = scan(file)
    whole = min(offset for offset in offsets if offset >= len(present))
    assert report.torn_bytes == whole - len(present)


def test_an_old_entry_among_new_ones_is_not_taken_for_one(file: Path) -> None:
    """A power cut within an unsynced group, in a file that is written over with entries of the same size."""
    former, offsets = segment([columnar(100 + number, 80) for number in range(8)], DAY - HOUR, closed=True)
    present, _ = segment([columnar(number, 80) for number in range(1, 5)])
    assert segment([columnar(1, 80)])[1][0] == offsets[0]
    torn = present[: offsets[2]] + former[offsets[2] : offsets[3]] + present[offsets[3] :]
    file.write_bytes(written_over(former, torn))
    entries, report = scan(file)
    assert numbers(entries) == [1, 2, 4]
    assert [(damage.offset, damage.length) for damage in report.damage] == [(offsets[2], offsets[3] - offsets[2])]


def test_a_former_life_of_another_slot_is_none_of_ours_either(file: Path) -> None:
    former = HEADER + start(DAY - HOUR, slot=7, seq=3) + entry(columnar(100), DAY - HOUR + 1)
    present = HEADER + start(DAY)
    file.write_bytes(written_over(former, present))
    entries, report = scan(file)
    assert entries == []
    assert report.start is not None
    assert report.start.slot == 1


def test_a_name_that_outlived_its_content_shows_no_former_life(file: Path) -> None:
    """A disk that says "synced" and is not may keep the rename and lose the start entry."""
    file.write_bytes(HEADER + start(DAY - HOUR, slot=7, seq=3) + entry(columnar(100), DAY - HOUR + 1))
    entries, report = scan(file)
    assert entries == []
    assert report.entries == 0


# Damage in the middle


@pytest.mark.parametrize("at", [0, 2, 12, 15, 16, 40])
def test_one_damaged_byte_costs_one_entry(file: Path, at: int) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(6)], closed=True)
    position = offsets[2] + at
    file.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 3, 4, 5]
    assert [(damage.offset, damage.length) for damage in report.damage] == [(offsets[2], offsets[3] - offsets[2])]
    assert report.end is not None


def test_a_length_that_leads_to_a_later_entry_does_not_hide_those_between(file: Path) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(6)], closed=True)
    file.write_bytes(set_length(content, offsets[1], offsets[4] - offsets[1] - 16))
    entries, report = scan(file)
    assert numbers(entries) == [0, 2, 3, 4, 5]
    assert len(report.damage) == 1


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_impossible_length_costs_one_entry(file: Path, length: int) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(4)])
    file.write_bytes(set_length(content, offsets[1], length))
    entries, report = scan(file)
    assert numbers(entries) == [0, 2, 3]
    assert report.damage[0].reason == f"impossible payload length {length}"


@pytest.mark.slow
def test_a_length_that_is_only_claimed_takes_no_memory(file: Path) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(4)])
    file.write_bytes(set_length(content, offsets[1], 200 << 20))
    os.truncate(file, 256 << 20)
    tracemalloc.start()
    try:
        entries, _ = scan(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert numbers(entries) == [0, 2, 3]
    assert peak < 100 << 20


def test_what_follows_damage_is_found_however_late_it_came(file: Path) -> None:
    """A segment is made ahead of need, and its first entry may come weeks later."""
    late = DAY + 60 * 24 * HOUR
    content = HEADER + start(DAY)
    entries = [entry(columnar(number, 50), late + number) for number in range(4)]
    damaged = entries[1][:30] + b"\xff" + entries[1][31:]
    file.write_bytes(content + entries[0] + damaged + entries[2] + entries[3])
    found, report = scan(file)
    assert numbers(found) == [0, 2, 3]
    assert len(report.damage) == 1


def test_several_damages_are_counted_one_by_one(file: Path) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(9)])
    for index in (1, 4, 7):
        position = offsets[index] + 20
        content = content[:position] + b"\xff\xff" + content[position + 2 :]
    file.write_bytes(content)
    entries, report = scan(file)
    assert numbers(entries) == [0, 2, 3, 5, 6, 8]
    assert [damage.offset for damage in report.damage] == [offsets[1], offsets[4], offsets[7]]


def test_a_zeroed_block_costs_what_it_covers(file: Path) -> None:
    content, offsets = segment([columnar(number, 1000) for number in range(30)], closed=True)
    file.write_bytes(content[:8192] + bytes(4096) + content[12288:])
    entries, report = scan(file)
    covered = [
        number
        for number, offset in enumerate(offsets)
        if offset < 12288 and [*offsets, len(content)][number + 1] > 8192
    ]
    assert numbers(entries) == [number for number in range(30) if number not in covered]
    assert len(report.damage) == 1


def test_without_its_start_entry_a_segment_still_has_its_border(file: Path) -> None:
    """The second in the name: a written-over file never begins in the second of its last stale entry."""
    former, _ = segment([columnar(100 + number, 80) for number in range(20)], DAY - 100, closed=True)
    present, offsets = segment([columnar(1, 80), columnar(2, 80)])
    content = written_over(former, present)
    file.write_bytes(content[:20] + b"\xff" + content[21:])
    entries, report = scan(file)
    assert numbers(entries) == [1, 2]
    assert report.start is None
    assert [(damage.offset, damage.length) for damage in report.damage] == [(7, offsets[0] - 7)]


def test_salvage_reads_on_behind_a_damaged_file_header(file: Path) -> None:
    content, _ = segment([columnar(1), columnar(2)])
    file.write_bytes(b"\xff" * 7 + content[7:])
    scanning = SegmentScan(file, salvage=True)
    assert numbers(list(scanning)) == [1, 2]
    assert [(damage.offset, damage.length) for damage in scanning.report.damage] == [(0, 7)]


# Timestamps, which no checksum covers


@pytest.mark.parametrize("timestamp", [0, 1, DAY - HOUR, DAY - 1])
def test_an_entry_dated_before_its_segment_costs_no_other(file: Path, timestamp: int) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(5)], closed=True)
    file.write_bytes(set_timestamp(content, offsets[2], timestamp))
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 3, 4]
    assert [damage.offset for damage in report.damage] == [offsets[2]]


def test_a_misdated_entry_beside_a_damaged_one_costs_no_other(file: Path) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(6)], closed=True)
    content = set_timestamp(content, offsets[2], DAY - HOUR)
    position = offsets[3] + 30
    file.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
    entries, _ = scan(file)
    assert numbers(entries) == [0, 1, 4, 5]


@pytest.mark.parametrize("timestamp", [DAY + 40 * 24 * HOUR, DAY + (1 << 50), (1 << 64) - 1])
@pytest.mark.parametrize("index", [0, 2, 3])
def test_an_entry_dated_far_ahead_gets_a_likely_time_and_is_counted(file: Path, timestamp: int, index: int) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(5)])
    file.write_bytes(set_timestamp(content, offsets[index], timestamp))
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2, 3, 4]
    assert DAY <= entries[index].timestamp <= DAY + 5
    assert [(damage.offset, damage.length) for damage in report.damage] == [(offsets[index], 0)]
    assert report.last_timestamp <= DAY + 6


def test_a_last_entry_dated_ahead_of_the_clock_gets_a_likely_time(file: Path) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(3)])
    file.write_bytes(set_timestamp(content, offsets[2], DAY + (1 << 50)))
    entries, report = scan(file)
    assert [found.timestamp for found in entries] == [DAY + 1, DAY + 2, DAY + 3]
    assert [damage.offset for damage in report.damage] == [offsets[2]]


def test_no_timestamp_is_beyond_what_a_date_can_tell(file: Path) -> None:
    content, offsets = segment([columnar(number, 50) for number in range(3)])
    for offset in offsets[1:]:
        content = set_timestamp(content, offset, (1 << 64) - 1)
    file.write_bytes(content)
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2]
    assert report.last_timestamp < 253_402_300_800_000_000
    assert len(report.damage) >= 1


def test_a_clock_that_was_ahead_is_believed(file: Path) -> None:
    """Entries from a clock that was set right afterwards: they agree with each other, so nothing is wrong."""
    ahead = time.time_ns() // 1000 + 3 * 365 * 24 * HOUR
    content, _ = segment([columnar(number) for number in range(3)], ahead)
    file.write_bytes(content)
    entries, report = scan(file)
    assert [found.timestamp for found in entries] == [ahead + 1, ahead + 2, ahead + 3]
    assert report.damage == []


def test_files_of_other_programs_have_no_border(tmp_path: Path) -> None:
    file = tmp_path / "worker-1-20251010_000000.wal"
    content = HEADER + b"".join(entry(columnar(number), DAY - number * HOUR) for number in range(5))
    file.write_bytes(content)
    entries, report = scan(file)
    assert numbers(entries) == [0, 1, 2, 3, 4]
    assert report.damage == []


# Devices and other people


def test_a_read_that_fails_is_an_error_and_nothing_else(file: Path) -> None:
    content, _ = segment([columnar(number, 1000) for number in range(30)], closed=True)
    file.write_bytes(content)
    for gently in (False, True):
        with pytest.raises(OSError, match="Input/output error"):
            SegmentScan(file, disk=BadBlocks(0, 1), gently=gently)
        for begin in (8192, len(content) - 5):
            scanning = SegmentScan(file, disk=BadBlocks(begin, begin + 1), gently=gently)
            with pytest.raises(OSError, match="Input/output error"):
                list(scanning)
            assert scanning.report.verdict is ScanVerdict.UNREADABLE


@pytest.mark.parametrize("begin", range(0, 20_000, 1500))
def test_an_entry_that_was_yielded_before_a_failed_read_is_intact(
    file: Path, monkeypatch: pytest.MonkeyPatch, begin: int
) -> None:
    """However small the window is: what is read is read, what is not raises."""
    monkeypatch.setattr(source_module, "WINDOW_BYTES", 2048)
    payloads = [columnar(number, 700) for number in range(30)]
    content, offsets = segment(payloads, closed=True)
    file.write_bytes(content)
    found: list[Entry] = []
    with pytest.raises(OSError, match="Input/output error"):
        found.extend(SegmentScan(file, disk=BadBlocks(begin, begin + 1)))
    assert [bytes(read.payload) for read in found] == payloads[: len(found)]
    assert len(found) <= sum(offset + 16 <= begin for offset in offsets)


def test_a_read_that_fails_for_a_moment_is_tried_again_by_the_next_scan(file: Path) -> None:
    content, _ = segment([columnar(number, 1000) for number in range(30)], closed=True)
    file.write_bytes(content)
    disk = BadBlocks(times=2)  # the window, and what is needed of it
    with pytest.raises(OSError, match="Input/output error"):
        SegmentScan(file, disk=disk)
    scanning = SegmentScan(file, disk=disk)
    assert numbers(list(scanning)) == list(range(30))
    assert scanning.report.verdict is ScanVerdict.CLEAN


def test_blocks_behind_the_end_entry_are_not_needed(file: Path) -> None:
    content, _ = segment([columnar(number, 1000) for number in range(30)], closed=True)
    file.write_bytes(content + bytes(100_000))
    scanning = SegmentScan(file, disk=BadBlocks(len(content) + 5000, len(content) + 60_000))
    assert numbers(list(scanning)) == list(range(30))
    assert scanning.report.verdict is ScanVerdict.CLEAN


@pytest.mark.parametrize("identity", [b"", IDENTITY])
@pytest.mark.parametrize("gently", [False, True])
def test_salvage_reads_around_bad_blocks_and_tells_them(file: Path, gently: bool, identity: bytes) -> None:
    payloads = [columnar(number, 1000, identity) for number in range(30)]
    content, offsets = segment(payloads, closed=True, identity=identity)
    file.write_bytes(content + bytes(50_000))
    disk = BadBlocks(8192, 12288)
    disk_behind = BadBlocks(len(content) + 20_000, 1 << 40)
    scanning = SegmentScan(file, disk=disk, salvage=True, gently=gently)
    hit = [n for n, offset in enumerate(offsets) if offset < 12288 and [*offsets, len(content)][n + 1] > 8192]
    assert numbers(list(scanning)) == [number for number in range(30) if number not in hit]
    first, second = scanning.report.damage
    assert (first.offset, first.length) == (offsets[hit[0]], offsets[hit[-1] + 1] - offsets[hit[0]])
    assert second == Damage(8192, 4096, "unreadable: Input/output error")
    assert scanning.report.verdict is ScanVerdict.DAMAGED
    # What nobody needs is not told.
    scanning = SegmentScan(file, disk=disk_behind, salvage=True, gently=gently)
    assert numbers(list(scanning)) == list(range(30))
    assert scanning.report.verdict is ScanVerdict.CLEAN


def test_salvage_of_a_file_of_which_nothing_can_be_read_ends(file: Path) -> None:
    file.write_bytes(segment([columnar(number, 1000) for number in range(30)], closed=True)[0])
    scanning = SegmentScan(file, disk=BadBlocks(), salvage=True)
    assert list(scanning) == []
    assert ("unreadable: Input/output error", 0) in [(found.reason, found.offset) for found in scanning.report.damage]
    assert scanning.report.verdict is ScanVerdict.DAMAGED


@pytest.mark.parametrize("gently", [False, True])
def test_a_file_that_is_cut_off_meanwhile_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, gently: bool
) -> None:
    monkeypatch.setattr(source_module, "WINDOW_BYTES", 2048)
    content, offsets = segment([columnar(number, 500) for number in range(30)])
    file.write_bytes(content)
    scanning = SegmentScan(file, gently=gently)
    iterator = iter(scanning)
    found = [next(iterator)]
    os.truncate(file, offsets[20])
    with pytest.raises(OSError, match=f"became shorter while it was read, at offset {offsets[20]}"):
        found.extend(iterator)
    assert numbers(found) == list(range(len(found)))
    assert scanning.report.verdict is ScanVerdict.UNREADABLE


@pytest.mark.parametrize("piece_bytes", [1, 1000, 4096])
def test_a_gentle_read_finds_the_same(file: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(source_module, "WINDOW_BYTES", 3000)
    monkeypatch.setattr(source_module, "_PIECE_BYTES", piece_bytes)
    content, offsets = segment([columnar(number, 37 * number) for number in range(100)], closed=True)
    damaged = bytearray(content)
    damaged[offsets[50] + 30] ^= 1
    file.write_bytes(damaged)
    entries, report = scan(file)
    gentle_entries, gentle_report = scan(file, gently=True)
    assert gentle_entries == entries
    assert numbers(entries) == [number for number in range(100) if number != 50]
    assert gentle_report.damage == report.damage


def lookalikes(count: int) -> bytes:
    """Bytes that only look like entries, each as long as all that follow."""
    return b"".join(
        struct.pack(">IQI", 24 * (count - n) - 16, DAY + n, 0) + b"\x94\x01" + bytes(6) for n in range(count)
    )


def test_a_search_that_gives_up_is_damage_and_no_torn_tail(file: Path) -> None:
    """The issue's case: one flipped byte, and a client's value full of header look-alikes."""
    payloads = [columnar(0), columnar(1, value=lookalikes(40_000)), *(columnar(number) for number in range(2, 50))]
    content, offsets = segment(payloads)
    file.write_bytes(content[: offsets[1]] + b"\xff" + content[offsets[1] + 1 :])
    entries, report = scan(file)
    assert numbers(entries) == [0]
    [found] = report.damage
    assert (found.offset, found.length) == (offsets[1], len(content) - offsets[1])
    assert found.reason.startswith("the search for entries was given up")
    assert (report.torn_bytes, report.verdict) == (0, ScanVerdict.DAMAGED)


def test_no_number_of_stale_entries_ends_the_search_for_those_behind_them(file: Path) -> None:
    """A value full of them, whose own header is damaged, hides nothing that follows."""
    stale = b"".join(entry(columnar(1000 + number), DAY - HOUR + number) for number in range(600))
    content, offsets = segment([columnar(0), columnar(1, value=stale), columnar(2), columnar(3)])
    file.write_bytes(content[: offsets[1]] + b"\xff" + content[offsets[1] + 1 :])
    entries, report = scan(file)
    assert numbers(entries) == [0, 2, 3]
    assert len(report.damage) == 1


# Anything may happen to the bytes


class Case(NamedTuple):
    present: list[int]  # filler sizes
    former: list[int] | None
    closed: bool
    damages: list[tuple[str, int, int, int]]  # kind, position in thousandths of the file, length, value


def cases(*kinds: str) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        st.lists(st.sampled_from([0, 1, 30, 80, 80, 80, 400, 3000]), max_size=14),
        st.none() | st.lists(st.sampled_from([0, 30, 80, 80, 80, 400, 3000]), max_size=20),
        st.booleans(),
        st.lists(
            st.tuples(
                st.sampled_from(kinds),
                st.integers(0, 1000),
                st.sampled_from([1, 2, 16, 100, 512, 4096]),
                st.integers(0, 2**64 - 1),
            ),
            max_size=4,
        ),
    )


# What a device does to bytes that were on it, and what a power cut leaves of a file that is written over.
ROTTEN = cases("flip", "overwrite", "zero", "truncate", "length", "timestamp")
TORN = cases("old", "old entry", "zero", "truncate")


def damage(content: bytes, former: bytes, offsets: list[int], damages: list[tuple[str, int, int, int]]) -> bytes:
    for kind, place, length, value in damages:
        position = len(content) * place // 1000
        patch = content[position : position + length]
        if kind == "truncate":
            content = content[:position]
            continue
        if kind == "flip":
            patch = bytes([patch[0] ^ (value % 255 + 1)]) if patch else b""
        elif kind == "overwrite":
            patch = bytes((value >> (8 * (index % 8)) & 0xFF) ^ (index & 0xFF) for index in range(len(patch)))
        elif kind == "zero":
            patch = bytes(len(patch))
        elif kind == "old":  # what a write that did not reach the disk leaves; the start entry did
            end = position - position % 512 + 512
            position = max(end - 512, len(HEADER + start()))
            patch = former[position:end]
        elif kind == "old entry":
            position = offsets[place % len(offsets)] if offsets else len(HEADER + start())
            patch = former[position : position + length]
        elif offsets:
            position = offsets[place % len(offsets)]
            header = content[position : position + 16]
            if len(header) == 16:
                patch = struct.pack(">I", value % 5000) if kind == "length" else header[:4] + struct.pack(">Q", value)
            else:
                patch = b""
        content = content[:position] + patch + content[position + len(patch) :]
    return content


@pytest.mark.slow
@pytest.mark.parametrize("window", [256, 8 << 20])
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=ROTTEN | TORN)
def test_whatever_happens_to_the_bytes_the_rest_is_read(tmp_path: Path, case: Case, window: int) -> None:
    present, offsets = segment([columnar(n, size) for n, size in enumerate(case.present)], closed=case.closed)
    intact = present
    old: list[int] = []
    former = b""
    if case.former is not None:
        former, _ = segment([columnar(1000 + n, size) for n, size in enumerate(case.former)], DAY - 500, closed=True)
        intact = written_over(former, present)
        old = list(range(1000, 1000 + len(case.former)))
    content = damage(intact, former, offsets, case.damages)
    file = tmp_path / f"{NAME}.wal"
    file.write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "WINDOW_BYTES", window)
        try:
            entries, report = scan(file)
        except NotAWAL:
            assert content[:7] != HEADER
            return

    ends = {offset: offset + 16 + len(columnar(n, case.present[n])) for n, offset in enumerate(offsets)}
    whole = [n for n, offset in enumerate(offsets) if content[offset : ends[offset]] == intact[offset : ends[offset]]]
    found = {read.offset: read for read in entries}
    for number in whole:
        read = found.get(offsets[number])
        assert read is not None, f"entry {number} is undamaged, and was not read"
        assert bytes(read.payload) == columnar(number, case.present[number])
        assert read.timestamp == DAY + number + 1
    # Nothing is made up: every entry stands where it was written. (One whose timestamp alone was damaged may be among
    # them, with another one; a stale entry can only be if its own timestamp was changed.)
    changed = content != intact
    for read in entries:
        payload = bytes(read.payload)
        assert payload == intact[read.offset + 16 : read.offset + 16 + len(payload)]
        if read.offset not in offsets:
            assert numbers([read])[0] in old
            assert changed
            assert content[read.offset + 4 : read.offset + 12] != intact[read.offset + 4 : read.offset + 12]
    assert len(found) == len(entries)
    # Damage before something intact is counted.
    for number, offset in enumerate(offsets):
        kept = content[offset : ends[offset]]
        was = intact[offset : ends[offset]]
        if kept[:4] + kept[12:] != was[:4] + was[12:] and any(later > number for later in whole):
            assert any(hurt.offset <= offset < hurt.offset + hurt.length for hurt in report.damage)
    if not changed:
        assert report.damage == []
        assert report.end_offset == len(present)


# Records


def test_records_have_measurement_database_time_and_fields(file: Path) -> None:
    body = {"m": "cpu", "columns": {"time": [5, None], "host": ["a", "b"], "usage": [0.5, None]}}
    content = HEADER + start()
    content += entry(envelope(1, "db", {}, body), DAY + 1)
    content += entry(envelope(2, "db", {}, [body, {"m": "mem", "columns": {"used": [7]}}]), DAY + 2)
    file.write_bytes(content)
    one = [
        {"measurement": "cpu", "_database": "db", "time": 5, "host": "a", "usage": 0.5},
        {"measurement": "cpu", "_database": "db", "time": DAY + 1, "host": "b", "usage": None},
    ]
    two = [one[0], one[1] | {"time": DAY + 2}, {"measurement": "mem", "_database": "db", "time": DAY + 2, "used": 7}]
    assert WALReader(file).read_all() == [one, two]


@pytest.mark.parametrize("rows", [1, 3, 4, 15, 16])
def test_rows_of_an_arc_installation_are_records(tmp_path: Path, rows: int) -> None:
    """Four rows make an array of four, as an envelope is."""
    file = tmp_path / "worker-1-20251010_000000.wal"
    maps = [{"measurement": "cpu", "_database": "arc", "time": n, "usage": n / 2} for n in range(rows)]
    file.write_bytes(HEADER + entry(msgpack.packb(maps), DAY))
    assert WALReader(file).read_all() == [maps]
    assert count_records(memoryview(msgpack.packb(maps))) == rows


def test_an_intact_entry_that_holds_no_records_is_skipped(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = HEADER + start()
    content += entry(b"\xc1\xc1", DAY + 1)
    content += entry(envelope(9, "db", {}, None), DAY + 2)
    content += entry(envelope(1, "db", {}, {"m": "cpu", "columns": {"a": [1], "b": [1, 2]}}), DAY + 3)
    content += entry(envelope(1, "db", {}, {"m": "cpu", "columns": {"a": 1}}), DAY + 4)
    content += entry(columnar(7), DAY + 5)
    file.write_bytes(content)
    [[record]] = WALReader(file).read_all()
    assert record["number"] == 7
    assert caplog.text.count("holds no records") == 4


def test_text_that_is_no_text_is_still_read(file: Path) -> None:
    body = msgpack.packb({"m": "cpu", "columns": {"host": ["?"], "n": [1]}}).replace(b"\xa1?", b"\xa1\xff")
    file.write_bytes(HEADER + start() + entry(b"\x94\x01\xa2db\x80" + body, DAY + 1))
    [[record]] = WALReader(file).read_all()
    assert record["n"] == 1
    assert record["host"].raw == b"\xff"


def test_the_end_entry_of_a_former_life_ends_nothing(file: Path) -> None:
    former, _ = segment([columnar(100, 80)], DAY - HOUR, closed=True)
    head = HEADER + start()
    after = entry(columnar(1, 10), DAY + 1)
    filler = columnar(2, len(former) - len(head) - len(after) - 200)
    file.write_bytes(head + after + end(5, 5, DAY - HOUR + 9) + entry(filler, DAY + 2))
    entries, _ = scan(file)
    assert numbers(entries) == [1, 2]
