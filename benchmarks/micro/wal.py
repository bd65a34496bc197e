"""The WAL compared with its disk: `python -m benchmarks.micro.wal [--data-dir DIR]`.

The first part compares `WALWriter` with a bare loop of the same `pwritev` and sync calls on the same disk. It does so
in each sync mode, over old segments and appending to new ones, in turns; figures are medians of several rounds. (In the
async mode both sync once a second and at the end of a file.)

The second part measures how fast a WAL is verified: a scan of a segment in the page cache, and its recovery at start.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console

from arcpipe.wal.directory import SegmentName, WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.group import Group
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.recovery import recover_at_start
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import SyncMode, WALOptions, WALWriter
from benchmarks.report import tables
from benchmarks.suites.device import BareWAL, old_files
from benchmarks.system import machine

SEGMENT_BYTES: Final = 64 << 20
BODY_BYTES: Final = 53 << 10  # 1000 records of `time`, two tags, three floats
SYNC_INTERVAL_SECONDS: Final = 1.0  # of the async mode
MODES: Final[tuple[SyncMode, ...]] = ("fdatasync", "fsync", "async")
GROUP_KIB: Final = (64, 512)
GOAL: Final = 0.8
SCAN_GOAL_BYTES: Final = 1e9

_body = os.urandom(BODY_BYTES)
_prefix = envelope_prefix(1, "default")


class Case(NamedTuple):
    """Groups to write: their sync mode, whether blocks are there already, and their size."""

    mode: SyncMode
    overwrite: bool
    group_kib: int

    def bodies(self) -> list[bytes]:
        """Return the bodies of a group, of the usual size; the last one is cut to fit."""
        size = self.group_kib << 10
        whole, rest = divmod(size, BODY_BYTES)
        return [_body] * whole + ([_body[:rest]] if rest else [])

    def groups(self, total_bytes: int) -> int:
        """Return the number of groups in `total_bytes`."""
        return total_bytes // (self.group_kib << 10)


def bare_seconds(case: Case, directory: Path, total_bytes: int) -> float:
    """Return the seconds of the bare loop."""
    bodies = case.bodies()
    size = sum(map(len, bodies))
    if case.overwrite:
        paths = iter(_old_files(directory, total_bytes))
    else:
        paths = (directory / f"new-{number}" for number in itertools.count())
    sync = os.fsync if case.mode == "fsync" else os.fdatasync
    started = time.perf_counter()
    bare = BareWAL(paths, SEGMENT_BYTES, sync, SYNC_INTERVAL_SECONDS if case.mode == "async" else 0.0)
    for _ in range(case.groups(total_bytes)):
        bare.write(bodies, size)
    bare.close()
    return time.perf_counter() - started


def wal_seconds(case: Case, directory: Path, total_bytes: int) -> float:
    """Return the seconds of the same through the WAL: stamped, checksummed, rotated, sealed."""
    log_directory = WALDirectory(directory)
    log_directory.make()
    if case.overwrite:
        long_ago = time.time_ns() // 1000 - 60_000_000
        for index, path in enumerate(_old_files(directory, total_bytes + 2 * SEGMENT_BYTES)):
            path.rename(Path(log_directory.free, f"{long_ago + index:020d}-old.wal"))
    options = WALOptions(
        sync_mode=case.mode,
        async_interval_seconds=SYNC_INTERVAL_SECONDS,
        max_size_bytes=SEGMENT_BYTES,
        recycle=case.overwrite,
    )
    writer = WALWriter(log_directory, 1, options)
    bodies = case.bodies()
    started = time.perf_counter()
    for _ in range(case.groups(total_bytes)):
        group = writer.new_group()
        for body in bodies:
            group.add(_prefix, body, 1000, writer.next_timestamp())
        writer.commit(group)
    if case.mode == "async":
        writer.segment.fdatasync()
    seconds = time.perf_counter() - started
    writer.close()
    return seconds


def _old_files(directory: Path, total_bytes: int) -> list[Path]:
    return old_files(directory, total_bytes // SEGMENT_BYTES + 1, SEGMENT_BYTES)


def compare(case: Case, data_directory: Path, total_bytes: int, rounds: int) -> tuple[float, float]:
    """Return the median MB/s of the bare loop and of the WAL, which take turns."""
    loops: list[Callable[[Case, Path, int], float]] = [bare_seconds, wal_seconds]
    seconds: dict[Callable[[Case, Path, int], float], list[float]] = {loop: [] for loop in loops}
    for number in range(rounds):
        for loop in loops if number % 2 else reversed(loops):
            folder = Path(tempfile.mkdtemp(prefix="wal-", dir=data_directory))
            try:
                seconds[loop].append(loop(case, folder, total_bytes))
            finally:
                shutil.rmtree(folder)
    written = case.groups(total_bytes) * (case.group_kib << 10) / 1e6
    bare, wal = (written / statistics.median(seconds[loop]) for loop in loops)
    return bare, wal


# Reading


def make_segment(directory: WALDirectory, body_bytes: int, size_bytes: int, closed: bool) -> Path:
    """Make a segment full of entries with bodies of `body_bytes`."""
    segment = Segment.make(directory, None, 1, 1, "node", sync=False)
    body = _body[:body_bytes]
    timestamp = segment.created
    while segment.offset < size_bytes:
        group = Group(segment.identity)
        for _ in range(max(1, (1 << 20) // body_bytes)):
            timestamp += 1
            group.add(_prefix, body, 1, timestamp)
        segment.write(group.buffers, group.size, group.entries, group.records, timestamp)
    if not closed:
        return Path(segment.path)
    segment.seal(0)
    return Path(directory.path, f"{SegmentName(*segment.name)}.wal.sealed")


def scan_bytes_per_second(path: Path, rounds: int) -> float:
    """Return the median speed of a verified read of a segment in the page cache."""
    speeds = []
    for _ in range(rounds):
        started = time.perf_counter()
        scan = SegmentScan(path)
        for _ in scan:
            pass
        speeds.append(scan.report.end_offset / (time.perf_counter() - started))
        assert not scan.report.damage
    return statistics.median(speeds)


def recovery_bytes_per_second(data_directory: Path, body_bytes: int, size_bytes: int, rounds: int) -> float:
    """Return the median speed of recovery of one segment: verified, sealed, synced, renamed."""
    speeds = []
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="wal-", dir=data_directory))
        try:
            directory = WALDirectory(folder)
            directory.make()
            path = make_segment(directory, body_bytes, size_bytes, closed=False)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            started = time.perf_counter()
            summary = recover_at_start(directory)
            speeds.append(summary.bytes / (time.perf_counter() - started))
        finally:
            shutil.rmtree(folder)
    return statistics.median(speeds)


def main() -> int:
    """Measure, and return the exit code: 0 if the goals are met, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro.wal", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="on the disk to measure; default: data")
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement, in turns; default: 7")
    parser.add_argument("--mb", type=int, default=256, help="written in each of them; default: 256")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    options.data_dir.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    tables.show_machine(console, machine.describe(options.data_dir))
    met = write_speeds(console, options.data_dir, options.mb << 20, options.rounds)
    return 0 if read_speeds(console, options.data_dir, options.rounds) and met else 1


