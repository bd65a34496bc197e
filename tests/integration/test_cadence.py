"""The cadence of a real server: one file per table and interval, of all workers' segments."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.support.http import pack
from tests.support.lake import lake_files, lake_rows
from tests.support.server import Server
from tests.support.waiting import wait_until

NEVER = 10_000_000
NEW_YEAR = 1_767_225_600


def write(server: Server, number: int) -> None:
    """Write a row on a connection of its own, to whichever worker takes it."""
    body = pack({"m": "m", "columns": {"time": [NEW_YEAR], "n": [number]}})
    assert server.post("/write/v2/msgpack", body).status == 202


def write_to_both(server: Server, first: int) -> int:
    """Write rows until each of two workers has a segment with some. Returns the next number."""
    sizes: Callable[[], list[int]] = lambda: [  # noqa: E731
        (server.wal / name).read_bytes().count(b"\xa1m") for name in server.segments(".wal")
    ]
    while sum(size > 0 for size in sizes()) < 2:
        write(server, first)
        first += 1
    return first


def numbers(lake: Path) -> list[int]:
    return sorted(row["n"] for row in lake_rows(lake))


def test_first_batch_has_what_all_workers_hold(tmp_path: Path) -> None:
    """The first one to seal is followed by the other, however young its records are."""
    with Server(tmp_path, flush_max_age_seconds=6, uploader_interval_seconds=NEVER) as server:
        written = write_to_both(server, 0)
        server.wait_for_rows(written)
        assert len(lake_files(server.lake)) == 1
        server.stop()


def test_steady_stream_makes_a_file_per_interval(tmp_path: Path) -> None:
    with Server(tmp_path, flush_max_age_seconds=0.2, uploader_interval_seconds=3) as server:
        number, began = 0, time.monotonic()
        while len(lake_files(server.lake)) < 3:
            write(server, number)
            number += 1
            time.sleep(0.02)
        assert time.monotonic() - began > 6  # two intervals lie between three batches
        server.stop()
        assert numbers(server.lake) == list(range(number))


def test_stop_uploads_what_waits_for_its_turn(tmp_path: Path) -> None:
    with Server(tmp_path, flush_max_age_seconds=0.2, uploader_interval_seconds=NEVER) as server:
        write(server, 0)
        server.wait_for_rows(1)
        write(server, 1)
        wait_until(lambda: server.segments(".wal.sealed"), "a segment that waits")
        status = server.get("/api/v1/status").json()
        assert status["healthy"], status["issues"]
        assert status["instance"]["next_batch_seconds"] > 1000
        server.stop()
        server.assert_log_is_shipped()
        assert numbers(server.lake) == [0, 1]


def test_uploader_that_is_killed_keeps_the_cadence(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=0.2, uploader_interval_seconds=NEVER) as server:
        write(server, 0)
        server.wait_for_rows(1)
        for number in (1, 2):
            write(server, number)
            wait_until(lambda: server.segments(".wal.sealed"), "a segment that waits")
            server.wait_for_successor("uploader", server.kill("uploader"))
        assert len(lake_files(server.lake)) == 1
        server.kill_all()
        server.restart()
        wait_until(lambda: server.get("/api/v1/status").json()["instance"]["waiting_segments"], "what waits")
        assert len(lake_files(server.lake)) == 1
        server.stop()
        server.assert_log_is_shipped()
        assert numbers(server.lake) == [0, 1, 2]
        assert len(lake_files(server.lake)) == 2
