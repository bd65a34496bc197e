"""Several listeners of one server: Unix sockets, their files over crashes and upgrades, and what each one offers."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import preloaded
from tests.support.http import Client, pack
from tests.support.program import environment
from tests.support.server import Server, serve_and_fail
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
BODY = pack({"m": "m", "columns": {"n": [1]}})
NEVER = 1000  # seconds

OPERATIONS = ["/", "/metrics", "/api/v1/status", "/api/wal/status", "/api/wal/stats", "/api/monitoring/buffer"]
OPEN = ["/health", "/ready", "/ping"]


def listening(directory: Path, *listeners: dict[str, Any], **settings: object) -> Server:
    return Server(directory, server_listeners=json.dumps(listeners), **settings)


def unix(path: Path, **keys: object) -> dict[str, Any]:
    return {"address": f"unix:{path}", **keys}


def status(url: str, method: str, path: str, body: bytes = b"") -> int:
    with Client(url) as client:
        return client.request(method, path, body).status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Writes on the main address, operations on a Unix socket, all paths on another port."""
    directory = tmp_path_factory.mktemp("listeners")
    ops = unix(directory / "ops.sock", paths="operations", mode="0600")
    with listening(directory, ops, {"address": "127.0.0.1:0"}, server_paths="writes") as server:
        yield server
        assert "Traceback" not in server.log
        assert "[ERROR]" not in server.log


# What is offered where


def test_operations_are_offered_on_their_listener_alone(server: Server) -> None:
    main, ops, everything = server.urls
    for path in OPERATIONS:
        assert [status(url, "GET", path) for url in (main, ops, everything)] == [404, 200, 200], path
    assert [status(url, "POST", "/api/wal/cleanup") for url in (main, ops, everything)] == [404, 200, 200]
    for path in OPEN:
        assert {status(url, "GET", path) for url in (main, ops, everything)} <= {200, 204}, path


def test_writes_are_refused_where_operations_are_offered(server: Server) -> None:
    """A head that is known goes past the parser and the table of paths: it must be known of this listener."""
    main, ops, everything = server.urls
    with Client(main) as writes, Client(ops) as operations, Client(everything) as both:
        for _ in range(5):
            assert writes.request("POST", V2, BODY).status == 202
            assert operations.request("POST", V2, BODY).status == 404
            assert both.request("POST", V2, BODY).status == 202
        for number in range(5):  # an id of its own each time: all the rest of the head is known
            identified = {"X-Request-Id": f"id-{number}"}
            assert writes.request("POST", V2, BODY, identified).status == 202
            assert both.request("POST", V2, BODY, identified).status == 202
            assert operations.request("POST", V2, BODY, identified).status == 404
    for path in ("/write", "/api/v2/write", "/api/v3/write_lp?db=x", "/query", "/api/v1/write/line-protocol"):
        assert status(ops, "POST", path, b"m n=1") == 404, path


