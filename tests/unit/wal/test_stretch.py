"""Stretches of small entries: what a walk yields by them is what it yields one by one, however a file is damaged."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcpipe.wal.reader import Entry, ScanReport, SegmentScan
from arcpipe.wal.stretch import Stretch
from tests.support.sets import IS_LONG
from tests.support.wal_files import DAY, IDENTITY, NAME, OTHER, columnar, segment


def plain(report: ScanReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in ScanReport.__slots__}


def singles(scan: SegmentScan) -> Iterator[tuple[int, int, bytes]]:
    """The entries of a scan by stretches, one by one."""
    for item in scan.by_stretches():
        if isinstance(item, Entry):
            yield item.offset, item.timestamp, bytes(item.payload)
            continue
        for number, offset in enumerate(item.offsets.tolist()):
            payload = item.data[int(item.starts[number]) : int(item.ends[number])]
            yield offset, int(item.timestamps[number]), bytes(payload)


def both_ways(file: Path, content: bytes) -> ScanReport:
    """Read a file both ways, and compare everything."""
    file.write_bytes(content)
    one_by_one = SegmentScan(file)
    by_stretches = SegmentScan(file, gently=True)
    wanted = [(offset, timestamp, bytes(payload)) for offset, timestamp, payload in one_by_one]
    assert list(singles(by_stretches)) == wanted
    assert plain(by_stretches.report) == plain(one_by_one.report)
    return by_stretches.report


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / f"{NAME}.wal.sealed"


def small_entries(count: int, source: random.Random) -> list[bytes]:
    """Payloads of two databases, of few sizes or of many, and sometimes a large one."""
    sizes = source.choice([range(1), range(3), range(60)])
    databases = source.choice([["default"], ["default", "another one"]])
    large = source.choice([0, 0, 0.01])
    return [
        columnar(
            number,
            5_000 if source.random() < large else source.choice(sizes),
            identity=IDENTITY,
            database=source.choice(databases),
        )
        for number in range(count)
    ]


def test_small_entries_come_by_stretches(file: Path) -> None:
    content, offsets = segment(
        [columnar(number, identity=IDENTITY) for number in range(1_000)], closed=True, identity=IDENTITY
    )
    report = both_ways(file, content)
    assert (report.entries, report.damage) == (1_000, [])
    items = list(SegmentScan(file, gently=True).by_stretches())
    stretches = [item for item in items if isinstance(item, Stretch)]
    assert sum(len(stretch.ends) for stretch in stretches) > 900
    assert len(items) < 100
    part = stretches[0].cut(3, 10)
    assert part.offsets.tolist() == stretches[0].offsets.tolist()[3:10]
    assert set(part.offsets.tolist()) < set(offsets)


@pytest.mark.parametrize("seed", range(40 if IS_LONG else 5))
def test_sizes_databases_and_windows_change_nothing(file: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(seed)
    monkeypatch.setattr("arcpipe.wal.source.WINDOW_BYTES", source.choice([3_000, 20_000, 1 << 20]))
    content, _ = segment(small_entries(600, source), closed=source.random() < 0.7, identity=IDENTITY)
    assert both_ways(file, content).entries == 600


@pytest.mark.parametrize("seed", range(500 if IS_LONG else 25))
def test_damage_is_found_where_it_is_and_costs_no_other_entry(file: Path, seed: int) -> None:
    """A bit of a header or a payload, a false time or length, an entry of another segment, a hole, an early end."""
    source = random.Random(seed)
    payloads = small_entries(120, source)
    for _ in range(source.randrange(3)):
        payloads[source.randrange(120)] = columnar(7, identity=source.choice([OTHER, b""]))
    content, offsets = segment(payloads, closed=source.random() < 0.7, identity=IDENTITY)
    damaged = bytearray(content)
    for _ in range(source.randrange(1, 4)):
        at = source.choice(offsets)
        match source.randrange(5):
            case 0:
                damaged[at + source.randrange(40)] ^= 1 << source.randrange(8)
            case 1:
                times = [0, DAY - 1, DAY + 50, DAY * 2, (1 << 64) - 1]
                struct.pack_into(">Q", damaged, at + 4, source.choice(times))
            case 2:
                struct.pack_into(">I", damaged, at, source.choice([0, 1, 20, 500, 1 << 20, (1 << 32) - 1]))
            case 3:
                damaged[at : at + 300] = bytes(len(damaged[at : at + 300]))
            case _:
                del damaged[source.randrange(at, len(damaged)) :]
                offsets = [offset for offset in offsets if offset + 40 < len(damaged)]
    both_ways(file, bytes(damaged))


def test_every_byte_of_an_entry_in_a_stretch_is_checked(file: Path) -> None:
    content, offsets = segment(
        [columnar(number, identity=IDENTITY) for number in range(60)], closed=True, identity=IDENTITY
    )
    for at in range(offsets[30], offsets[31], 1 if IS_LONG else 7):
        damaged = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        assert both_ways(file, damaged).damage
