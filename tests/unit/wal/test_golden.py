"""Format stability: files in the repository, packed by hand, read for ever.

Each file's bytes are written out below as the format's page (`arcpipe.wal`) has them, checksums included, and compared
with the file in `tests/golden/`. If one of these tests fails, a log that somebody has on disk cannot be read any more:
then the change is wrong, never the file. `python -m tests.unit.wal.test_golden` writes files that are missing.
"""

from __future__ import annotations

import base64
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from arcpipe.wal import WALReader
from arcpipe.wal.reader import Damage, SegmentScan
from arcpipe.wal.verdict import ScanVerdict
from tests.support.wal_files import written_over

GOLDEN = Path(__file__).parents[2] / "golden"

FILE_HEADER = struct.pack(">4sHB", b"ARCW", 0x0001, 0x01)

# fmt: off
START = (
    struct.pack(">IQI", 65, 1760054400000000, 0xD8E3BBBC),
    b"\x94\x00\xa0",                                              # [0, "",
    b"\x85\xa4node\xac0123456789ab\xa4slot\x01\xa3seq\x01",       #  {node, slot 1, seq 1,
    b"\xa7created\xcf\x00\x06\x40\xc2\x99\x4c\x20\x00",           #   created 1760054400000000,
    b"\xa7version\xa50.1.0\xc0",                                  #   version}, nil]
)
COLUMNAR = (
    struct.pack(">IQI", 66, 1760054400000010, 0x94BA1E75),
    b"\x94\x01\xa7metrics\x80\x82\xa1m\xa3cpu\xa7columns\x83",    # [1, "metrics", {}, {m: "cpu", columns:
    b"\xa4time\x91\xcf\x00\x06\x40\xc2\x99\x3c\xdd\xc0",          #  {time: [1760054399000000],
    b"\xa4host\x91\xa1a",                                         #   host: ["a"],
    b"\xa5usage\x91\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00",         #   usage: [0.5]}}]
)
BATCH = (
    struct.pack(">IQI", 118, 1760054400000020, 0x823DF6A6),
    b"\x94\x02\xa7default\x81\xa9precision\xa2ns\x92",            # [2, "default", {precision: "ns"}, [
    b"\x83\xa1m\xa3mem\xa7columns\x81\xa4used\x92\x01\xcd\x01\x00",  # {m: "mem", columns: {used: [1, 256]},
    b"\xa5types\x81\xa4used\xa3u64",                              #  types: {used: "u64"}},
    b"\x83\xa1m\xa4disk\xa7columns\x82\xa4path\x91\xa1/",         # {m: "disk", columns: {path: ["/"],
    b"\xa4free\x91\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",          #   free: [inf]},
    b"\xa4tags\x91\xa4path",                                      #  tags: ["path"]}]]
)
END = (
    struct.pack(">IQI", 33, 1760054400000021, 0x1CD290C0),
    b"\x94\xcc\xff\xa0\x83\xa7entries\x02\xa7records\x04",        # [255, "", {entries: 2, records: 4,
    b"\xa5bytes\xcd\x01\x30\xc0",                                 #  bytes: 304}, nil]
)
# Stale entries of the same file, of another slot, an hour before.
FORMER = (
    struct.pack(">4sHB", b"ARCW", 0x0001, 0x01),
    struct.pack(">IQI", 65, 1760050800000000, 0x115E0AD1),
    b"\x94\x00\xa0\x85\xa4node\xac0123456789ab\xa4slot\x02\xa3seq\x09",
    b"\xa7created\xcf\x00\x06\x40\xc1\xc2\xb8\x7c\x00\xa7version\xa50.1.0\xc0",
    struct.pack(">IQI", 66, 1760050800000001, 0xDE19F741),
    b"\x94\x01\xa7metrics\x80\x82\xa1m\xa3cpu\xa7columns\x83\xa4time\x91\xcf\x00\x06\x40\xc0\xec\x24\xd8\x00",
    b"\xa4host\x91\xa1z\xa5usage\x91\xcb\x40\x22\x00\x00\x00\x00\x00\x00",
    struct.pack(">IQI", 66, 1760050800000002, 0xBDC9C27B),
    b"\x94\x01\xa7metrics\x80\x82\xa1m\xa3cpu\xa7columns\x83\xa4time\x91\xcf\x00\x06\x40\xc0\xec\x24\xd8\x00",
    b"\xa4host\x91\xa1z\xa5usage\x91\xcb\x40\x24\x00\x00\x00\x00\x00\x00",
    struct.pack(">IQI", 66, 1760050800000003, 0x2A56D352),
    b"\x94\x01\xa7metrics\x80\x82\xa1m\xa3cpu\xa7columns\x83\xa4time\x91\xcf\x00\x06\x40\xc0\xec\x24\xd8\x00",
    b"\xa4host\x91\xa1z\xa5usage\x91\xcb\x40\x26\x00\x00\x00\x00\x00\x00",
)
# Arc's own payloads: an array of row maps, also of four rows (an envelope is an array of four, too) …
ARC_ROWS = (
    struct.pack(">IQI", 98, 1760054400000001, 0x5832FE51),
    b"\x92\x84\xabmeasurement\xa3cpu\xa9_database\xa3arc",
    b"\xa4time\xcf\x00\x06\x40\xc2\x99\x4c\x20\x00\xa5usage\xcb\x3f\xd0\x00\x00\x00\x00\x00\x00",
    b"\x83\xabmeasurement\xa3mem\xa4time\xcf\x00\x06\x40\xc2\x99\x4c\x20\x01\xa4used\x07",
)
ARC_FOUR_ROWS = (
    struct.pack(">IQI", 97, 1760054400000002, 0xA0A91A9F),
    b"\x94\x83\xabmeasurement\xa1m\xa4time\x00\xa1v\x0a\x83\xabmeasurement\xa1m\xa4time\x01\xa1v\x0b",
    b"\x83\xabmeasurement\xa1m\xa4time\x02\xa1v\x0c\x83\xabmeasurement\xa1m\xa4time\x03\xa1v\x0d",
)
# … and 0x01, the length of the database's name as uint16, the name, MessagePack.
ARC_COLUMNAR = (
    struct.pack(">IQI", 52, 1760054400000003, 0x88C5298F),
    b"\x01\x00\x03lab\x82\xa1m\xa4temp\xa7columns\x82\xa4time\x92\x01\x02",
    b"\xa1c\x92\xcb\x40\x34\x80\x00\x00\x00\x00\x00\xcb\x40\x35\x00\x00\x00\x00\x00\x00",
)
# Segments whose entries name them: "in" is the first key of every meta, 16 bytes of binary.
IDENTITY = b"\x00\x01\x00\x00\x00\x00\x00\x01\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7"  # slot 1, seq 1, a random number
OTHER = b"\x00\x02\x00\x00\x00\x00\x00\x09\xb0\xb1\xb2\xb3\xb4\xb5\xb6\xb7"  # slot 2, seq 9
NAMED_START = (
    struct.pack(">IQI", 100, 1760054400000000, 0x9AF3023A),
    b"\x94\x00\xa0\x87\xa2in\xc4\x10", IDENTITY,                     # [0, "", {in: …,
    b"\xa4node\xac0123456789ab\xa4slot\x01\xa3seq\x01",             #   node, slot 1, seq 1,
    b"\xa7created\xcf\x00\x06\x40\xc2\x99\x4c\x20\x00",           #   created 1760054400000000,
    b"\xa7version\xa50.2.0",                                        #   version,
    b"\xa8replaces\x92\x07\xcd\x10\x00\xc0",                        #   replaces: [7, 4096]}, nil]
)
NAMED_COLUMNAR = (
    struct.pack(">IQI", 87, 1760054400000010, 0x7237599C),
    b"\x94\x01\xa7metrics\x81\xa2in\xc4\x10", IDENTITY,              # [1, "metrics", {in: …},
    b"\x82\xa1m\xa3cpu\xa7columns\x83",                             #  {m: "cpu", columns:
    b"\xa4time\x91\xcf\x00\x06\x40\xc2\x99\x3c\xdd\xc0",          #  {time: [1760054399000000],
    b"\xa4host\x91\xa1a",                                         #   host: ["a"],
    b"\xa5usage\x91\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00",         #   usage: [0.5]}}]
)
# Of another segment, and intact: what a stale tail holds, or what a client sent as a value.
FOREIGN = (
    struct.pack(">IQI", 55, 1760054400000015, 0xA03607D5),
    b"\x94\x01\xa6secret\x81\xa2in\xc4\x10", OTHER,                  # [1, "secret", {in: …},
    b"\x82\xa1m\xa3cpu\xa7columns\x81\xa5usage\x91\x2a",            #  {m: "cpu", columns: {usage: [42]}}]
)
# A value of 71 bytes that is a whole entry.
NAMED_BLOB = (
    struct.pack(">IQI", 128, 1760054400000020, 0x40300EB6),
    b"\x94\x01\xa7metrics\x81\xa2in\xc4\x10", IDENTITY,              # [1, "metrics", {in: …},
    b"\x82\xa1m\xa4blob\xa7columns\x81\xa4data\x91\xc4\x47",        #  {m: "blob", columns: {data: [71 bytes]}}]
    *FOREIGN,
)
NAMED_LAST = (
    struct.pack(">IQI", 54, 1760054400000030, 0x77887E0F),
    b"\x94\x01\xa7metrics\x81\xa2in\xc4\x10", IDENTITY,              # [1, "metrics", {in: …},
    b"\x82\xa1m\xa3cpu\xa7columns\x81\xa3new\x91\x07",              #  {m: "cpu", columns: {new: [7]}}]
)
NAMED_END = (
    struct.pack(">IQI", 54, 1760054400000031, 0xAABF7D30),
    b"\x94\xcc\xff\xa0\x84\xa2in\xc4\x10", IDENTITY,                # [255, "", {in: …,
    b"\xa7entries\x03\xa7records\x03\xa5bytes\xcd\x01\xb8\xc0",      #  entries: 3, records: 3, bytes: 440}, nil]
)
# An Arrow IPC stream of two rows, as pyarrow 26 writes it: time (µs, UTC), host and usage, which the second row lacks.
STREAM = base64.b64decode(
    "/////+gAAAAQAAAAAAAKAAwABgAFAAgACgAAAAABBAAMAAAACAAIAAAABAAIAAAABAAAAAMAAAB4AAAAOAAAAAQAAACk////AAAB"
    "AxAAAAAcAAAABAAAAAAAAAAFAAAAdXNhZ2UABgAIAAYABgAAAAAAAgDU////AAABBRAAAAAcAAAABAAAAAAAAAAEAAAAaG9zdAAA"
    "AAAEAAQABAAAABAAFAAIAAYABwAMAAAAEAAQAAAAAAABChAAAAAgAAAABAAAAAAAAAAEAAAAdGltZQAAAAAIAAwABgAIAAgAAAAA"
    "AAIABAAAAAMAAABVVEMA//////gAAAAUAAAAAAAAAAwAFgAGAAUACAAMAAwAAAAAAwQAGAAAAEAAAAAAAAAAAAAKABgADAAEAAgA"
    "CgAAAIwAAAAQAAAAAgAAAAAAAAAAAAAABwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAEAAAAAAAAAAAAAAAAAAA"
    "ABAAAAAAAAAADAAAAAAAAAAgAAAAAAAAAAIAAAAAAAAAKAAAAAAAAAABAAAAAAAAADAAAAAAAAAAEAAAAAAAAAAAAAAAAwAAAAIA"
    "AAAAAAAAAAAAAAAAAAACAAAAAAAAAAAAAAAAAAAAAgAAAAAAAAABAAAAAAAAAMDdPJnCQAYAwd08mcJABgAAAAAAAQAAAAIAAAAA"
    "AAAAYWIAAAAAAAABAAAAAAAAAAAAAAAAAOA/AAAAAAAAAAD/////AAAAAA=="
)
NAMED_ARROW = (
    struct.pack(">IQI", 642, 1760054400000010, 0x2FB8BE5E),
    b"\x94\x03\xa7metrics\x81\xa2in\xc4\x10", IDENTITY,              # [3, "metrics", {in: …},
    b"\x85\xa1m\xa3cpu\xa4rows\x02\xa5bytes\x2f\xa4tags\x91\xa4host",  #  {m: "cpu", rows: 2, bytes: 47, tags: ["host"],
    b"\xa5arrow\xc6\x00\x00\x02\x38", STREAM,                        #   arrow: 568 bytes}]
)
NAMED_ARROW_END = (
    struct.pack(">IQI", 54, 1760054400000011, 0x3BC95AEF),
    b"\x94\xcc\xff\xa0\x84\xa2in\xc4\x10", IDENTITY,                # [255, "", {in: …,
    b"\xa7entries\x01\xa7records\x02\xa5bytes\xcd\x03\x0d\xc0",      #  entries: 1, records: 2, bytes: 781}, nil]
)
# fmt: on


