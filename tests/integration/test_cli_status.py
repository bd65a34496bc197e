"""`arcpipe status` as a user calls it: asking a real server over its own port."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from arcpipe.client import Client, Options, Refusal
from tests.support import preloaded
from tests.support.certificates import needs_openssl
from tests.support.http import free_port
from tests.support.key_model import ModelServer
from tests.support.load import Load
from tests.support.program import COMMAND, environment
from tests.support.server import Server
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until


def status(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return preloaded.run("status", *map(str, arguments), directory=cwd, environ=environment() | variables)


# One look


def test_a_healthy_server_is_shown_with_its_live_rates_and_exit_code_0(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2) as server, Load(server, 2, 0.05) as load:
        load.wait_for_requests(10)
        done = status("--url", server.url, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        title, verdict, promise, *_ = done.stdout.splitlines()
        assert title.startswith("arcpipe ")
        assert server.url in title
        assert verdict == "good: Data is safe"
        assert "fdatasync" in promise
        facts = dict(line.split(maxsplit=1) for line in done.stdout.split("\n\n")[1].splitlines())
        assert list(facts) == ["accepted", "acknowledged", "waiting", "uploaded", "files", "uploader", "store", "WAL"]
        assert re.match(r"[1-9][\d.,]* (k )?records/s, ", facts["accepted"])
        assert " ms, p99 " in facts["acknowledged"]
        assert facts["store"] == f"file://{server.lake}"
        for expected in ("ingest 1  alive", "ingest 2  alive", "alpha", "beta", "quarantine"):
            assert expected in done.stdout

        # The endpoint's JSON, as it came.
        raw = status("--json", "--url", server.url, cwd=tmp_path)
        assert raw.returncode == 0
        assert set(json.loads(raw.stdout)) == {"healthy", "verdict", "issues", "answered_by", "instance"}

        # A table in a terminal.
        terminal = Terminal("status", "--url", server.url, cwd=tmp_path)
        assert terminal.process.wait(60) == 0
        wait_until(lambda: "quarantine" in terminal.text, "the whole picture")
        assert "✓ Data is safe" in terminal.text
        assert "\x1b[" in terminal.text
        load.stop()
        server.stop()


def test_issues_are_told_with_what_to_do_and_exit_code_1(tmp_path: Path) -> None:
    store: dict[str, object] = {
        "storage_url": "s3://nowhere/x",
        "storage_s3_endpoint_url": f"http://127.0.0.1:{free_port()}",
        "storage_s3_region": "eu",
        "storage_s3_access_key_id": "a",
        "storage_s3_secret_access_key": "b",
    }
    with Server(tmp_path, server_workers=1, wal_max_size_mb=1, wal_max_backlog_mb=1, **store) as server:
        for _ in range(2):
            server.write({"m": "m", "columns": {"pad": ["x" * 1000] * 600}})
        wait_until(lambda: not server.get("/api/v1/status").json()["healthy"], "an issue")
        done = status("--url", server.url, cwd=tmp_path)
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[1] == "warning: One thing to look at"
        issue = next(number for number, line in enumerate(lines) if line.startswith("warning: ") and number > 1)
        assert "wait for their upload" in lines[issue]
        assert lines[issue + 1].startswith("  what to do: check the store")
        assert "connection: " in done.stdout
        assert "trying again" in done.stdout  # the warning of the log
        assert status("--json", "--url", server.url, cwd=tmp_path).returncode == 1
        server.kill_all()


# Which server


def test_the_server_is_the_one_of_the_settings(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "config.toml").write_text(f'[server]\nhost = "0.0.0.0"\nport = {port}\n[auth]\nenabled = true\n')
    tokens = {
        scope: preloaded.run(
            "token", "create", "--scope", scope, directory=tmp_path, environ=environment(), check=True
        ).stdout.strip()
        for scope in ("read", "write")
    }
    with Server(tmp_path, server_workers=1, server_host="0.0.0.0", server_port=port, auth_enabled=True) as server:
        done = status(cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"http://127.0.0.1:{port}: a token with the scope 'read' is needed: --token-file FILE" in done.stderr
        alive = status("--alive", cwd=tmp_path)
        assert (alive.returncode, alive.stdout, alive.stderr) == (0, "", "")
        assert status(cwd=tmp_path, ARCPIPE_TOKEN=tokens["write"]).returncode == 2
        assert status(cwd=tmp_path, ARCPIPE_TOKEN=tokens["read"]).returncode == 0
        (tmp_path / "token").write_text(tokens["read"] + "\n")
        assert status("--token-file", tmp_path / "token", cwd=tmp_path).returncode == 0
        server.stop()
    alive = status("--alive", cwd=tmp_path)
    assert alive.returncode == 2
    assert "not answering" in alive.stderr


@needs_openssl
def test_a_server_with_tls_is_trusted_by_the_certificate_of_the_settings(tmp_path: Path) -> None:
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=ingest.example"]
    options += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", *options, "-keyout", "key.pem", "-out", "cert.pem", "-days", "2"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    tls: dict[str, object] = {"server_tls_cert": "cert.pem", "server_tls_key": "key.pem", "server_port": free_port()}
    with Server(tmp_path, server_workers=1, **tls) as server:
        of_settings = {f"ARCPIPE_{name.upper()}": str(value) for name, value in tls.items()}
        assert status(cwd=tmp_path, **of_settings).returncode == 0
        # Whoever comes from elsewhere checks it as any client does.
        done = status("--url", server.url, cwd=tmp_path)
        assert done.returncode == 2
        assert "its certificate is not trusted" in done.stderr
        trusted = status("--url", server.url, "--cacert", "cert.pem", cwd=tmp_path)
        assert (trusted.returncode, trusted.stderr) == (0, "")
        assert status("--cacert", "cert.pem", cwd=tmp_path, **of_settings).returncode == 0
        plain = status("--url", server.url.replace("https", "http"), cwd=tmp_path)
        assert (plain.returncode, "is https:// meant?" in plain.stderr) == (2, True)
        for file, url, reason in (
            ("key.pem", server.url, "--cacert: key.pem cannot be used: there is no PEM certificate in it"),
            ("nowhere", server.url, "--cacert: nowhere cannot be used: No such file or directory"),
            ("cert.pem", "http://127.0.0.1:1", "--cacert: http://127.0.0.1:1 is asked without TLS"),
        ):
            refused = status("--url", url, "--cacert", file, cwd=tmp_path)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert reason in refused.stderr
        server.stop()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--url", "127.0.0.1:8000"], "is not a URL such as http://127.0.0.1:8000"),
        (["--url", "ftp://x"], "is not a URL"),
        (["--token-file", "nowhere"], "--token-file: nowhere cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_meant_is_told(tmp_path: Path, arguments: list[str], reason: str) -> None:
    """Not with 1: that says that the server has issues."""
    done = status(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_exit_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        done = status_of_answer(other, b"{}", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "the answer is not that of an arcpipe: " in done.stderr
    url = f"http://127.0.0.1:{free_port()}"
    done = status("--url", url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"arcpipe: {url}: not answering: Connection refused\n"


def test_a_server_without_tls_is_told(tmp_path: Path) -> None:
    with ModelServer() as server:
        done = status("--url", server.url.replace("http", "https"), cwd=tmp_path)
        assert done.returncode == 2
        assert "it does not speak TLS there: is http:// meant?" in done.stderr
        told: list[Refusal] = []
        with Client(server.url.replace("http", "https"), Options(give_up_seconds=0), told.append) as client:
            client.write("cpu", {"n": 1})
        assert "it does not speak TLS there: is http:// meant?" in told[0].reason


def status_of_answer(other: socket.socket, body: bytes, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`arcpipe status` of what listens on a socket and answers once, with this."""

    def answer() -> None:
        connection, _ = other.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    thread = threading.Thread(target=answer)
    thread.start()
    done = status("--url", f"http://127.0.0.1:{other.getsockname()[1]}", cwd=cwd)
    thread.join()
    return done


