"""Compaction as a user meets it: the server's own process, and `arcpipe compact`."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path

import pytest

from tests.support import preloaded
from tests.support.compaction import HOUR_US
from tests.support.lake import lake_files, lake_rows, numbers
from tests.support.program import environment
from tests.support.server import Server
from tests.support.waiting import wait_until

DAY = HOUR_US // 1_000_000


def _has_more(server: Server, files: int) -> bool:
    return len(lake_files(server.lake)) > files


def fill(server: Server, batches: int = 4) -> None:
    """Write records of a closed hour, in several batches, so that there are several files."""
    for number in range(batches):
        files = len(lake_files(server.lake))
        columns = {"time": [DAY + n for n in range(10)], "n": [number * 10 + n for n in range(10)]}
        server.write({"m": "cpu", "columns": columns})
        wait_until(functools.partial(_has_more, server, files), "the upload")


def age(lake: Path) -> None:
    """Make the files older than any request that may be late."""
    for path in lake_files(lake):
        os.utime(path, (time.time() - 3600,) * 2)


def compact(server: Server, *arguments: str, code: int = 0) -> str:
    done = preloaded.run(
        "compact", *arguments, directory=server.directory, environ=environment(**server.settings) | server.variables
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, server_workers=1)


def test_arcpipe_compact_merges_beside_a_running_server(server: Server) -> None:
    with server:
        fill(server)
        for arguments in (["--dry-run"], []):
            said = compact(server, *arguments)
            assert "Nothing is worth merging. Files are merged once their hour is closed" in said
        age(server.lake)
        [row] = map(json.loads, compact(server, "--dry-run", "--json").splitlines())
        assert (row["database"], row["measurement"], row["hour"], row["files"]) == (
            "default",
            "cpu",
            "2026-01-01T00",
            4,
        )
        assert "Nothing" in compact(server, "--dry-run", "--before", "2025-12-31")
        assert "Nothing" in compact(server, "--dry-run", "--database", "default", "--measurement", "mem")
        assert len(lake_files(server.lake)) == 4
        said = compact(server, "--database", "default", "--measurement", "cpu")
        assert "default cpu 2026-01-01T00: 4 files became 1" in said
        assert len(lake_files(server.lake)) == 1
        assert numbers(server.lake) == list(range(40))
        fill(server, 1)  # the server goes on as before
        assert len(lake_rows(server.lake)) == 50
        server.stop()


def test_arcpipe_compact_refuses_a_directory_that_no_server_used(server: Server) -> None:
    assert "no server has used this WAL directory" in compact(server, code=1)


def test_wrong_options_of_arcpipe_compact_are_told(server: Server) -> None:
    assert "needs --database" in compact(server, "--measurement", "cpu", code=2)
    assert "2026-11-28T14:00" in compact(server, "--before", "yesterday", code=2)


def test_the_server_compacts_what_is_closed(server: Server) -> None:
    with server:
        fill(server)
        server.stop()
    age(server.lake)
    server.settings["compaction_enabled"] = "true"
    with server:
        wait_until(lambda: len(lake_files(server.lake)) == 1, "the merge")
        wait_until(lambda: "both were visible for" in server.log, "its line in the log")
        assert "compacted default/cpu/2026/01/01/00: 4 files became 1" in server.log
        assert numbers(server.lake) == list(range(40))
        server.stop()


def test_a_compaction_process_that_is_killed_is_replaced(server: Server) -> None:
    server.settings["compaction_enabled"] = "true"
    with server:

        def pid() -> int:
            return server.pids().get("compaction", 0)

        first = wait_until(pid, "the process")
        os.kill(first, 9)
        wait_until(lambda: pid() not in (0, first), "its successor")
        server.stop()
