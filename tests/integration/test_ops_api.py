"""The instance's own account during real load and over several workers; each health issue is provoked for real."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser

from tests.crash.small_disks import small_disk
from tests.support.http import Client, Response, pack
from tests.support.load import Load
from tests.support.server import Server
from tests.support.waiting import wait_until

NEVER = 100_000.0
V2 = "/write/v2/msgpack"
STATS = {
    *("worker_id", "current_file", "current_size_mb", "current_age_seconds", "sync_mode"),
    *("total_entries", "total_bytes", "total_syncs", "total_rotations"),
}


def body(values: list[Any], measurement: str = "m", pad: int = 0) -> bytes:
    columns: dict[str, list[Any]] = {"v": values}
    if pad:
        columns["pad"] = ["x" * pad] * len(values)
    return pack({"m": measurement, "columns": columns})


def samples(server: Server) -> dict[tuple[str, ...], float]:
    """(name, label values…) to value, of /metrics."""
    response = server.get("/metrics")
    assert response.status == 200
    found = {}
    for family in parser.text_string_to_metric_families(response.body.decode()):
        for sample in family.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    return found


def summed(server: Server, name: str) -> float:
    return sum(value for key, value in samples(server).items() if key[0] == name)


def health(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/api/wal/health").json()
    return found


def client_of(server: Server, worker: int) -> Client:
    """A connection that this worker has taken."""
    while True:
        client = server.client()
        if client.request("GET", "/api/wal/stats").json()["worker_id"] == worker:
            return client
        client.__exit__()


def codes(server: Server) -> set[str]:
    return {alert["code"] for alert in health(server)["alerts"]}


# Fields


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that ask it something and change nothing."""
    with Server(tmp_path_factory.mktemp("asked"), server_workers=1) as server:
        yield server
        server.stop()


def test_every_endpoint_has_the_fields_of_the_original_under_both_paths(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2) as server, Load(server, pause_seconds=0.01) as load:
        load.wait_for_requests(20)
        for prefix in ("/api", "/api/v1"):
            status = server.get(f"{prefix}/wal/status").json()
            assert status["enabled"] is True
            assert set(status["configuration"]) >= {"sync_mode", "worker_id", "current_file"}
            assert status["configuration"]["sync_mode"] == "fdatasync"
            assert set(status["stats"]) >= STATS
            assert re.fullmatch(r".*/worker-[12]-\d{8}_\d{6}-\d{6}\.wal", status["stats"]["current_file"])
            assert [worker["worker_id"] for worker in status["workers"]] == [1, 2]
            assert status["totals"]["total_entries"] == sum(worker["total_entries"] for worker in status["workers"])

            assert set(server.get(f"{prefix}/wal/stats").json()) >= STATS | {"workers", "totals"}

            files = server.get(f"{prefix}/wal/files").json()
            assert set(files) >= {"active", "recovered", "total_size_mb", "wal_directory"}
            assert files["wal_directory"] == str(server.wal)
            assert set(files["active"][0]) == {"name", "size_mb", "modified", "path"}

            found = server.get(f"{prefix}/wal/health").json()
            assert (found["wal_enabled"], found["issues"]) == (True, [])
            assert set(found["stats_summary"]) == {
                *("current_size_mb", "current_age_seconds", "total_entries", "total_rotations"),
            }
            history = server.get(f"{prefix}/wal/recovery/history").json()
            assert history == {"recovered_files": [], "last_recovery": None, "total_recovered": 0}
            assert set(server.get(f"{prefix}/monitoring/buffer").json()["wal"]) >= STATS
            cleaned = server.post(f"{prefix}/wal/cleanup").json()
            assert cleaned == {
                "deleted_count": 0,
                "freed_mb": 0.0,
                "max_age_hours": 24,
                "message": "Cleaned up 0 old WAL files, freed 0.0 MB",
            }
        load.stop()
        server.stop()


