"""The time of day is set while the server runs: no duration changes, and what ends by it ends each time it comes."""

from __future__ import annotations

import re
import shutil
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_certificates import is_resumed, mutual, showing
from tests.support.http import Client, pack
from tests.support.server import Server
from tests.support.set_clock import SetClock, needs_libfaketime
from tests.support.tokens import bearer, create
from tests.support.waiting import wait_until

pytestmark = needs_libfaketime

HOUR = 3600
V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})
# A machine with much to do may be so slow between two looks.
SLACK_SECONDS = 120


def look(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = server.get("/api/v1/status").json()
    return answer


def is_well(server: Server) -> bool:
    answer = look(server)
    processes = [*answer["instance"]["workers"], answer["instance"]["uploader"]]
    issues = {issue["code"] for issue in answer["issues"]}
    return all(process["alive"] for process in processes) and issues <= {"disk_usage"}


def looks_of_a_second(server: Server) -> list[dict[str, Any]]:
    """Return the status, asked again and again while a second of the uptime passes: each process sends heartbeats."""
    seen = [look(server)]

    def is_over() -> bool:
        seen.append(look(server))
        return bool(seen[-1]["instance"]["uptime_seconds"] > seen[0]["instance"]["uptime_seconds"] + 1)

    wait_until(is_over, "a second of its uptime")
    return seen


def wait_for_a_tick_of_the_worker(server: Server) -> None:
    """Wait until the worker has looked at the clock; a whole tick began and ended since now."""

    def ticks() -> float:
        text = server.get("/metrics").body.decode()
        (found,) = re.findall(r"^arcpipe_event_loop_lag_seconds_count\{[^}]*\} (\S+)$", text, re.MULTILINE)
        return float(found)

    before = ticks()
    wait_until(lambda: ticks() >= before + 2, "a tick of the worker")


def test_a_step_of_the_clock_changes_no_duration(tmp_path: Path) -> None:
    """The store takes nothing, so that what was written waits."""
    (tmp_path / "lake").write_text("in the way of the directory")
    with SetClock(Server(tmp_path, server_workers=1)) as clock:
        server = clock.server
        server.write({"m": "cpu", "columns": {"usage": [0.5]}})
        wait_until(lambda: look(server)["instance"]["backlog_segments"], "the segment that waits")
        first, began = look(server)["instance"], time.monotonic()
        assert 0 < first["oldest_unshipped_seconds"] < SLACK_SECONDS
        for ahead in (-2 * HOUR, 0, 5 * HOUR, -26 * HOUR):
            clock.set(ahead)
            server.write({"m": "cpu", "columns": {"usage": [0.5]}})
            for answer in looks_of_a_second(server):
                now, most = answer["instance"], time.monotonic() - began + SLACK_SECONDS
                assert abs(now["time"] - clock.time()) < SLACK_SECONDS
                for name in ("uptime_seconds", "oldest_unshipped_seconds"):
                    assert first[name] <= now[name] <= first[name] + most, (name, ahead)
                [worker] = now["workers"]
                for process in (worker, now["uploader"]):
                    assert process["heartbeat_age_seconds"] < SLACK_SECONDS
                    assert process["uptime_seconds"] <= first["uptime_seconds"] + most
                assert worker["segment_age_seconds"] <= most
            wait_until(lambda: is_well(server), "an instance that is well")  # a busy machine may delay a heartbeat
        # What was warned of last is told first, whatever the clock said before.
        server.wait_for_successor("ingest 1", server.kill("ingest 1"))
        latest, *before = look(server)["instance"]["warnings"]
        assert abs(latest["time"] - clock.time()) < SLACK_SECONDS
        assert max(warning["time"] for warning in before) > latest["time"] + HOUR


def test_records_without_a_time_get_that_of_the_clock_however_it_was_set(tmp_path: Path) -> None:
    """The timestamps in the WAL never go back; over a crash, too, nothing of it is damage."""
    expected: list[float] = []
    with SetClock(Server(tmp_path, server_workers=1)) as clock:
        server = clock.server
        for ahead in (0, 5 * HOUR, -2 * HOUR, HOUR):
            clock.set(ahead)
            wait_for_a_tick_of_the_worker(server)
            columns = {"number": [len(expected)]}
            server.write([{"m": "cpu", "columns": columns}, {"m": "mem", "columns": columns}])
            expected.append(clock.time())
        server.kill_all()
        server.restart()
        for measurement in ("cpu", "mem"):
            rows = server.wait_for_rows(len(expected), measurement=measurement)  # by their time
            for row, at in zip(rows, sorted(expected), strict=True):
                assert abs(row["time"] / 1e6 - at) < SLACK_SECONDS, row
                assert row["number"] == expected.index(at)
        assert "0 corrupted" in server.log
        server.stop()


def test_a_token_ends_each_time_that_its_end_comes(tmp_path: Path) -> None:
    token = create(tmp_path, "--scope", "write", "--expires", "1h")
    ends = datetime.now(UTC).timestamp() + HOUR
    with SetClock(Server(tmp_path, auth_enabled=True, server_workers=1)) as clock, clock.server.client() as client:
        for ahead, status in ((0, 202), (2 * HOUR, 401), (0, 202), (2 * HOUR, 401), (-HOUR, 202), (HOUR + 60, 401)):
            clock.set(ahead)
            assert (clock.time() < ends) == (status == 202)
            for door in (bearer(token), {"x-api-key": token}):
                assert client.request("POST", V2, BODY, door).status == status, ahead


def test_a_session_of_former_authorities_is_over_whenever_it_began(tmp_path: Path) -> None:
    with SetClock(mutual(tmp_path)) as clock:
        server = clock.server
        clock.set(HOUR)
        begun: list[tuple[ssl.SSLContext, ssl.SSLSession | None]] = []
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            tls = showing(tmp_path, "writer", version)
            with Client(server.url, tls=tls) as client:
                assert client.request("POST", V2, BODY).status == 202
                assert isinstance(client.socket, ssl.SSLSocket)
                begun.append((tls, client.socket.session))
            assert is_resumed(server, *begun[-1])
        clock.set(0)
        shutil.copy(tmp_path / "strangers.pem", tmp_path / "clients.pem")
        server.reload()
        for ahead in (0, HOUR + 60):
            clock.set(ahead)
            for tls, session in begun:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    is_resumed(server, tls, session)
