"""Parts without a server: the WAL against a bare disk loop, its reader against reading, conversion against an encoder.

`python -m benchmarks.guard.alone DIRECTORY ROUNDS CASE…` measures them in a process of its own, whose allocator and
threads are those of the uploader. It prints the pairs of each case as JSON.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.allocator import keep_freed_memory
from arcpipe.upload.uploader import GARBAGE_OBJECTS, KEPT_MEMORY_BYTES
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.format import crc32, envelope_prefix
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.writer import WALOptions, WALWriter
from benchmarks.guard.baseline import Pair
from benchmarks.micro.convert import START_US, convert, read_entries, write_entries
from benchmarks.suites.device import BareWAL

DISK: Final = "bare disk loop"
ENCODE: Final = "pyarrow encode"
_SEGMENT_BYTES: Final = 64 << 20
_READ_BYTES: Final = 256 << 10
_LARGE_BODY_BYTES: Final = 53 << 10  # 1000 records of `time`, two tags, three floats
_SMALL_BODY_BYTES: Final = 100  # one such record
_ENCODED_ROWS: Final = 100_000
_PREFIX: Final = envelope_prefix(1, "default")

Piece = Callable[[], float]
"""Does a piece of work; returns its CPU time in µs of a unit."""


class Case(NamedTuple):
    """A part and its reference."""

    name: str
    reference: str
    unit: str
    pieces: Callable[[Path], tuple[Piece, Piece]]  # of the part and of the reference; files go into the directory


def take_turns(case: Case, directory: Path, rounds: int) -> list[Pair]:
    """Return the costs of a case, round by round."""
    part, reference = case.pieces(directory)
    pairs = [Pair(part(), reference()) for _ in range(rounds + 2)]
    return pairs[2:]  # the first two warm caches


def _cpu_us(work: Callable[[], Any], units: float) -> float:
    before = time.process_time_ns()
    work()
    return (time.process_time_ns() - before) / 1000 / units


# The WAL against a bare loop of the same writes and syncs


def _commits(body_bytes: int, bodies_each: int, groups: int) -> Callable[[Path], tuple[Piece, Piece]]:
    """Return what makes the pieces of a case: commits of groups that are alike."""
    body = os.urandom(body_bytes)

    def wal(folder: Path) -> None:
        directory = WALDirectory(folder)
        directory.make()
        writer = WALWriter(directory, 1, WALOptions(max_size_bytes=_SEGMENT_BYTES, recycle=False))
        for _ in range(groups):
            group = writer.new_group()
            for _ in range(bodies_each):
                group.add(_PREFIX, body, 1, writer.next_timestamp())
            writer.commit(group)
        writer.close()

    def bare(folder: Path) -> None:
        paths = (folder / f"new-{number}" for number in itertools.count())
        loop = BareWAL(paths, _SEGMENT_BYTES, os.fdatasync)
        size = body_bytes * bodies_each
        buffers = [body] * bodies_each if body_bytes == _LARGE_BODY_BYTES else [body * bodies_each]
        for _ in range(groups):
            loop.write(buffers, size)
        loop.close()

    def make(directory: Path) -> tuple[Piece, Piece]:
        def piece(work: Callable[[Path], None]) -> Piece:
            return lambda: _in_folder(directory, lambda folder: _cpu_us(lambda: work(folder), groups))

        return piece(wal), piece(bare)

    return make


def _in_folder(directory: Path, work: Callable[[Path], float]) -> float:
    """Run a piece in a new folder, and remove it: its pages are those of the next piece."""
    folder = Path(tempfile.mkdtemp(prefix="wal-", dir=directory))
    try:
        return work(folder)
    finally:
        shutil.rmtree(folder)


# Its reader against reading and checksums


def _scan(body_bytes: int, size_bytes: int) -> Callable[[Path], tuple[Piece, Piece]]:
    """Return what makes the pieces of a case: a sealed segment of `size_bytes`, in the page cache."""

    def make(directory: Path) -> tuple[Piece, Piece]:
        wal = WALDirectory(tempfile.mkdtemp(prefix="wal-", dir=directory))
        wal.make()
        body = os.urandom(body_bytes)
        writer = WALWriter(wal, 1, WALOptions(sync_mode="off", max_size_bytes=2 * size_bytes, recycle=False))
        for _ in range(size_bytes // (1 << 20)):
            group = writer.new_group()
            for _ in range((1 << 20) // body_bytes):
                group.add(_PREFIX, body, 1, writer.next_timestamp())
            writer.commit(group)
        writer.close()
        [segment] = wal.segments(SEALED)
        mb = size_bytes / (1 << 20)
        return (
            lambda: _cpu_us(lambda: _drop(SegmentScan(segment.path)), mb),
            lambda: _cpu_us(lambda: _read(segment.path), mb),
        )

    return make


def _drop(items: Iterable[object]) -> None:
    for _ in items:
        pass


def _read(path: str) -> None:
    """Read a file, and compute its checksum."""
    checksum = 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_READ_BYTES):
            checksum = crc32(piece, checksum)


# Conversion against pyarrow's encoder alone


def _conversion(kind: str, rows: int) -> Callable[[Path], tuple[Piece, Piece]]:
    """Return what makes the pieces of a case of `micro.convert`, and of `_ENCODED_ROWS` of its table `mixed`."""

    def make(directory: Path) -> tuple[Piece, Piece]:
        path = directory / "entries"
        write_entries(path, kind, rows)
        payloads = [bytes(payload) for payload in read_entries(path)]
        table = _table(_ENCODED_ROWS)
        return (
            lambda: _cpu_us(lambda: convert(payloads, threads=1, directory=directory), rows / 1000),
            lambda: _cpu_us(lambda: _encode(table), _ENCODED_ROWS / 1000),
        )

    return make


def _table(rows: int) -> pa.Table:
    """Return rows as those of `mixed`: a time, two tags, three floats that nothing compresses."""
    source = np.random.default_rng(1)
    return pa.table(
        {
            "time": pa.array(START_US + np.arange(rows) * 400, pa.timestamp("us", "UTC")),
            "host": pa.array([f"host-{value}" for value in source.integers(0, 500, rows)]).dictionary_encode(),
            "region": pa.array([f"region-{value}" for value in source.integers(0, 4, rows)]).dictionary_encode(),
            **{f"usage{number}": source.random(rows) * 100 for number in range(3)},
        }
    )


def _encode(table: pa.Table) -> None:
    pq.write_table(
        table,
        pa.BufferOutputStream(),
        compression="zstd",
        compression_level=1,
        use_dictionary=["host", "region"],
        write_page_index=True,
    )


CASES: Final = (
    Case("WAL, groups of ten bodies", DISK, "commit", _commits(_LARGE_BODY_BYTES, 10, 32)),
    Case("WAL, groups of 100 records", DISK, "commit", _commits(_SMALL_BODY_BYTES, 100, 64)),
    Case("WAL read, 1000 records an entry", DISK, "MB", _scan(_LARGE_BODY_BYTES, 32 << 20)),
    Case("WAL read, 1 record an entry", DISK, "MB", _scan(_SMALL_BODY_BYTES, 4 << 20)),
    Case("to Parquet, 1000 rows an entry", ENCODE, "1000 rows", _conversion("mixed", 200_000)),
    Case("to Parquet, numbers", ENCODE, "1000 rows", _conversion("numeric-heavy", 100_000)),
    Case("to Parquet, 10 rows an entry", ENCODE, "1000 rows", _conversion("10 rows", 50_000)),
    Case("to Parquet, 1 row an entry", ENCODE, "1000 rows", _conversion("1 row", 10_000)),
)


def main(directory: Path, rounds: int, names: list[str]) -> None:
    """Print the pairs of the named cases."""
    logging.disable(logging.WARNING)
    keep_freed_memory(KEPT_MEMORY_BYTES)
    gc.set_threshold(GARBAGE_OBJECTS)
    found = {}
    for case in CASES:
        if case.name in names:
            with tempfile.TemporaryDirectory(prefix="guard-", dir=directory) as folder:
                found[case.name] = take_turns(case, Path(folder), rounds)
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