def test_whichever_worker_answers_the_totals_are_those_of_all(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=3, flush_max_age_seconds=NEVER) as server:
        for number in range(30):
            assert server.post(V2, body([number] * 10)).status == 202

        def is_counted() -> bool:
            return bool(server.get("/api/wal/stats").json()["totals"]["total_records"] == 300)

        wait_until(is_counted, "all workers to have counted")
        answers = [server.get("/api/wal/stats").json() for _ in range(30)]
        assert len({answer["worker_id"] for answer in answers}) > 1
        assert {answer["totals"]["total_entries"] for answer in answers} == {30}
        assert all(answer["totals"] == answers[0]["totals"] for answer in answers)
        server.stop()


def test_recovered_files_are_listed_and_cleaned_up(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=NEVER) as server:
        assert server.post(V2, body([1])).status == 202
        server.kill_all()
        server.restart()
        wait_until(lambda: server.get("/api/wal/recovery/history").json()["total_recovered"], "the archive")
        history = server.get("/api/wal/recovery/history").json()
        (file,) = history["recovered_files"]
        assert set(file) == {"name", "size_mb", "recovered_at", "age_hours"}
        assert abs(history["last_recovery"] - time.time()) < 60
        assert server.post("/api/wal/cleanup").json()["deleted_count"] == 0
        assert server.post("/api/wal/cleanup?max_age_hours=0").json()["deleted_count"] == 1
        assert server.get("/api/wal/recovery/history").json()["total_recovered"] == 0
        server.stop()


@pytest.mark.parametrize("hours", ["-1", "x", "nan", "inf", ""])
def test_a_cleanup_with_a_senseless_age_removes_nothing_and_says_why(server: Server, hours: str) -> None:
    response = server.post(f"/api/wal/cleanup?max_age_hours={hours}")
    assert response.status == 400
    assert "max_age_hours" in response.reason


def test_with_the_log_disabled_the_endpoints_say_so(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_enabled=False) as server:
        assert server.get("/api/wal/status").json()["enabled"] is False
        assert health(server)["wal_enabled"] is False
        server.stop()


# Metrics


def test_metrics_count_what_was_done(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2, flush_max_age_seconds=0.5) as server:
        for _ in range(10):
            assert server.post(f"{V2}?db=prod", body([1, 2, 3])).status == 202
        assert server.post(V2, b"nonsense").status == 400
        assert server.get("/nowhere").status == 404
        wait_until(lambda: summed(server, "arcpipe_upload_rows_total") == 30, "the rows to be shipped")

        def counted() -> dict[tuple[str, ...], float] | None:
            found = samples(server)
            requests = sum(
                found[key] for key in found if key[0] == "arcpipe_http_requests_total" and key[1] != "/metrics"
            )
            return found if requests == 12 and found["arcpipe_healthy",] else None

        found = wait_until(counted, "the workers to have counted")
        assert found["arcpipe_http_requests_total", V2, "202"] == 10
        assert found["arcpipe_http_requests_total", V2, "400"] == 1
        assert found["arcpipe_http_requests_total", "other", "404"] == 1
        assert found["arcpipe_records_total", "prod"] == 30
        assert found["arcpipe_body_bytes_total", "prod"] == 10 * len(body([1, 2, 3]))
        assert summed(server, "arcpipe_ack_latency_seconds_count") == 10
        assert summed(server, "arcpipe_wal_sync_latency_seconds_count") == summed(server, "arcpipe_wal_syncs_total")
        assert summed(server, "arcpipe_wal_group_entries_sum") == 10
        assert found["arcpipe_upload_latency_seconds_count",] >= 1
        assert found["arcpipe_process_up", "uploader"] == 1
        for process, pid in server.pids().items():
            assert found["arcpipe_process_resident_memory_bytes", process] > 1e6
            assert found["arcpipe_process_cpu_seconds_total", process] > 0
            assert 3 < found["arcpipe_process_open_fds", process] < found["arcpipe_process_max_fds", process]
            started = found["arcpipe_process_start_time_seconds", process]
            assert started == pytest.approx(Path(f"/proc/{pid}").stat().st_ctime, abs=60)
        server.stop()


