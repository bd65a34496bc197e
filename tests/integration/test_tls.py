"""HTTPS on a real server: what it offers, what it refuses, and what stays true of HTTP underneath."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import needs_openssl
from tests.support.http import Client, pack, request_bytes
from tests.support.server import Server, serve_and_fail
from tests.support.tls import EC, RSA, make_certificate, openssl, tls_server, trusting
from tests.support.tokens import arcpipe

pytestmark = needs_openssl

V2 = "/write/v2/msgpack"
BODY = pack({"m": "m", "columns": {"n": [1]}})


def name_at(server: Server, tls: ssl.SSLContext | None = None) -> str:
    """The common name in the certificate that a new connection is shown."""
    anything = tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anything.check_hostname, anything.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", server.port)) as plain, anything.wrap_socket(plain) as connection:
        shown = connection.getpeercert(binary_form=True)
        assert shown is not None
    text = openssl("x509", "-noout", "-subject", cwd=server.directory, stdin=ssl.DER_cert_to_PEM_cert(shown))
    return re.sub(r"subject=CN ?= ?", "", text).strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("tls")
    make_certificate(directory)
    with tls_server(directory, server_workers=1, server_header_timeout_seconds=1) as server:
        yield server
        assert "Traceback" not in server.log
        assert "[ERROR]" not in server.log


# What is offered


def test_records_are_taken_and_shipped_over_https(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    with tls_server(tmp_path) as server:
        assert server.url.startswith("https://")
        for _ in range(8):
            server.write({"m": "m", "columns": {"n": [1]}})
        server.wait_for_rows(8)
        server.stop()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken_with_forward_secrecy(server: Server, version: ssl.TLSVersion) -> None:
    tls = trusting(server.directory)
    tls.minimum_version = tls.maximum_version = version
    tls.set_alpn_protocols(["h2", "http/1.1"])
    with Client(server.url, tls=tls) as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        assert client.request("GET", "/health").status == 200
        cipher = client.socket.cipher()
        assert cipher is not None
        assert cipher[0].startswith(("TLS_", "ECDHE-"))
        assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
        assert client.socket.compression() is None
        assert client.socket.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    "options",
    [
        ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "AES128-SHA256:AES256-GCM-SHA384"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"],
    ],
    ids=["TLS 1.1", "TLS 1.0", "no forward secrecy", "CBC"],
)
def test_what_is_old_or_weak_is_refused(server: Server, options: list[str]) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", *options],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "Cipher is (NONE)" in done.stdout


def test_openssl_s_client_is_refused_a_renegotiation(server: Server) -> None:
    """Openssl's client accepts the certificate and is refused a renegotiation."""
    certificate = str(server.directory / "cert.pem")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile", certificate, "-ign_eof"]
    request = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    done = subprocess.run(
        [*command, "-verify_return_error"], input=request, capture_output=True, text=True, timeout=60, check=True
    )
    assert "Verify return code: 0 (ok)" in done.stdout
    assert "HTTP/1.1 200 OK" in done.stdout
    # A line that begins with R asks for a renegotiation, which only TLS 1.2 has.
    asked = subprocess.run(
        [*command[:-1], "-tls1_2"], input="R\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert "RENEGOTIATING" in asked.stdout + asked.stderr
    assert "no renegotiation" in asked.stderr


def test_curl_accepts_the_certificate_and_refuses_another(server: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    certificate = str(server.directory / "cert.pem")
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{ssl_verify_result}"]
    url = f"https://localhost:{server.port}/write"
    resolved = ["--resolve", f"localhost:{server.port}:127.0.0.1"]
    done = subprocess.run(
        [*command, *resolved, "--cacert", certificate, "--data-binary", "m n=1", url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "204 0"
    without = subprocess.run([*command, *resolved, url], capture_output=True, text=True, timeout=60, check=False)
    assert without.returncode == 60  # the certificate is not known


def test_a_browser_accepts_the_certificate(server: Server, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium is installed")
    # Chromium trusts what is in its user's NSS store, or this very key.
    key = openssl("x509", "-in", "cert.pem", "-pubkey", "-noout", cwd=server.directory)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "der"], input=key.encode(), capture_output=True, check=True
    ).stdout
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-binary"], input=der, capture_output=True, check=True
    ).stdout
    import base64

    shown = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
            f"--ignore-certificate-errors-spki-list={base64.b64encode(digest).decode()}",
            *("--dump-dom", f"https://localhost:{server.port}/health"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert '"status":"pass"' in shown.stdout.replace(" ", ""), shown.stderr


def test_a_session_is_resumed_at_any_worker(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    with tls_server(tmp_path, server_workers=3) as server:
        tls = trusting(tmp_path)
        with Client(server.url, tls=tls) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            assert client.request("GET", "/health").status == 200  # tickets come after the handshake
            session = client.socket.session
        reused = 0
        for _ in range(12):
            with (
                socket.create_connection(("127.0.0.1", server.port)) as plain,
                tls.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as connection,
            ):
                reused += connection.session_reused is True
        assert reused == 12


# What comes in


def test_plain_http_at_the_tls_port_is_ended_and_not_logged(server: Server) -> None:
    before = len(server.log)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            while plain.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert server.get("/health").status == 200
    assert "ingest 1" not in server.log[before:]  # of other processes there may be lines


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
def test_a_handshake_that_does_not_come_is_ended(server: Server, sent: bytes) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        plain.sendall(sent)
        try:
            assert plain.recv(1) == b""
        except ConnectionResetError:
            pass
        assert 0.9 < time.monotonic() - started < 20


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with server.client() as client:
        client.send(b"".join(request_bytes("POST", V2, BODY) + request_bytes("GET", "/health") for _ in range(200)))
        assert [client.receive().status for _ in range(400)] == [202, 200] * 200


def test_a_large_body_arrives_whole(server: Server) -> None:
    with server.client() as client:
        big = pack({"m": "big", "columns": {"n": [1], "pad": ["x" * (20 << 20)]}})
        assert client.request("POST", V2, big).status == 202
    rows = server.wait_for_rows(1, measurement="big")
    assert len(rows[0]["pad"]) == 20 << 20


def test_a_client_that_does_not_read_is_read_no_further(tmp_path: Path) -> None:
    """A client that does not read its answers is read no further and then served."""
    far_too_many = 500_000
    make_certificate(tmp_path)
    # With the usual patience: a server that has less ends the connection while this client waits.
    with tls_server(tmp_path, server_workers=1) as server, server.client() as client:
        client.socket.settimeout(1.0)
        # The kernel's buffers are not to grow with what lies unread; on the server's side they may, up to some MB.
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            client.socket.setsockopt(socket.SOL_SOCKET, buffer, 64 << 10)
        request = request_bytes("GET", "/health", headers={"Pad": "x" * 500}) * 100
        sent = 0
        try:
            while sent < far_too_many:
                client.send(request)
                sent += 100
        except TimeoutError:
            pass
        assert sent < far_too_many, "the server took everything in"
        # What the last send wrote of its requests is not known; all that were whole are answered.
        client.socket.settimeout(30)
        for _ in range(sent):
            assert client.receive().status == 200


def test_reading_pauses_above_the_bytes_in_flight_and_goes_on(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    with tls_server(tmp_path, server_workers=1, server_max_body_mb=1, server_max_inflight_mb=1) as server:
        body = pack({"m": "m", "columns": {"n": [1], "pad": ["x" * 500_000]}})
        clients = [server.client() for _ in range(8)]
        for client in clients:
            client.send(request_bytes("POST", V2, body) * 2)
        statuses = []
        for client in clients:
            with contextlib.suppress(ConnectionError):  # after a refusal that ends the connection
                statuses += [client.receive().status for _ in range(2)]
            client.socket.close()
        # TLS brings more than it was told to, so some may be refused for want of room.
        assert set(statuses) <= {202, 503}
        assert statuses.count(202) >= 4
        assert server.post(V2, body).status == 202
        server.stop()


def test_a_last_answer_reaches_a_client_that_still_sends(server: Server) -> None:
    """An answer that ends the connection reaches a client that still sends."""
    with server.client() as client:
        client.send(f"POST {V2} HTTP/1.1\r\nHost: x\r\nContent-Length: 500000000\r\n\r\n".encode())
        try:
            for _ in range(100):
                client.send(b"x" * 10_000)
        except (ConnectionError, ssl.SSLError):
            pytest.fail("the connection was reset while the client was sending")
        response = client.receive()
        assert (response.status, response.headers["connection"]) == (413, "close")
        client.assert_closed()


def test_connection_close_is_answered_and_closed_both_ways(server: Server) -> None:
    with server.client() as client:
        assert client.request("POST", V2, BODY, {"Connection": "close"}).status == 202
        client.assert_closed()
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.unwrap()  # the server has said close_notify: raises if the end was a cut


def test_a_client_that_says_close_after_its_write_has_it_committed(tmp_path: Path) -> None:
    """The answer is lost, as TLS here has no half-closed connections; the record is not."""
    make_certificate(tmp_path)
    with tls_server(tmp_path, server_workers=1) as server:
        for _ in range(5):
            with server.client() as client:
                client.send(request_bytes("POST", V2, BODY))
                assert isinstance(client.socket, ssl.SSLSocket)
                try:
                    client.socket.unwrap()
                except (ssl.SSLError, OSError):  # the answer came first
                    pass
        server.wait_for_rows(5)
        server.stop()
        assert "returning true" not in server.log
        assert "SSL connection is closed" not in server.log


def test_idle_and_slow_connections_are_ended(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    with tls_server(
        tmp_path, server_workers=1, server_keep_alive_seconds=1.5, server_header_timeout_seconds=1.5
    ) as server:
        with server.client() as client:
            assert client.request("GET", "/health").status == 200
            client.assert_closed()
        with server.client() as client:
            client.send(b"GET /health HTT")
            assert client.receive().status == 408
            client.assert_closed()
        server.stop()


def test_a_stop_answers_what_is_on_its_way(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    with tls_server(tmp_path, server_workers=1) as server, server.client() as idle, server.client() as arriving:
        assert idle.request("GET", "/health").status == 200
        request = request_bytes("POST", V2, BODY)
        arriving.send(request[:-1])
        assert idle.request("GET", "/health").status == 200
        server.send_signal(signal.SIGTERM)
        idle.assert_closed()
        arriving.send(request[-1:])
        assert arriving.receive().status == 202
        assert server.exit_code() == 0


# Another certificate


def test_new_connections_are_shown_a_new_certificate(tmp_path: Path) -> None:
    """A new certificate is shown to new connections and the old ones go on."""
    make_certificate(tmp_path, "first", RSA)
    with tls_server(tmp_path, server_workers=2) as server:
        clients = [server.client() for _ in range(6)]
        tickets = trusting(tmp_path)
        assert name_at(server, tickets) == "first"
        # Another kind of key: a context that had been given both would show either, as the client likes.
        make_certificate(tmp_path, "second", EC)
        server.reload()
        assert [name_at(server) for _ in range(6)] == ["second"] * 6
        rsa_only = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        rsa_only.maximum_version = ssl.TLSVersion.TLSv1_2
        rsa_only.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
        with pytest.raises(ssl.SSLError):
            name_at(server, rsa_only)
        for client in clients:
            assert client.request("POST", V2, BODY).status == 202
            client.socket.close()
        # Who takes the place of a worker has the new one too.
        server.kill("ingest 1")
        server.kill("ingest 2")
        assert [name_at(server) for _ in range(4)] == ["second"] * 4
        server.tls = trusting(tmp_path)
        server.write({"m": "m", "columns": {"n": [1]}})
        server.stop()


def test_a_bad_certificate_is_refused_at_reload_and_the_former_one_stays(tmp_path: Path) -> None:
    make_certificate(tmp_path, "first")
    make_certificate(tmp_path, "other", stem="other-")
    with tls_server(tmp_path, server_workers=1) as server:
        for break_it, reason in (
            (lambda: shutil.copy(tmp_path / "other-cert.pem", tmp_path / "cert.pem"), "is not the key of the first"),
            (lambda: (tmp_path / "cert.pem").write_text("nothing"), "there is no PEM certificate in cert.pem"),
            (lambda: (tmp_path / "cert.pem").unlink(), "cert.pem cannot be read: No such file"),
        ):
            break_it()
            server.reload()
            line = [line for line in server.log.splitlines() if "[ERROR]" in line][-1]
            assert "supervisor: the certificate is refused, and the former one stays in force: " in line
            assert reason in line
            last = [line for line in server.log.splitlines() if "supervisor: reloaded" in line][-1]
            assert last.endswith("supervisor: reloaded, except for the certificate: the lines above say why")
            assert name_at(server) == "first"
        server.kill("ingest 1")
        assert name_at(server) == "first"
        server.stop()


def test_a_bad_certificate_does_not_keep_a_revoked_token_alive(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    token = arcpipe(tmp_path, "token", "create", "--scope", "write").stdout.strip()
    with tls_server(tmp_path, server_workers=1, auth_enabled=True) as server:
        headers = {"x-api-key": token}
        assert server.post(V2, BODY, headers).status == 202
        arcpipe(tmp_path, "token", "revoke", token)
        (tmp_path / "key.pem").write_text("nothing")
        server.reload()
        assert "the certificate is refused" in server.log
        assert server.post(V2, BODY, headers).status == 401
        server.stop()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("rm cert.pem", "server.tls_cert: cert.pem cannot be read: No such file or directory"),
        ("rm key.pem", "server.tls_key: key.pem cannot be read: No such file or directory"),
        ("echo x > cert.pem", "server.tls_cert: there is no PEM certificate in cert.pem"),
        ("cp cert.pem key.pem", "server.tls_key: there is no PEM private key in key.pem"),
        ("cp other-key.pem key.pem", "server.tls_key: key.pem is not the key of the first certificate in cert.pem"),
        ("cp rsa-key.pem key.pem", "server.tls_key: key.pem is not the key of the first certificate in cert.pem"),
        ("openssl pkey -aes256 -passout pass:x -in other-key.pem -out key.pem", "server.tls_key: key.pem is encrypted"),
        (
            "printf -- '-----BEGIN CERTIFICATE-----\\nxx\\n-----END CERTIFICATE-----\\n' > cert.pem",
            "server.tls_cert, server.tls_key: cert.pem and key.pem: ",
        ),
    ],
)
def test_a_certificate_that_cannot_be_used_stops_the_start_with_the_reason(
    tmp_path: Path, prepare: str, message: str
) -> None:
    make_certificate(tmp_path)
    make_certificate(tmp_path, stem="other-")
    if "rsa" in prepare:
        make_certificate(tmp_path, kind=RSA, stem="rsa-")
    subprocess.run(["sh", "-c", prepare], cwd=tmp_path, check=True, capture_output=True)
    done = serve_and_fail(tmp_path, server_port=0, server_tls_cert="cert.pem", server_tls_key="key.pem")
    assert done.returncode == 1
    assert f"arcpipe: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_key_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    (tmp_path / "key.pem").chmod(0o644)
    with tls_server(tmp_path, server_workers=1) as server:
        assert "key.pem (server.tls_key) can be read by others: run `chmod 600 key.pem`" in server.log
        server.stop()