def write_speeds(console: Console, data_directory: Path, total_bytes: int, rounds: int) -> bool:
    """Print the speeds of writing; return whether the goal is met."""
    console.print(f"\nWriting, MB/s, median of {rounds} alternating rounds of {total_bytes >> 20} MB")
    console.print(f"{'mode':<10} {'blocks':<12} {'group':>8} {'bare loop':>10} {'WAL':>8} {'WAL/bare':>9}")
    met = True
    for overwrite in (True, False):
        for mode in MODES:
            for group_kib in GROUP_KIB:
                case = Case(mode, overwrite, group_kib)
                bare, wal = compare(case, data_directory, total_bytes, rounds)
                blocks = "overwriting" if overwrite else "appending"
                console.print(
                    f"{mode:<10} {blocks:<12} {group_kib:>4} KiB {bare:>10.0f} {wal:>8.0f} {wal / bare:>8.0%}"
                )
                if group_kib == max(GROUP_KIB) and mode != "async":
                    met &= wal >= GOAL * bare
    console.print(f"goal: {GOAL:.0%} of a loop that syncs each {max(GROUP_KIB)} KiB: {'met' if met else 'missed'}")
    return met


def read_speeds(console: Console, data_directory: Path, rounds: int) -> bool:
    """Print the speeds of reading; return whether the goal is met."""
    console.print(f"\nVerified reading, GB/s, median of {rounds} rounds, 100 MB in the page cache")
    console.print(f"{'entries':<12} {'scan':>6} {'recovery':>9}")
    met = True
    for body_bytes in (BODY_BYTES, 1000, 100):
        folder = Path(tempfile.mkdtemp(prefix="wal-", dir=data_directory))
        try:
            directory = WALDirectory(folder)
            directory.make()
            scan = scan_bytes_per_second(make_segment(directory, body_bytes, 100_000_000, closed=True), rounds)
        finally:
            shutil.rmtree(folder)
        recovery = recovery_bytes_per_second(data_directory, body_bytes, 100_000_000, rounds)
        console.print(f"{body_bytes:>6} bytes {scan / 1e9:>6.2f} {recovery / 1e9:>9.2f}")
        if body_bytes == BODY_BYTES:
            met = scan >= SCAN_GOAL_BYTES
    console.print(f"goal: {SCAN_GOAL_BYTES / 1e9:g} GB/s scanning entries of 50 KB: {'met' if met else 'missed'}")
    return met


if __name__ == "__main__":
    sys.exit(main())