def test_requests_are_counted_whichever_listener_they_came_by(server: Server) -> None:
    main, ops, _ = server.urls

    def answered() -> float:
        with Client(ops) as client:
            text = client.request("GET", "/metrics").body.decode()
        lines = [line for line in text.splitlines() if "arcpipe_http_requests_total" in line and '"/health"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = answered()
    for url in (main, ops, main, ops):
        assert status(url, "GET", "/health") == 200
    wait_until(lambda: answered() >= before + 4, "the requests to be counted")


def test_a_socket_s_file_has_its_mode(server: Server) -> None:
    path = Path(server.urls[1].removeprefix("unix:"))
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_writes_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    with listening(tmp_path, unix(path)) as server:
        for _ in range(20):
            done = subprocess.run(
                [
                    *("curl", "-sS", "-w", "%{http_code}", "--unix-socket", path),
                    *("--data-binary", "m n=1", "http://localhost/write"),
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert done.stdout == "204"
        server.wait_for_rows(20)
        server.stop()
        assert not path.exists()


def test_a_server_may_listen_on_a_unix_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "only.sock"
    with listening(tmp_path, unix(path), server_host="", server_workers=2) as server:
        assert server.url == f"unix:{path}"
        server.write({"m": "m", "columns": {"n": [1]}})
        status = preloaded.run("status", "--json", directory=tmp_path, environ=environment(**server.settings))
        assert json.loads(status.stdout)["instance"]["wal_dir"] == str(server.wal), status.stderr
        server.wait_for_rows(1)
        server.stop()


def test_every_worker_takes_connections_of_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    with listening(tmp_path, unix(path), server_workers=2, flush_max_age_seconds=NEVER) as server:
        pids = server.pids()
        # One that is stopped takes none, so the other one serves them all; then the other way round.
        for stopped in ("ingest 1", "ingest 2"):
            os.kill(pids[stopped], signal.SIGSTOP)
            for _ in range(10):
                with Client(f"unix:{path}", timeout_seconds=30) as client:
                    client.socket.settimeout(5)
                    try:
                        assert client.request("POST", V2, BODY).status == 202
                        break
                    except TimeoutError:  # it had taken this one before it was stopped
                        continue
            else:
                pytest.fail("nobody answers")
            os.kill(pids[stopped], signal.SIGCONT)
        server.stop()


# The socket's file


def test_the_owner_of_the_file_is_set(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    nobody = pwd.getpwnam("nobody")
    path = tmp_path / "main.sock"
    with listening(tmp_path, unix(path, owner=f"nobody:{nobody.pw_gid}", mode="0660")) as server:
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (nobody.pw_uid, nobody.pw_gid, 0o660)
        server.stop()


def test_a_stale_file_is_replaced_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    with listening(tmp_path, unix(path), server_workers=2) as server:
        server.kill_all()
        assert path.exists()
        with pytest.raises(ConnectionRefusedError):
            Client(f"unix:{path}")
        server.restart()
        assert status(f"unix:{path}", "POST", V2, BODY) == 202
        server.stop()


def test_a_worker_that_dies_leaves_the_socket_to_the_others(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    with listening(tmp_path, unix(path), server_workers=2) as server:
        before = path.stat().st_ino
        for role in ("ingest 1", "ingest 2"):
            server.wait_for_successor(role, server.kill(role))
            assert status(f"unix:{path}", "POST", V2, BODY) == 202
        assert path.stat().st_ino == before
        server.stop()


@pytest.mark.parametrize("holder", ["another arcpipe", "another program", "a program whose queue is full"])
def test_a_socket_that_somebody_listens_on_is_never_taken(tmp_path: Path, holder: str) -> None:
    path = tmp_path / "main.sock"
    (tmp_path / "one").mkdir()
    other = socket.socket(socket.AF_UNIX)
    waiting = []
    with listening(tmp_path / "one", *([unix(path)] if holder == "another arcpipe" else [])) as server:
        if holder != "another arcpipe":
            other.bind(str(path))
            other.listen(0)
        if "full" in holder:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                if waiting[-1].connect_ex(str(path)):
                    break
        done = serve_and_fail(
            tmp_path, server_port=0, wal_dir=tmp_path / "wal", server_listeners=json.dumps([unix(path)])
        )
        assert done.returncode == 1
        expected = "another arcpipe holds" if holder == "another arcpipe" else "another process listens there"
        assert f"cannot listen on unix:{path}: {expected}" in done.stderr
        assert "Traceback" not in done.stderr
        if holder == "another arcpipe":
            assert status(f"unix:{path}", "POST", V2, BODY) == 202
        server.stop()
        assert path.exists() == (holder != "another arcpipe")
    for one in (other, *waiting):
        one.close()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    path.write_text("precious")
    done = serve_and_fail(tmp_path, server_port=0, server_listeners=json.dumps([unix(path)]))
    assert done.returncode == 1
    assert "a file that is not a socket is there; remove it" in done.stderr
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "owner", "reason"),
    [
        ("missing/main.sock", "", "No such file or directory. Its directory must exist"),
        ("main.sock", "nobody-of-this-name", "owner 'nobody-of-this-name' of a Unix socket"),
    ],
)
def test_a_socket_that_cannot_be_made_stops_the_start(tmp_path: Path, path: str, owner: str, reason: str) -> None:
    listener = unix(tmp_path / path, owner=owner)
    done = serve_and_fail(tmp_path, server_port=0, server_listeners=json.dumps([listener]))
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_was_put_in_the_place_of_the_socket_stays_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    with listening(tmp_path, unix(path)) as server:
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            server.stop()
            assert path.exists()


def test_a_taken_port_of_a_further_listener_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve_and_fail(tmp_path, server_port=0, server_listeners=json.dumps([{"address": f"127.0.0.1:{port}"}]))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr


# Upgrade, and sockets that others have made


def upgrade(server: Server) -> None:
    before = server.log.count("supervisor: serving on")
    os.kill(server.pid, signal.SIGUSR2)
    wait_until(lambda: server.log.count("supervisor: serving on") > before, "the new version")


def test_an_upgrade_hands_every_listener_over(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    ops = {"address": "127.0.0.1:0", "paths": "operations"}
    with listening(tmp_path, ops, unix(path), server_workers=2) as server:
        urls = server.urls
        inode = path.stat().st_ino
        upgrade(server)
        assert set(server.urls) == set(urls)
        assert path.stat().st_ino == inode
        assert [status(url, "POST", V2, BODY) for url in urls] == [202, 404, 202]
        # The lock went along: nobody else takes the socket, and its file is removed in the end.
        with open(f"{path}.lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        server.stop()
        assert not path.exists()
        with open(f"{path}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_upgrade_refuses_no_client_of_a_unix_socket(tmp_path: Path) -> None:
    """An upgrade keeps clients of a unix socket waiting and refuses none."""
    path = tmp_path / "main.sock"
    with listening(tmp_path, unix(path), server_workers=2) as server:
        before = server.log.count("supervisor: serving on")
        os.kill(server.pid, signal.SIGUSR2)
        sent = 0
        while server.log.count("supervisor: serving on") == before or sent < 50:
            with Client(f"unix:{path}") as client:
                try:
                    assert client.request("POST", V2, BODY, {"Connection": "close"}).status == 202
                except ConnectionError as error:
                    pytest.fail(f"a connection that was made was not answered: {error!r}")
            sent += 1
        server.stop()


def test_a_listener_that_the_settings_have_no_more_is_closed_at_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "old.sock"
    (tmp_path / "config.toml").write_text(f'[[server.listeners]]\naddress = "unix:{path}"\n')
    with Server(tmp_path) as server:
        assert status(f"unix:{path}", "GET", "/health") == 200
        (tmp_path / "config.toml").write_text("")
        upgrade(server)
        assert not path.exists()
        assert status(server.url, "GET", "/health") == 200
        server.stop()


def test_settings_whose_socket_cannot_be_made_keep_the_running_version(tmp_path: Path) -> None:
    path = tmp_path / "ops.sock"
    config = tmp_path / "config.toml"
    config.write_text(f'[[server.listeners]]\naddress = "unix:{path}"\n')
    with Server(tmp_path, server_workers=1) as server:
        refusal = "the installed version would not start, so this one stays"

        def has_refused(times: int) -> bool:
            return server.log.count(refusal) == times

        for number, address in enumerate(("unix:missing/ops.sock", f"unix:{config}", "no-such-host.invalid:1"), 1):
            config.write_text(f'[auth]\nallow_anonymous = true\n[[server.listeners]]\naddress = "{address}"\n')
            os.kill(server.pid, signal.SIGUSR2)
            wait_until(functools.partial(has_refused, number), "the refusal")
            assert "cannot listen on" in server.log.splitlines()[-1]
        assert status(f"unix:{path}", "GET", "/health") == 200
        server.stop()


def start_as_a_socket_unit(server: Server, made: socket.socket, name: str) -> None:
    """As systemd starts a service of a socket unit: its socket is number 3, named after the unit."""
    server.prefix = [
        *(sys.executable, "-c"),
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': sys.argv[2]}\n"
        "os.execv(sys.argv[3], sys.argv[3:])\n",
        *(str(made.fileno()), name),
    ]
    server.pass_fds = [made.fileno()]
    server.start()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_socket_of_a_socket_unit_is_served_and_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "main.sock"
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family) as made:
        made.bind(str(path) if kind == "unix" else ("127.0.0.1", 0))
        made.listen()
        listener = unix(path) if kind == "unix" else {"address": f"127.0.0.1:{made.getsockname()[1]}"}
        url = f"unix:{path}" if kind == "unix" else f"http://{listener['address']}"
        server = listening(tmp_path, listener, server_workers=2)
        # A client that came before the server did.
        with Client(url) as early:
            start_as_a_socket_unit(server, made, "arcpipe.socket")
            try:
                assert early.request("POST", V2, BODY).status == 202
                upgrade(server)
                assert status(url, "POST", V2, BODY) == 202
                server.stop()
                if kind == "unix":
                    assert path.exists()  # it is systemd's
                    assert not (tmp_path / "main.sock.lock").exists()
                # Whoever comes now waits for the next start.
                with Client(url) as late:
                    server.restart()
                    assert late.request("POST", V2, BODY).status == 202
                server.stop()
                server.assert_log_is_shipped()
            finally:
                server.end()
