"""The PROXY protocol and forwarded addresses behind a real HAProxy, and on a real server."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.careful_load import CarefulLoad
from tests.support.certificates import needs_openssl
from tests.support.http import Client, pack
from tests.support.lake import lake_rows
from tests.support.server import Server
from tests.support.tls import make_certificate, trusting
from tests.support.waiting import wait_until
from tests.support.whose import Whose, ask

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy here (apt-get install haproxy)")

V2 = "/write/v2/msgpack"
BODY = pack({"m": "m", "columns": {"n": [1]}})
HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n"

_LIBC = ctypes.CDLL(None)

CONFIG = """
global
    maxconn 400
defaults
    mode {mode}
    log stderr format raw local0 info
    option tcplog
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    retries 3
    {options}
frontend front
    bind fd@{fd}
    default_backend back
backend back
    server one {server}
"""


@contextlib.contextmanager
def haproxy(directory: Path, server: str, mode: str = "http", options: str = "") -> Iterator[str]:
    """A HAProxy with one server; its address as host:port."""
    with socket.socket() as listener, (directory / "haproxy.log").open("w+") as log:
        listener.bind(("127.0.0.1", 0))
        config = directory / "haproxy.cfg"
        config.write_text(CONFIG.format(mode=mode, options=options, fd=listener.fileno(), server=server))
        process = subprocess.Popen(
            [str(HAPROXY), "-db", "-f", config],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: _LIBC.prctl(1, signal.SIGKILL, 0, 0, 0),  # PR_SET_PDEATHSIG
        )
        try:
            port = listener.getsockname()[1]
            wait_until(lambda: is_open(port) and (mode == "tcp" or reaches_server(port)), "the proxy")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()
            log.seek(0)
            print(log.read())


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def reaches_server(port: int) -> bool:
    """Whether a request gets beyond the proxy, which says 503 itself until its own start is over."""
    with Client(f"http://127.0.0.1:{port}") as client:
        return client.request("GET", "/ping").headers.get("content-type") != "text/html"


def client_of(address: str, source: str, tls: ssl.SSLContext | None = None) -> Client:
    """A client that comes from an address of its own."""
    client = Client(f"http://{address}")
    client.socket.close()
    host, _, port = address.partition(":")
    client.socket = socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))
    if tls is not None:
        client.socket = tls.wrap_socket(client.socket, server_hostname="127.0.0.1")
    return client


# Who the client is


@needs_haproxy
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
@pytest.mark.parametrize("is_unix", [False, True])
def test_haproxy_tells_the_client(tmp_path: Path, option: str, is_unix: bool) -> None:
    with Whose(tmp_path) as server:
        url = server.listen(server.trust("unix" if is_unix else "127.0.0.1"), is_unix=is_unix)
        backend = url.replace("unix:", "unix@") if is_unix else url.removeprefix("http://")
        with haproxy(tmp_path, f"{backend} {option}") as address:
            for source in ("127.0.0.2", "127.0.0.3"):
                with client_of(address, source) as client:
                    for _ in range(3):
                        assert ask(client) == [source, source]


@needs_haproxy
def test_haproxy_s_header_of_each_request_tells_the_client(tmp_path: Path) -> None:
    """Over connections to the server that are shared by clients, with a client that invents a header of its own."""
    with Whose(tmp_path) as server:
        url = server.listen(server.trust("127.0.0.1"), has_header=False)
        options = "option forwardfor\n    http-reuse always"
        with haproxy(tmp_path, url.removeprefix("http://"), options=options) as address:
            for source in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
                with client_of(address, source) as client:
                    assert ask(client, {"X-Forwarded-For": "203.0.113.9"}) == ["127.0.0.1", source]


# A real server


def proxied(directory: Path, **settings: object) -> Server:
    return Server(
        directory, server_proxy_protocol=True, server_trusted_proxies="127.0.0.0/8", server_workers=1, **settings
    )


def test_only_connections_with_a_header_of_a_trusted_proxy_are_served(tmp_path: Path) -> None:
    with proxied(tmp_path, server_header_timeout_seconds=1) as server:
        with Client(server.url, preamble=HEADER) as client:
            for _ in range(3):
                assert client.request("POST", V2, BODY).status == 202
        for preamble in (b"", b"PROXY TCP4 bad\r\n"):
            with pytest.raises(ConnectionError):
                Client(server.url, preamble=preamble).request("POST", V2, BODY)
        with Client(server.url) as silent:
            silent.socket.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                silent.assert_closed()
        assert "for their PROXY header; the last one, of 127.0.0.1" in server.log
        server.wait_for_rows(3)
        server.stop()


def test_a_refused_connection_is_counted(tmp_path: Path) -> None:
    with Server(
        tmp_path,
        server_workers=1,
        server_trusted_proxies="10.0.0.0/8",
        server_listeners=json.dumps([{"address": "127.0.0.1:0", "proxy_protocol": True}]),
    ) as server:
        main, listener = server.urls
        with pytest.raises(ConnectionError):
            Client(listener, preamble=HEADER).request("POST", V2, BODY)
        assert "of 127.0.0.1: it is not among server.trusted_proxies" in server.log
        line = 'arcpipe_refused_requests_total{reason="proxy_protocol"} 1.0'

        def metrics() -> str:
            with Client(main) as client:
                return client.request("GET", "/metrics").body.decode()

        wait_until(lambda: line in metrics(), "the refusal to be counted")
        server.stop()


@needs_haproxy
@needs_openssl
def test_tls_goes_through_haproxy_to_the_server(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    tls = trusting(tmp_path)
    with proxied(tmp_path, server_tls_cert="cert.pem", server_tls_key="key.pem") as server:
        with haproxy(tmp_path, f"127.0.0.1:{server.port} send-proxy-v2", mode="tcp") as address:
            for _ in range(5):
                with client_of(address, "127.0.0.2", tls) as client:
                    for _ in range(3):
                        assert client.request("POST", V2, BODY).status == 202
        server.wait_for_rows(15)
        # A new certificate is shown after the header, too.
        before = server.log.count("supervisor: reloaded")
        make_certificate(tmp_path)
        newer = trusting(tmp_path)
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: server.log.count("supervisor: reloaded") > before, "the reload")
        with Client(server.url, preamble=HEADER, tls=newer) as client:
            assert client.request("POST", V2, BODY).status == 202
        server.stop()
        assert "returning true" not in server.log


@needs_haproxy
def test_an_upgrade_behind_haproxy_under_load_fails_no_write(tmp_path: Path) -> None:
    options = "option httpchk GET /ready\n    http-reuse safe"
    backend = "send-proxy-v2 check check-send-proxy inter 1s"
    with proxied(tmp_path) as server:
        with haproxy(tmp_path, f"127.0.0.1:{server.port} {backend}", options=options) as address:
            with CarefulLoad(f"http://{address}") as load:
                load.wait_for(100)
                before = server.log.count("supervisor: serving on")
                os.kill(server.pid, signal.SIGUSR2)
                wait_until(lambda: server.log.count("supervisor: serving on") > before, "the new version")
                load.wait_for(100)
                load.stop()
            assert load.failures == []
        server.stop()
        found = [row["n"] for row in lake_rows(server.lake)]
        assert sorted(found) == sorted(load.acknowledged)
        assert "for their PROXY header" not in server.log