start, columnar, batch, end, former = (b"".join(parts) for parts in (START, COLUMNAR, BATCH, END, FORMER))
named_start, named_columnar, named_blob, named_last, named_end, foreign = (
    b"".join(parts) for parts in (NAMED_START, NAMED_COLUMNAR, NAMED_BLOB, NAMED_LAST, NAMED_END, FOREIGN)
)
FILES: dict[str, bytes] = {
    "plain.wal": FILE_HEADER + start + columnar + batch + end,
    "recycled_tail.wal": written_over(former, FILE_HEADER + start + columnar),
    "torn.wal": FILE_HEADER + start + columnar + batch[:100],
    # One byte of the first entry's payload (the "a" of the host) is another.
    "damaged.wal": FILE_HEADER + start + columnar.replace(b"\xa1a", b"\xa1b") + batch + end,
    "arc_rows.wal": FILE_HEADER + b"".join(ARC_ROWS) + b"".join(ARC_FOUR_ROWS),
    "arc_columnar.wal": FILE_HEADER + b"".join(ARC_COLUMNAR),
    "named.wal": FILE_HEADER + named_start + named_columnar + named_blob + named_last + named_end,
    # A letter of the node's name is another.
    "named_damaged_start.wal": FILE_HEADER
    + named_start.replace(b"0123456789ab", b"0123456789aB")
    + named_columnar
    + named_blob
    + named_last
    + named_end,
    "arrow.wal": FILE_HEADER + named_start + b"".join(NAMED_ARROW) + b"".join(NAMED_ARROW_END),
    # Nothing follows the first entry but intact ones of another segment, with higher timestamps.
    "named_stale_tail.wal": FILE_HEADER + named_start + named_columnar + foreign + foreign,
    # The length in the header of the entry whose value is an entry has one bit more.
    "named_value.wal": FILE_HEADER
    + named_start
    + named_columnar
    + named_blob.replace(b"\x00\x00\x00\x80", b"\x00\x01\x00\x80", 1)
    + named_last
    + named_end,
    # The timestamp of the first entry has one bit more.
    "named_timestamp.wal": FILE_HEADER
    + named_start
    + named_columnar.replace(b"\x00\x06\x40\xc2", b"\x00\x0e\x40\xc2", 1)
    + named_blob
    + named_last
    + named_end,
}