@pytest.mark.parametrize(("healthy", "code"), [(True, 0), (False, 1)])
def test_a_server_of_another_version_is_up_and_tells_its_issues(tmp_path: Path, healthy: bool, code: int) -> None:
    issue = {"code": "x", "severity": "critical", "message": "the disk is on fire", "recommendation": "water"}
    answer = {
        "healthy": healthy,
        "verdict": {"state": "critical", "headline": "One thing needs you now", "promise": "Records are on disk."},
        "issues": [] if healthy else [issue],
        "answered_by": 1,
        "instance": {"version": "0.0.9", "uptime_seconds": 90061.0, "workers": [{"slot": 1, "figure": 3}]},
    }
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = status_of_answer(other, json.dumps(answer).encode(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("arcpipe 0.0.9 at http://127.0.0.1:")
    assert ", up 1 d 1 h\ncritical: One thing needs you now\n" in done.stdout
    assert ("critical: the disk is on fire\n  what to do: water\n" in done.stdout) is not healthy


# Watching


def test_watching_goes_on_when_the_server_is_gone_and_when_it_is_back(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, server_port=free_port(), wal_enabled=False) as server:
        url = server.url
        terminal = Terminal("status", "--watch", "--url", url, cwd=tmp_path)
        wait_until(lambda: "All is well, with the WAL off" in terminal.text, "the first picture")
        with Load(server, 1, 0.01) as load:
            load.wait_for_requests(1)
            wait_until(lambda: "alpha" in terminal.text, "the database that is written to")
        server.stop()
        wait_until(lambda: "Not answering since" in terminal.text, "the silence")
        position = len(terminal.text)
        server.start()
        wait_until(lambda: "All is well, with the WAL off" in terminal.since(position), "the return")
        assert terminal.end(signal.SIGINT) == 0
        server.stop()
        assert "Traceback" not in terminal.text


def test_watching_into_a_pipe_gives_a_line_of_json_each_second(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        command = [*COMMAND, "status", "--watch", "--json", "--url", server.url]
        with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE) as watching:
            assert watching.stdout is not None
            first, second = (json.loads(watching.stdout.readline())["instance"]["time"] for _ in range(2))
            assert second > first
            server.stop()
            assert watching.wait(60) == 2


# The shell


def test_completion_knows_the_commands_and_their_options(tmp_path: Path) -> None:
    def completed(words: str, index: int) -> list[str]:
        variables = {"_ARCPIPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        done = subprocess.run(
            COMMAND, cwd=tmp_path, env=environment() | variables, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("arcpipe st", 1) == ["status"]
    assert completed("arcpipe status --w", 2) == ["--watch"]
    assert {"check", "show"} <= set(completed("arcpipe config ", 2))
