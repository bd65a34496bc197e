"""Targets: their URLs, the request that probes them, and the advice on those that do not take the load."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.suites.probe import TargetFailed, probe
from benchmarks.suites.protocols import Target, parse_target, plan_targets
from benchmarks.system.listeners import processes_at
from tests.support.http import free_port


def target(url: str, protocol: str = "influx1", token: str = "") -> Target:
    return parse_target(url, protocol, "bench", "me", token)


def test_a_target_may_have_a_name_a_path_and_either_scheme() -> None:
    one = target("peer, new=https://[::1]/influx/", "influx2", "secret")
    assert (one.name, one.tls, one.host, one.port) == ("peer, new", True, "::1", 443)
    assert one.path == "/influx/api/v2/write?org=me&bucket=bench&precision=ns"
    assert one.headers == {"Authorization": "Token secret"}
    assert target("http://127.0.0.1:8086").name == "127.0.0.1:8086"
    assert target("http://h", token="a:b").headers == {"Authorization": "Basic YTpi"}
    assert target("http://h", "arc", "t").headers == {"x-arc-database": "bench", "Authorization": "Bearer t"}


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("127.0.0.1:8086", "", "write http://HOST:PORT"),
        ("ftp://h", "", "write http://HOST:PORT"),
        ("http://h:99999", "", "port"),
        ("http://h/?db=x", "", "--database"),
        ("http://u:p@h", "", "--token"),
        ("http://h", "no-colon", "USER:PASSWORD"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(url: str, token: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target(url, token=token)


Answer = Callable[[str], tuple[int, str]]  # of a path: status and text


@contextmanager
def peer(answer: Answer, version: str = "1.6.7") -> Iterator[str]:
    """The URL of a server that gives these answers; `/ping` tells the version."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.send_header("X-Influxdb-Version", version)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, text = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("protocol", "answer", "token", "message"),
    [
        (
            "influx1",
            (401, "unauthorized"),
            "",
            r"HTTP 401 \(unauthorized\): it asks who writes: add --token USER:PASSW",
        ),
        ("influx3", (401, ""), "wrong", "HTTP 401: it does not take this token, sent as Bearer"),
        ("influx2", (403, ""), "weak", "this token may not write to the bucket 'bench'"),
        (
            "influx2",
            (404, '{"message": "bucket not found"}'),
            "",
            "create the bucket 'bench' there, .*'me' \\(--org\\)",
        ),
        (
            "influx3",
            (404, "404 page not found"),
            "",
            "does not speak influx3; by its /ping it is 1.6.7: try .* influx1",
        ),
        ("arc", (405, ""), "", "does not speak arc; by its /ping it is 1.6.7: try --protocol influx1"),
        (
            "influx1",
            (200, '{"results": [{"error": "no space"}]}'),
            "",
            "does not create the database 'bench': no space",
        ),
        (
            "influx2",
            (400, "partial write"),
            "",
            "partial write.*it speaks something else than influx2, or does not take",
        ),
        ("influx2", (413, ""), "", "--records"),
        ("influx2", (308, ""), "", "it moved to somewhere else: give the URL"),
        ("influx2", (503, "busy"), "", r"\(busy\): see its log"),
    ],
)
def test_a_target_that_refuses_is_told_with_what_to_do(
    protocol: str, answer: tuple[int, str], token: str, message: str
) -> None:
    with peer(lambda path: answer) as url, pytest.raises(TargetFailed, match=message):
        probe(target(url, protocol, token), "columnar" if protocol == "arc" else "telegraf", 10)


def test_a_path_in_the_url_that_is_not_there_is_asked_about() -> None:
    with peer(lambda path: (404, "404 page not found")) as url, pytest.raises(TargetFailed, match="is /x right in"):
        probe(target(f"{url}/x"), "telegraf", 10)


def test_the_older_path_of_arc_is_taken_where_the_later_one_is_missing() -> None:
    with peer(lambda path: (202 if path == "/write/v2/msgpack" else 404, "")) as url:
        found, told = probe(target(url, "arc"), "columnar", 10)
    assert found.path == "/write/v2/msgpack"
    assert told == "InfluxDB API 1.6.7"


def test_a_target_that_is_not_there_or_speaks_something_else_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            for answer in (b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        for _ in range(2):
            with pytest.raises(TargetFailed, match="does not answer in HTTP"):
                probe(target(f"http://127.0.0.1:{port}"), "telegraf", 10)
        with pytest.raises(TargetFailed, match=r"does not speak TLS as it should .*: is it http:// there\?"):
            probe(target(f"https://127.0.0.1:{port}"), "telegraf", 10)
        thread.join()
    with pytest.raises(TargetFailed, match=r"there is no server at .* \(Connection refused\): start it"):
        probe(target(f"http://127.0.0.1:{free_port()}"), "telegraf", 10)


def test_the_processes_of_a_local_port_are_found() -> None:
    """The processes of a port are found, and another machine has none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert os.getpid() in processes_at("127.0.0.1", listener.getsockname()[1])
    assert processes_at("192.0.2.1", 8086) == []


def test_formats_of_every_protocol_may_be_asked_for_at_once() -> None:
    """`all` stands for the kinds that every protocol takes; a path names the signal of the format."""
    _, formats = plan_targets(["http://h"], ["otlp"], ["all"], "bench", "me", "")
    assert formats == ["otlp metrics", "otlp logs", "otlp traces"]
    one = target("http://h", "otlp")._replace(format="otlp logs + gzip")
    assert one.path == "/v1/logs?db=bench"


def test_commands_are_for_each_target_or_for_none() -> None:
    urls = ["a=http://h:1", "b=http://h:2"]
    targets, _ = plan_targets(urls, ["arc"], [], "bench", "me", "", ["run a", "run b"])
    assert [one.command for one in targets] == ["run a", "run b"]
    with pytest.raises(ValueError, match="--command once for each --target"):
        plan_targets(urls, ["arc"], [], "bench", "me", "", ["run a"])