def test_counters_go_on_over_the_restart_of_a_worker(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        for _ in range(5):
            assert server.post(f"{V2}?db=a", body([1])).status == 202
        wait_until(lambda: summed(server, "arcpipe_ack_latency_seconds_count") == 5, "the worker to have counted")
        server.wait_for_successor("ingest 1", server.kill("ingest 1"))
        for _ in range(5):
            assert server.post(f"{V2}?db=a", body([1])).status == 202
        wait_until(lambda: summed(server, "arcpipe_ack_latency_seconds_count") == 10, "the counters to have gone on")
        found = samples(server)
        assert found["arcpipe_records_total", "a"] == 10
        assert summed(server, "arcpipe_wal_entries_total") == 10
        assert found["arcpipe_restarts_total", "ingest"] == 1
        server.stop()


def test_cardinality_is_bounded_whatever_clients_invent(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        for number in range(100):
            assert server.post(f"{V2}?db=db{number}", body([1])).status == 202
            server.get(f"/path/{number}")
        wait_until(lambda: summed(server, "arcpipe_records_total") == 100, "the worker to have counted")
        found = samples(server)
        assert sum(key[0] == "arcpipe_records_total" for key in found) == 64
        assert found["arcpipe_records_total", "_other"] == 37
        routes = {key[1] for key in found if key[0] == "arcpipe_http_requests_total"}
        assert routes - {"/metrics"} == {V2, "other"}
        server.stop()


@pytest.mark.smoke
def test_metric_names_follow_the_conventions_of_prometheus(server: Server) -> None:
    text = server.get("/metrics").body.decode()
    for family in parser.text_string_to_metric_families(text):
        assert family.name.startswith("arcpipe_")
        assert family.documentation
        assert not re.search(r"_(ms|us|mb|kb|minutes)(_|$)", family.name)
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{family.name}_total"}
    with server.client() as client:
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        response = client.request("GET", "/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.body.endswith(b"# EOF\n")


TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


def test_no_accept_header_is_an_error_and_none_comes_back(server: Server) -> None:
    wanted = {
        "": TEXT,
        "*/*": TEXT,
        "text/plain": TEXT,
        "text/html, application/json;q=0.9": TEXT,
        "application/openmetrics-text": OPENMETRICS,
        'Application/OpenMetrics-Text; Version="1.0.0"': OPENMETRICS,
        "application/openmetrics-text;version=0.0.1": OPENMETRICS,
        PROMETHEUS: OPENMETRICS,
        "application/openmetrics-text;q=0.4,text/plain;q=0.5": TEXT,
        "application/openmetrics-text;q=0": TEXT,
        "application/openmetrics-text;q=high": TEXT,
        "application/openmetrics-text;q=nan": TEXT,
        "application/openmetrics-text;version=x": TEXT,
        "application/openmetrics-text;version=9.9.9": TEXT,
        "application/openmetrics-text;version=1.0.0.evil": TEXT,
        "application/openmetrics-text;version=": TEXT,
        "application/openmetrics-text;version=1.0.0;escaping=x": OPENMETRICS,
        "text/plain;version=x": TEXT,
        "text/plain;version=9": TEXT,
        ";;==,,;q": TEXT,
        "application/openmetrics-text;version=\xff": TEXT,
        "application/openmetrics-text" + ",x" * 15_000: OPENMETRICS,
        "x," * 15_000 + "application/openmetrics-text": TEXT,  # what is far behind is not read
    }
    with server.client() as client:
        for accept, content_type in wanted.items():
            request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
            client.send(request.encode("latin-1"))
            response = client.receive()
            assert (response.status, response.headers["content-type"]) == (200, content_type), accept
            assert response.body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


# Health


def wait_for(server: Server, code: str, severity: str) -> None:
    """Waits for an issue in health, metrics and the overall verdict."""
    wait_until(lambda: code in codes(server), f"the issue {code}")
    found = health(server)
    assert {alert["code"]: alert["severity"] for alert in found["alerts"]}[code] == severity
    assert len(found["issues"]) == len(found["recommendations"]) == len(found["alerts"])
    assert all(found["issues"] + found["recommendations"])
    if severity != "info":
        assert found["healthy"] is False
        assert samples(server)["arcpipe_healthy",] == 0
    assert samples(server)["arcpipe_issues", code, severity] >= 1


def test_write_failures_and_a_full_disk_are_told(tmp_path: Path) -> None:
    """Write failures a full disk and a segment that cannot rotate are told."""
    settings = {"wal_min_free_mb": 0, "wal_max_size_mb": 8, "wal_max_age_seconds": 1, "server_workers": 1}
    with small_disk(tmp_path / "disk", "tmpfs", 24) as disk:
        wal = disk.path / "wal"
        with Server(tmp_path, wal_dir=wal, **settings) as server:
            server.wal = wal
            assert server.post(V2, body([1])).status == 202
            disk.fill()
            wait_for(server, "disk_usage", "warning")

            def is_refused() -> bool:
                disk.fill()
                return server.post(V2, body([1], pad=100_000)).status == 507

            wait_until(is_refused, "a write that fails")
            wait_for(server, "write_failures", "critical")
            assert "cannot be written" in server.log
            disk.free()
            wait_until(lambda: server.post(V2, body([2])).status == 202, "writes to go on")
            wait_until(lambda: "disk_usage" not in codes(server), "the disk's issue to go away")
            server.stop()


def test_uploads_that_are_behind_are_told_with_the_kind_of_fault(tmp_path: Path) -> None:
    blocker = tmp_path / "lake"
    with Server(tmp_path, server_workers=1, wal_max_size_mb=1, wal_max_backlog_mb=2) as server:
        wait_until(lambda: blocker.exists(), "the store to be checked")

        def is_in_the_way() -> bool:
            shutil.rmtree(blocker, ignore_errors=True)  # the check may be making files in it at this moment
            with contextlib.suppress(OSError):
                blocker.write_bytes(b"in the way")
            return blocker.is_file()

        wait_until(is_in_the_way, "something to be in the store's way")
        for number in range(3):
            server.post(V2, body([number], pad=700_000))
        wait_for(server, "uploads_behind", "warning")
        wait_until(lambda: server.post(V2, body([3], pad=700_000)).status == 503, "a write to be refused")
        wait_for(server, "writes_refused", "critical")
        wait_until(lambda: summed(server, "arcpipe_upload_retries_total") > 0, "a retry to be counted")
        assert samples(server)["arcpipe_backlog_bytes",] > 1_000_000
        assert samples(server)["arcpipe_oldest_unshipped_seconds",] > 0
        assert "trying again" in server.log
        blocker.unlink()
        wait_until(lambda: codes(server).isdisjoint({"uploads_behind", "writes_refused"}), "the backlog to be shipped")
        server.stop()


def test_a_disk_with_too_little_room_is_told_before_it_is_full(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_min_free_mb=1 << 30) as server:
        assert server.post(V2, body([1])).status == 507
        wait_for(server, "writes_refused", "critical")
        server.stop()


def test_a_segment_that_cannot_be_completed_is_told_once_it_is_too_old(tmp_path: Path) -> None:
    settings = {"wal_max_age_seconds": 1, "wal_min_free_mb": 0, "server_workers": 1, "wal_recycle": False}
    with (
        small_disk(tmp_path / "disk", "tmpfs", 24) as disk,
        Server(tmp_path, wal_dir=disk.path / "wal", **settings) as server,
    ):
        server.wal = disk.path / "wal"
        assert server.post(V2, body([1])).status == 202
        disk.make_read_only()  # open files take writes still, but no segment can be made, sealed or shipped

        def is_told() -> bool:
            server.post(V2, body([2]))
            return "segment_too_old" in codes(server)

        wait_until(is_told, "a segment that stays")
        wait_for(server, "segment_too_old", "warning")
        disk.make_writable()
        wait_until(lambda: "segment_too_old" not in codes(server), "it to be completed")
        server.stop()


@pytest.mark.parametrize(("role", "code"), [("ingest 1", "worker_down"), ("uploader", "uploader_down")])
def test_a_process_that_hangs_is_told_before_it_is_replaced(tmp_path: Path, role: str, code: str) -> None:
    with Server(tmp_path, server_workers=2) as server:
        with client_of(server, 2) as client:
            stopped = server.pids()[role]
            os.kill(stopped, signal.SIGSTOP)
            try:
                alert = {"code": code, "severity": "critical"}
                wait_until(lambda: alert in client.request("GET", "/api/wal/health").json()["alerts"], "the issue")
            finally:
                with contextlib.suppress(ProcessLookupError):  # replaced
                    os.kill(stopped, signal.SIGCONT)
        server.stop()


def entry(payload: bytes, number: int) -> bytes:
    return struct.pack(">IQI", len(payload), 1_759_932_330_000_000 + number, zlib.crc32(payload)) + payload


def test_dead_letters_damage_and_rescued_values_are_told(tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    wal.mkdir()
    good = pack([1, "default", {}, {"m": "m", "columns": {"v": [1.5]}}])
    damaged = bytearray(entry(good, 2))
    damaged[-1] ^= 1
    odd = pack([1, "default", {}, {"m": "m", "columns": {"v": [["nested"]]}}])
    log = [struct.pack(">4sHB", b"ARCW", 1, 1), entry(good, 0), entry(pack("no envelope"), 1), bytes(damaged)]
    (wal / "worker-1-20251008_140530-000001.wal").write_bytes(b"".join([*log, entry(odd, 3)]))
    with Server(tmp_path, server_workers=1) as server:
        wait_for(server, "dead_letters", "warning")
        wait_for(server, "damaged_entries", "critical")
        wait_for(server, "rescued_values", "info")
        assert "cannot be converted" in server.log
        assert "checksum mismatch" in server.log
        server.stop()


@pytest.mark.parametrize("role", ["ingest 1", "uploader"])
def test_deaths_are_told(tmp_path: Path, role: str) -> None:
    with Server(tmp_path, server_workers=2) as server:
        server.wait_for_successor(role, server.kill(role))
        wait_for(server, "restarts", "info")
        server.stop()


def test_recent_warnings_are_part_of_the_picture(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2) as server:
        dead = server.kill("ingest 1")
        server.wait_for_successor("ingest 1", dead)

        def told() -> list[dict[str, Any]]:
            return [line for line in picture(server)["instance"]["warnings"] if f"pid {dead}" in line["text"]]

        (line,) = wait_until(told, "the line")
        assert (line["level"], line["process"]) == ("error", "supervisor")
        assert abs(line["time"] - time.time()) < 60
        server.stop()


def picture(server: Server) -> dict[str, Any]:
    response: Response = server.get("/api/v1/status")
    assert response.status == 200
    found: dict[str, Any] = response.json()
    return found


def test_the_age_of_the_oldest_unshipped_record_grows_and_falls_back(tmp_path: Path) -> None:
    def age(server: Server) -> float:
        return float(picture(server)["instance"]["oldest_unshipped_seconds"])

    with Server(tmp_path, server_workers=1, flush_max_age_seconds=3) as server:
        assert age(server) == 0
        assert server.post(V2, body([1])).status == 202
        wait_until(lambda: age(server) > 1.0, "the age to grow")
        wait_until(lambda: age(server) == 0, "the record to be shipped")
        server.stop()