CPU = [{"measurement": "cpu", "_database": "metrics", "time": 1760054399000000, "host": "a", "usage": 0.5}]
BATCHED = [
    {"measurement": "mem", "_database": "default", "time": 1760054400000020, "used": 1},
    {"measurement": "mem", "_database": "default", "time": 1760054400000020, "used": 256},
    {"measurement": "disk", "_database": "default", "time": 1760054400000020, "path": "/", "free": float("inf")},
]
BLOB = [{"measurement": "blob", "_database": "metrics", "time": 1760054400000020, "data": foreign}]
LAST = [{"measurement": "cpu", "_database": "metrics", "time": 1760054400000030, "new": 7}]
MOMENT = datetime(2025, 10, 9, 23, 59, 59, tzinfo=UTC)
ARROW = [
    {"measurement": "cpu", "_database": "metrics", "time": MOMENT, "host": "a", "usage": 0.5},
    {
        "measurement": "cpu",
        "_database": "metrics",
        "time": MOMENT + timedelta(microseconds=1),
        "host": "b",
        "usage": None,
    },
]
RECORDS: dict[str, list[list[dict[str, Any]]]] = {
    "plain.wal": [CPU, BATCHED],
    "recycled_tail.wal": [CPU],
    "arrow.wal": [ARROW],
    "torn.wal": [CPU],
    "damaged.wal": [BATCHED],
    "arc_rows.wal": [
        [
            {"measurement": "cpu", "_database": "arc", "time": 1760054400000000, "usage": 0.25},
            {"measurement": "mem", "_database": "default", "time": 1760054400000001, "used": 7},
        ],
        [{"measurement": "m", "_database": "default", "time": n, "v": 10 + n} for n in range(4)],
    ],
    "arc_columnar.wal": [
        [
            {"measurement": "temp", "_database": "lab", "time": 1, "c": 20.5},
            {"measurement": "temp", "_database": "lab", "time": 2, "c": 21.0},
        ]
    ],
    "named.wal": [CPU, BLOB, LAST],
    "named_damaged_start.wal": [CPU, BLOB, LAST],
    "named_stale_tail.wal": [CPU],
    "named_value.wal": [CPU, LAST],
    "named_timestamp.wal": [CPU, BLOB, LAST],
}
VERDICTS = {
    "plain.wal": ScanVerdict.CLEAN,
    "named.wal": ScanVerdict.CLEAN,
    "damaged.wal": ScanVerdict.DAMAGED,
    "named_damaged_start.wal": ScanVerdict.DAMAGED,
    "named_value.wal": ScanVerdict.DAMAGED,
    "named_timestamp.wal": ScanVerdict.DAMAGED,
}


