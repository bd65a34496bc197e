"""A disk that cannot read for a while, or in places for good: never taken for zeros, for an empty file or for its end.

All on real servers whose reads fail (`io_faults`): while they start, while one of their processes is replaced, and in
the uploader.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.crash.io_faults import FaultyIO, Rule
from tests.crash.numbered import (
    CATCH_UP_SECONDS,
    KilledServers,
    Numbered,
    contents,
    each_once,
    is_shipped,
    is_told_by_health,
    problems,
)
from tests.support.program import COMMAND, environment
from tests.support.server import Server
from tests.support.waiting import wait_until

RECORDS = 100
SEGMENTS = "*/worker-*.wal*"
PLACES = ("the first block", "after the first block", "the last quarter")

pytestmark = pytest.mark.timeout(300)


def fail_reads(faults: FaultyIO, place: str, size: int, path: str = SEGMENTS, process: str = "*") -> Rule:
    """EIO in a part of segments whose entries take `size` bytes."""
    start, end = {"the first block": (0, 4096), "after the first block": (4096, size), "the last quarter": (0, size)}[
        place
    ]
    if place == "the last quarter":
        start = size * 3 // 4 // 4096 * 4096
    return faults.set("read", path, errno.EIO, start=start, end=end, process=process)


def size_of_entries(segment: Path) -> int:
    """Where the last byte is that is not zero: segments are made at their full size."""
    return len(segment.read_bytes().rstrip(b"\0"))


@pytest.mark.parametrize("place", PLACES)
def test_reads_that_fail_at_the_start(
    tmp_path: Path, killed_servers: KilledServers, faults: FaultyIO, place: str
) -> None:
    numbered = killed_servers.copy(tmp_path, RECORDS)
    server = numbered.server
    (name,) = (name for name in server.segments(".wal") if size_of_entries(server.wal / name) > 1000)
    before = contents(server.wal, name)
    server.variables |= faults.variables
    failing = fail_reads(faults, place, size_of_entries(server.wal / name))
    with server:
        assert failing.hits > 0
        is_told = is_told_by_health(server)
        numbered.write()  # it serves all the same
        is_untouched = contents(server.wal, name) == before
        failing.end()
        wait_until(lambda: not (server.wal / name).exists(), "the segment to be sealed", CATCH_UP_SECONDS)
        _wait_for(numbered)
        server.stop()
        seen = str(numbered.account()), is_told, is_untouched
    assert seen == (each_once(RECORDS + 1), True, True)


@pytest.mark.parametrize("place", PLACES)
def test_reads_that_fail_while_a_worker_is_replaced(tmp_path: Path, faults: FaultyIO, place: str) -> None:
    server = Server(tmp_path, server_workers=2, flush_max_age_seconds=3600)
    server.variables |= faults.variables
    with server:
        numbered = Numbered(server)
        numbered.write(RECORDS)  # on one connection, so in one segment
        sizes = {name: size_of_entries(server.wal / name) for name in server.segments(".wal")}
        name = max(sizes, key=lambda name: sizes[name])
        slot = name.split("-")[1]
        failing = fail_reads(faults, place, sizes[name], f"*/{name}*")
        before = (server.wal / name).read_bytes()[: sizes[name]]
        server.wait_for_successor(f"ingest {slot}", server.kill(f"ingest {slot}"))
        wait_until(lambda: failing.hits, "a read that fails")
        is_told = is_told_by_health(server)
        with_rest = contents(server.wal, name).get(name, b"")[: sizes[name]]
        wait_until(lambda: numbered.try_to_write().status == 202, "the successor to write")
        failing.end()
        wait_until(lambda: not (server.wal / name).exists(), "the segment to be sealed", CATCH_UP_SECONDS)
        server.stop()
        seen = str(numbered.account()), is_told, with_rest == before
    assert seen == (each_once(RECORDS + 1), True, True)


@pytest.mark.parametrize("place", PLACES)
def test_reads_that_fail_in_the_uploader(tmp_path: Path, faults: FaultyIO, place: str) -> None:
    server = Server(tmp_path, server_workers=1, flush_max_age_seconds=3600, flush_max_records=RECORDS)
    server.variables |= faults.variables
    with server:
        numbered = Numbered(server)
        # About 1050 bytes each.
        failing = fail_reads(faults, place, 1050 * RECORDS, "*/worker-*.wal.sealed", "*uploader*")
        numbered.write(RECORDS)
        wait_until(lambda: failing.hits, "a read that fails")
        is_told = is_told_by_health(server)
        kept = [name for name in server.segments(".wal.sealed") if size_of_entries(server.wal / name) > 1000]
        failing.end()
        wait_until(lambda: is_shipped(server), "the segment to be shipped", CATCH_UP_SECONDS)
        server.stop()
        seen = str(numbered.account()), is_told, len(kept), os.listdir(server.wal / "quarantine")
    assert seen == (each_once(RECORDS), True, 1, [])


def test_a_segment_that_can_never_be_read_whole(
    tmp_path: Path, killed_servers: KilledServers, faults: FaultyIO
) -> None:
    """The others ship; what can be read of it is saved, taken in, and there once."""
    numbered = killed_servers.copy(tmp_path, RECORDS)
    server = numbered.server
    (name,) = (name for name in server.segments(".wal") if size_of_entries(server.wal / name) > 1000)
    size = size_of_entries(server.wal / name)
    stem = name.removesuffix(".wal")
    bad = size // 2 // 4096 * 4096
    server.variables |= faults.variables
    failing = faults.set("read", f"*/wal/{stem}.wal*", errno.EIO, start=bad, end=bad + 4096)
    with server:
        assert failing.hits > 0
        others = [numbered.next_number() for _ in range(20)]
        for number in others:
            assert numbered.try_to_write(number).status == 202
        numbered.wait_until_in_lake(set(others))
        assert is_told_by_health(server)
        named = [issue for issue in problems(server) if stem in issue["message"] + issue["recommendation"]]
        (kept,) = server.wal.glob(f"{stem}.wal*")
        assert size_of_entries(kept) >= size
        assert set(numbered.numbers_in_lake()) == set(others)

        saved = tmp_path / "saved"
        saved.mkdir()
        told = _arcpipe(server, "wal", "salvage", str(kept), str(saved / f"{stem}.wal"))
        assert "unreadable" in told or "cannot be read" in told or "read error" in told, told
        assert str(bad) in told, "it says where"
        away = tmp_path / "away"
        away.mkdir()
        kept.rename(away / kept.name)
        _arcpipe(server, "wal", "replay", str(saved))
        readable = {number for number in numbered.acknowledged if number not in others}
        wait_until(
            lambda: len(set(numbered.numbers_in_lake()) - set(others)) >= len(readable) - 8,
            "the rest",
            CATCH_UP_SECONDS,
        )
        wait_until(lambda: not problems(server), "health to be content again", CATCH_UP_SECONDS)
        server.stop()
        account = numbered.account()
    # The bad block is 4096 bytes, and so takes up to 5 entries of 1050.
    assert account.twice == account.unexpected == []
    assert 1 <= len(account.lost) <= 6, account
    assert account.lost == list(range(account.lost[0], account.lost[-1] + 1))
    assert named, "health names the file"


def _wait_for(numbered: Numbered) -> None:
    """Waits until nothing waits; what is there then is for the account."""
    wait_until(
        lambda: is_shipped(numbered.server) and len(numbered.numbers_in_lake()) > 0,
        "the backlog to be empty",
        CATCH_UP_SECONDS,
    )


def _arcpipe(server: Server, *arguments: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=server.directory,
        env=environment(**server.settings) | server.variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
