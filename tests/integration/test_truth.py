"""An instance tells the truth about itself: what was found stays told, old figures are not believed."""

from __future__ import annotations

import os
import signal
import struct
import zlib
from pathlib import Path
from typing import Any

from prometheus_client import parser
from typer.testing import CliRunner

from arcpipe.cli import wal as cli_wal
from tests.support.faults import Fault
from tests.support.http import pack
from tests.support.server import Server
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"

HUNG_LISTING = """
import os, time
scandir = os.scandir
def hanging(path="."):
    while os.path.exists(FLAG) and str(path).endswith("/wal"):
        time.sleep(0.02)
    return scandir(path)
os.scandir = hanging
"""


def picture(server: Server) -> dict[str, Any]:
    response = server.get("/api/v1/status")
    assert response.status == 200, response
    found: dict[str, Any] = response.json()
    return found


def issues(server: Server) -> dict[str, str]:
    """Messages by code."""
    return {issue["code"]: issue["message"] for issue in picture(server)["issues"]}


def metric_names(server: Server) -> set[str]:
    """Of those that have a sample."""
    response = server.get("/metrics")
    assert response.status == 200, response
    text = response.body.decode()
    return {sample.name for family in parser.text_string_to_metric_families(text) for sample in family.samples}


def acknowledge(server: Server, *arguments: str) -> str:
    """Return the output of `arcpipe wal ack`; the process adds nothing to it."""
    done = CliRunner().invoke(cli_wal.app, ["ack", str(server.wal), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def entry(payload: bytes, number: int) -> bytes:
    return struct.pack(">IQI", len(payload), 1_759_932_330_000_000 + number, zlib.crc32(payload)) + payload


def sick_segment(directory: Path, number: int) -> None:
    """A segment with a damaged entry, one that cannot be converted, and a good one."""
    good = pack([1, "default", {}, {"m": "m", "columns": {"n": [number]}}])
    damaged = bytearray(entry(good, 2))
    damaged[-1] ^= 1
    parts = [struct.pack(">4sHB", b"ARCW", 1, 1), entry(good, 0), entry(pack("no envelope"), 1), bytes(damaged)]
    (directory / f"worker-1-20251008_140530-{number:06d}.wal").write_bytes(b"".join([*parts, entry(good, 3)]))


FOUND = {"damaged_entries", "dead_letters", "quarantine"}


def test_what_was_found_is_told_over_restarts_until_it_is_acknowledged(tmp_path: Path) -> None:
    directory = tmp_path / "wal"
    directory.mkdir()
    sick_segment(directory, 1)
    (directory / "worker-1-20251008_140530-000002.wal").write_bytes(b"this is no WAL")
    with Server(tmp_path, server_workers=1) as server:
        server.wait_for_rows(2)
        wait_until(lambda: issues(server).keys() >= FOUND, "the issues")
        server.stop()
        assert "everything is uploaded but for 1 files in quarantine and 1 damaged places" in server.log
        server.restart()
        told = issues(server)
        assert told.keys() >= FOUND
        assert told["damaged_entries"].startswith("1 damaged places")
        assert "checksum mismatch" in told["damaged_entries"]
        assert told["dead_letters"].startswith("1 entries")
        assert not picture(server)["healthy"]

        shown = acknowledge(server, "--show")
        assert "damaged_entries: 1 damaged places" in shown
        assert issues(server).keys() >= FOUND
        assert "Acknowledged" in acknowledge(server, "quarantine")
        assert issues(server).keys() & FOUND == {"damaged_entries", "dead_letters"}
        assert "worker-1-20251008_140530-000001" in acknowledge(server)
        assert not issues(server).keys() & FOUND
        assert picture(server)["instance"]["segments"]["quarantine"]["files"] == 1
        assert "nothing to acknowledge" in acknowledge(server)

        server.stop()
        sick_segment(directory, 3)
        server.restart()
        wait_until(lambda: issues(server).keys() >= FOUND - {"quarantine"}, "the new issues")
        assert issues(server)["damaged_entries"].startswith("1 damaged places")
        server.wait_for_rows(4)
        server.stop()


def test_nothing_is_taken_by_figures_that_nobody_measures_any_more(tmp_path: Path) -> None:
    """20 MB were taken against a limit of 1 MB while the supervisor hung."""
    body = pack({"m": "m", "columns": {"pad": ["x" * 1000] * 500}})
    with Server(tmp_path, wal_max_size_mb=1, wal_max_backlog_mb=1, server_workers=1) as server:
        os.kill(server.pids()["uploader"], signal.SIGSTOP)
        os.kill(server.pid, signal.SIGSTOP)
        assert server.post(V2, body).status == 202
        refused = wait_until(lambda: found if (found := server.post(V2, b"\xc0")).status == 503 else None, "a refusal")
        assert "the supervisor hangs" in refused.reason
        assert server.post(V2, body).status == 503
        assert server.get("/ready").status == 503
        assert server.get("/health").status == 200
        told = issues(server)
        assert "no heartbeat" in told["supervisor_down"]
        assert "arcpipe_backlog_bytes" not in metric_names(server)  # it would be old
        os.kill(server.pid, signal.SIGCONT)
        wait_until(lambda: "supervisor_down" not in issues(server), "the issue to be gone")
        assert "arcpipe_backlog_bytes" in metric_names(server)
        wait_until(lambda: server.post(V2, body).status == 202, "writes to go on")


def test_a_disk_that_does_not_answer_holds_up_no_answer_about_it(tmp_path: Path) -> None:
    server = Server(tmp_path, server_workers=1)
    fault = Fault(server, HUNG_LISTING)
    body = pack({"m": "m", "columns": {"n": [1]}})
    with server:
        assert server.post(V2, body).status == 202
        server.wait_for_rows(1)
        fault.on()
        try:
            told = wait_until(lambda: found if "supervisor_down" in (found := issues(server)) else None, "the issue")
            assert "has not answered for" in told["wal_unlisted"]
            names = metric_names(server)
            assert "arcpipe_records_total" in names
            assert "arcpipe_wal_disk_free_bytes" not in names
            # No write that is taken, as the WAL may wait for the disk, too.
            wait_until(lambda: server.post(V2, b"\xc0").status == 503, "writes to be refused")
        finally:
            fault.off()
        wait_until(lambda: not issues(server).keys() & {"supervisor_down", "wal_unlisted"}, "the issues to be gone")
        wait_until(lambda: server.post(V2, body).status == 202, "writes to go on")
        server.wait_for_rows(2)
        server.stop()


def test_files_that_cannot_be_looked_at_stop_nothing_else(tmp_path: Path) -> None:
    """A name that leads to itself fails at stat, as a damaged inode does."""
    sick = [tmp_path / "wal" / f"worker-1-20251008_140530-000001{suffix}" for suffix in (".wal", ".wal.sealed")]
    (tmp_path / "wal").mkdir()
    for path in sick:
        path.symlink_to(path.name)
    with Server(tmp_path, server_workers=1, shutdown_drain_seconds=1) as server:
        for number in range(3):
            assert server.post(V2, pack({"m": "m", "columns": {"n": [number]}})).status == 202
        server.wait_for_rows(3)
        told = wait_until(lambda: found if "unreadable_segments" in (found := issues(server)) else None, "the issue")
        assert "Too many levels of symbolic links" in told["wal_unlisted"]
        wait_until(lambda: len(picture(server)["issues"]) >= 3, "both to be told")
        assert {"arcpipe_backlog_bytes", "arcpipe_wal_files"} <= metric_names(server)
        server.stop()
        assert "stopped; the next start goes on with 1 segments that could not be recovered and 1 seal" in server.log


def test_another_directory_in_the_place_of_the_wal_leaves_it_unknown(tmp_path: Path) -> None:
    """Another directory in the place of the WAL makes it unknown whether all is uploaded."""
    with Server(tmp_path, server_workers=1, shutdown_drain_seconds=1, flush_max_age_seconds=1000) as server:
        assert server.post(V2, pack({"m": "m", "columns": {"n": [1]}})).status == 202
        server.wal.rename(tmp_path / "away")
        wait_until(lambda: issues(server).get("wal_replaced"), "the issue")
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 4
        assert "stopped; whether everything is uploaded is unknown:" in server.log
        assert "everything is uploaded\n" not in server.log