@pytest.mark.parametrize("name", FILES)
def test_the_file_in_the_repository_has_these_bytes(name: str) -> None:
    """The file in the repository has the bytes that are written out here."""
    assert (GOLDEN / name).read_bytes() == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_its_records_are_read(name: str) -> None:
    assert WALReader(GOLDEN / name).read_all() == RECORDS[name]


def test_every_file_there_is_described_here() -> None:
    assert {path.name for path in GOLDEN.glob("*.wal")} == set(FILES)


@pytest.mark.parametrize(
    ("name", "end_offset", "torn", "damage"),
    [
        ("plain.wal", 353, 0, []),
        ("recycled_tail.wal", 170, 0, []),
        ("torn.wal", 170, 100, []),
        ("damaged.wal", 353, 0, [Damage(88, 82, "checksum mismatch: expected 94ba1e75, got c72045f1")]),
        ("arc_rows.wal", 234, 0, []),
        ("arc_columnar.wal", 75, 0, []),
        ("named.wal", 510, 0, []),
        ("named_damaged_start.wal", 510, 0, [Damage(7, 116, "checksum mismatch: expected 9af3023a, got 745edb56")]),
        ("named_stale_tail.wal", 226, 0, []),
        ("named_value.wal", 510, 0, [Damage(226, 144, "impossible payload length 65664")]),
        (
            "named_timestamp.wal",
            510,
            0,
            [Damage(123, 0, "timestamp 4011854213685258 is damaged; the entry itself is intact")],
        ),
    ],
)
def test_its_state_is_told(name: str, end_offset: int, torn: int, damage: list[Damage]) -> None:
    scan = SegmentScan(GOLDEN / name)
    entries = list(scan)
    report = scan.report
    assert report.entries == len(entries)
    assert (report.end_offset, report.torn_bytes, report.damage) == (end_offset, torn, damage)
    assert report.verdict is VERDICTS.get(name, ScanVerdict.TORN)
    assert (report.end is not None) == (name in VERDICTS)
    assert report.identity == (IDENTITY if name.startswith("named") else b"")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, content in FILES.items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(content)
