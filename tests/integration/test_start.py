"""The first moments: what a check says of a start, and what a process in a hurry or with the number 1 does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import preloaded
from tests.support.http import free_port
from tests.support.program import COMMAND, ROOT, environment
from tests.support.server import Server
from tests.support.waiting import wait_until

CHECKS = (["serve", "--check"], ["config", "check"])

# A signal that comes once the program runs and before its libraries are loaded.
EARLY = """
import os, signal, sys
def told(event, arguments):
    if event == "import" and arguments[0] == "arcpipe.cli" and "serve" in sys.orig_argv and not os.path.exists(FLAG):
        open(FLAG, "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(told)
"""


def run(directory: Path, *command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return preloaded.run(*command, directory=directory, environ=environment(**settings))


def listing(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*") if "__pycache__" not in str(path))


@pytest.mark.parametrize("command", CHECKS, ids=" ".join)
def test_a_check_of_what_would_start_says_so_and_leaves_nothing(tmp_path: Path, command: list[str]) -> None:
    access_log = {"access_log_format": "json", "access_log_path": tmp_path / "access.log"}
    settings = {"server_port": 0, "wal_dir": tmp_path / "a" / "wal", **access_log}
    done = subprocess.run(
        [*COMMAND, *command], cwd=tmp_path, env=environment(**settings), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "would start" in done.stdout
    assert listing(tmp_path) == []


def refused_for(tmp_path: Path, what: str) -> dict[str, object]:
    """The settings of a start that does not come about; makes what they need."""
    wal = tmp_path / "wal"
    settings: dict[str, object] = {"server_port": 0, "wal_dir": wal, "server_workers": 1}
    match what:
        case "settings":
            settings["wal_sync_mode"] = "sometimes"
        case "no host":
            settings |= {"server_host": "no-such-host.invalid", "auth_allow_anonymous": True}
        case "a file as a directory":
            wal.write_text("")
        case "a file as a folder":
            wal.mkdir()
            (wal / "spool").write_text("")
        case "a damaged node.json":
            wal.mkdir()
            (wal / "node.json").write_text("{")
        case "a directory as node.json":
            (wal / "node.json").mkdir(parents=True)
        case "no certificate":
            settings |= {"server_tls_cert": tmp_path / "cert.pem", "server_tls_key": tmp_path / "key.pem"}
        case "no access log":
            settings |= {"access_log_format": "json", "access_log_path": tmp_path / "no" / "log"}
        case "no directory of a socket":
            settings["server_listeners"] = f'[{{"address": "unix:{tmp_path}/no/a.sock"}}]'
    return settings


REFUSED = [
    *("settings", "no host", "a file as a directory", "a file as a folder", "a damaged node.json"),
    *("a directory as node.json", "no certificate", "no access log", "no directory of a socket"),
]


BOTH = ("settings", "no host", "a damaged node.json")


@pytest.mark.parametrize("what", REFUSED)
def test_a_check_says_what_a_start_says(tmp_path: Path, what: str) -> None:
    settings = refused_for(tmp_path, what)
    before = listing(tmp_path)
    commands = CHECKS if what in BOTH else CHECKS[:1]  # they are one function
    checked = [run(tmp_path, *command, **settings) for command in commands]
    assert listing(tmp_path) == before
    started = run(tmp_path, "serve", **settings)
    said = [last_words(done.stderr) for done in (started, *checked)]
    assert started.returncode in (1, 2)
    assert {done.returncode for done in checked} == {started.returncode}
    assert said[0]
    assert all(words == said[0] for words in said)
    assert "Traceback" not in started.stderr


def last_words(stderr: str) -> list[str]:
    """Return the last words of the command, without log lines."""
    lines = stderr.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith("arcpipe: ")), len(lines))
    return lines[first:]


@pytest.mark.parametrize(("how", "command"), [("whole", CHECKS[0]), ("without its first line", CHECKS[1])])
def test_a_key_that_is_pasted_is_not_shown(tmp_path: Path, how: str, command: list[str]) -> None:
    secret = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg1234567890abcdefghijklmnopqrstuv"
    key = f"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n" if how == "whole" else secret
    done = run(tmp_path, *command, server_tls_cert="cert.pem", server_tls_key=key)
    assert done.returncode == 2
    assert 'server.tls_key = "********": allowed: the path of a file, and this is the content of one' in done.stderr
    shown = run(tmp_path, "config", "show", server_cors_origins="*", server_tls_key=key)
    assert secret[10:40] not in done.stderr + done.stdout + shown.stderr + shown.stdout


def test_a_signal_that_comes_before_the_libraries_are_loaded_stops_it(tmp_path: Path) -> None:
    server = early(tmp_path)
    server.launch()
    try:
        assert server.exit_code() == 0
        assert "SIGTERM: stopping" in server.log
    finally:
        server.end()
        server._show_log()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a new process namespace needs root")
def test_the_first_process_of_a_container_loses_no_early_signal(tmp_path: Path) -> None:
    """The kernel drops what it neither handles nor blocks."""
    server = early(tmp_path)
    server.prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    server.launch()
    try:
        assert server.exit_code() == 0
        assert "SIGTERM: stopping" in server.log
    finally:
        server.end()
        server._show_log()


def early(directory: Path) -> Server:
    server = Server(directory, server_workers=1)
    folder = directory / "early"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"FLAG = {str(directory / 'was told')!r}\n{EARLY}")
    server.variables["PYTHONPATH"] = f"{folder}:{ROOT}"
    return server


def test_a_server_without_open_files_and_sigchld_works(
    tmp_path: Path,
) -> None:
    """Else sockets and segments get the number of stderr, and the end of a worker is never seen."""
    server = Server(tmp_path, server_workers=1, server_port=free_port())
    server.prefix = [
        *(sys.executable, "-c"),
        "import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "for fd in (0, 1, 2): os.close(fd)\nos.execv(sys.argv[1], sys.argv[1:])\n",
    ]
    server.launch()
    try:
        server.url = f"http://127.0.0.1:{server.settings['server_port']}"
        wait_until(lambda: is_served(server), "the server to serve")
        server.write({"m": "counted", "columns": {"n": [0]}})
        for pid in server.pids().values():
            assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {os.devnull}
        dead = server.kill("ingest 1")
        server.wait_for_successor("ingest 1", dead)
        wait_until(lambda: is_served(server), "the successor to serve")
        server.write({"m": "counted", "columns": {"n": [1]}})
        server.wait_for_rows(2)
        server.stop()
    finally:
        server.end()


# A log that nobody reads


def test_a_stderr_that_nobody_reads_holds_up_no_process(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (65536, 4096, 1):
        try:
            while True:
                os.write(writer, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    server = Server(tmp_path, server_workers=2, server_port=free_port(), log_level="DEBUG", access_log_format="json")
    server.prefix = [
        *(sys.executable, "-c"),
        "import os, sys\nfor fd in (1, 2): os.dup2(int(sys.argv[1]), fd)\nos.execv(sys.argv[2], sys.argv[2:])\n",
        str(writer),
    ]
    server.pass_fds = [writer]
    server.launch()
    try:
        os.close(writer)
        server.url = f"http://127.0.0.1:{server.settings['server_port']}"
        wait_until(lambda: is_served(server), "the server to serve")
        wait_until(lambda: len(server.pids()) == 4, "all processes")
        dead = server.kill("ingest 1")
        server.wait_for_successor("ingest 1", dead)
        for number in range(20):
            wait_until(lambda: is_served(server), "the server to serve")
            server.write({"m": "counted", "columns": {"n": [number]}})
        server.wait_for_rows(20)
        before = server.pids()["ingest 1"]
        os.kill(server.pid, signal.SIGUSR2)
        server.wait_for_successor("ingest 1", before)
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        server.assert_nobody_left()
    finally:
        server.end()
        os.close(reader)


def is_served(server: Server) -> bool:
    try:
        return server.get("/ready").status == 200
    except OSError:
        return False
