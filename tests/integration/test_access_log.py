"""The access log of a real server: a line for each request, whatever becomes of it, and no request that waits."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from tests.support.http import Client, pack, request_bytes
from tests.support.server import Server, serve_and_fail
from tests.support.tokens import bearer, create
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
BODY = pack({"m": "m", "columns": {"n": [1, 2, 3]}})


def lines(path: Path, many: int = 1) -> list[dict[str, Any]]:
    """Wait for `many` lines of JSON in a file; return all."""
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= many, f"{many} lines")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def metric(server: Server, name: str) -> float:
    text = server.get("/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


def test_each_request_has_a_line_whatever_becomes_of_it(tmp_path: Path) -> None:
    token = create(tmp_path, "--scope", "write")
    token_id = token.split("_")[1]
    path = tmp_path / "access.log"
    with Server(
        tmp_path,
        server_workers=1,
        auth_enabled=True,
        server_request_ids=True,
        access_log_format="json",
        access_log_path=path,
    ) as server:
        answers = []
        with server.client() as client:
            for method, target, body, headers in (
                ("POST", V2 + "?db=lab", BODY, bearer(token)),
                ("POST", V2 + "?db=lab", BODY, bearer(token)),
                ("POST", V2 + "?db=lab", BODY, {**bearer(token), "X-Request-Id": "of-the-client"}),
                ("POST", f"/write?db=lab&p={token}", b"m n=1\nbad\nm n=2", {}),
                ("POST", V2, b"\xc1", bearer(token)),
                ("POST", V2, BODY, bearer(token + "x")),
                ("GET", "/metrics", b"", bearer(token)),
                ("HEAD", "/ping", b"", {}),
                ("GET", "/nowhere%0d%0a%22", b"", {"User-Agent": 'x"\t'}),
            ):
                answers.append(client.request(method, target, body, headers))
            client.send(b"junk\r\n\r\n")
            answers.append(client.receive())
        with server.client() as client:
            client.send(request_bytes("POST", V2, BODY, bearer(token))[:-1])  # and goes away
        found = lines(path, 11)
        assert [line["status"] for line in found] == [*(answer.status for answer in answers), 499]
        assert [answer.status for answer in answers] == [202, 202, 202, 400, 400, 401, 403, 204, 404, 400]
        assert [line["request_id"] for line in found[:10]] == [answer.headers["x-request-id"] for answer in answers]
        assert found[2]["request_id"] == "of-the-client"
        assert [line["token"] for line in found] == [token_id] * 5 + [None, None, None, None, None, token_id]
        assert [line["records"] for line in found] == [3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0]
        assert [line["database"] for line in found] == ["lab"] * 4 + ["default"] + [None] * 5 + ["default"]
        assert [line["bytes"] for line in found[:5]] == [len(BODY)] * 3 + [15, 1]
        assert [line["method"] for line in found][6:10] == ["GET", "HEAD", "GET", "-"]
        assert found[8]["path"] == "/nowhere%0d%0a%22"
        assert {line["client"] for line in found} == {"127.0.0.1"}
        for line in found[:4]:
            assert line["commit_ms"] > 0
            assert line["total_ms"] >= line["queue_ms"] + line["commit_ms"] - 0.01
        server.stop()
    assert token not in path.read_text()
    assert token.split("_")[2] not in path.read_text() + server.log


def test_combined_lines_and_a_sample_with_all_errors(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with Server(
        tmp_path, server_workers=2, access_log_format="combined", access_log_path=path, access_log_sample=0
    ) as server:
        with server.client() as client:
            for _ in range(50):
                assert client.request("POST", V2, BODY).status == 202
                evil = {"User-Agent": 'a" 200 0 "-" "b\\', "Referer": "\x9b31m"}
                assert client.request("GET", "/nowhere?secret=1", headers=evil).status == 404
        wait_until(lambda: path.read_bytes().count(b"\n") >= 50, "the lines")
        text = path.read_text()
        assert len(text.splitlines()) == 50
        for line in text.splitlines():
            assert re.fullmatch(
                r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET /nowhere HTTP/1\.1" 404 \d+ '
                r'"[^"]*" "a\\" 200 0 \\"-\\" \\"b\\\\" id=\S+ db=- records=0 bytes=0 queue_ms=\S+ commit_ms=\S+ '
                r"total_ms=\S+ worker=[12]",
                line,
            ), line
        assert "secret" not in text
        wait_until(lambda: metric(server, "arcpipe_access_log_lines_total") == 50, "the lines to be counted")
        server.stop()


def test_no_line_is_lost_when_the_file_is_rotated_under_load(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with Server(tmp_path, server_workers=2, access_log_format="json", access_log_path=path) as server:
        stop = threading.Event()
        sent = [0, 0, 0]

        def write(number: int) -> None:
            with server.client() as client:
                while not stop.is_set():
                    assert client.request("POST", V2, BODY).status == 202
                    sent[number] += 1

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for rotation in range(3):
            enough = sum(sent) + 100
            wait_until(lambda enough=enough: sum(sent) >= enough, "requests")  # type: ignore[misc]
            path.rename(tmp_path / f"access.log.{rotation}")
            server.reload()
            assert "not reloaded" not in server.log
            moved = (tmp_path / f"access.log.{rotation}").read_bytes()
            wait_until(path.exists, "the new file")
            # After the reload nobody writes into the moved file any more: it can be compressed.
            enough = sum(sent) + 50
            wait_until(lambda enough=enough: sum(sent) >= enough, "more requests")  # type: ignore[misc]
            assert (tmp_path / f"access.log.{rotation}").read_bytes() == moved
        stop.set()
        for thread in threads:
            thread.join()
        server.stop()
    files = [path, *(tmp_path / f"access.log.{rotation}" for rotation in range(3))]
    found = [line for file in files for line in lines(file, 0)]  # the first may have come before any was written
    assert len(found) == sum(sent)
    assert len({line["request_id"] for line in found}) == len(found)
    assert {line["worker"] for line in found} <= {1, 2}


def test_lines_go_to_stderr_where_no_file_is_named(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, access_log_format="json") as server:
        assert server.get("/ping").status == 204
        wait_until(lambda: '"path":"/ping"' in server.log, "the line")
        server.stop()


def test_a_file_that_cannot_be_opened_stops_the_start_and_says_so(tmp_path: Path) -> None:
    found = serve_and_fail(tmp_path, access_log_format="json", access_log_path=tmp_path / "missing" / "access.log")
    assert found.returncode != 0
    assert "access_log.path" in found.stderr
    assert "cannot be opened to append to: No such file or directory" in found.stderr


def test_a_pipe_that_nobody_reads_costs_lines_and_no_request_waits(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with Server(tmp_path, server_workers=1, access_log_format="json", access_log_path=path) as server:
        request = request_bytes("GET", "/" + "x" * 1000)
        with server.client() as client:
            for _ in range(120):
                client.send(request * 50)
                for _ in range(50):
                    assert client.receive().status == 404
        wait_until(lambda: metric(server, "arcpipe_access_log_dropped_lines_total") > 500, "lines to be dropped")
        wait_until(lambda: "the disk, or the reader of the lines, is too slow" in server.log, "the warning")
        assert server.post(V2, BODY).status == 202
        server.stop()  # it does not wait for the reader
    os.close(reader)


def test_a_worker_that_was_replaced_goes_on_with_ids_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with Server(tmp_path, server_workers=1, access_log_format="json", access_log_path=path) as server:
        assert server.get("/ping").status == 204
        lines(path, 1)
        pid = server.kill("ingest 1")
        server.wait_for_successor("ingest 1", pid)

        def answers() -> bool:
            try:
                with Client(server.url) as client:
                    return client.request("GET", "/ping").status == 204
            except OSError:
                return False

        wait_until(answers, "the successor")
        assert len({line["request_id"] for line in lines(path, 2)}) >= 2
        server.stop()
