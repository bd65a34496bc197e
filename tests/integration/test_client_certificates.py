"""Certificates of clients (mTLS) on a real server: who may connect, and what the owner of one may do."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import preloaded
from tests.support.certificates import needs_openssl
from tests.support.client_certificates import is_resumed, make_authority, mutual, showing
from tests.support.http import Client, Response, pack
from tests.support.program import environment
from tests.support.server import Server, serve_and_fail
from tests.support.tokens import create

pytestmark = needs_openssl

V2 = "/write/v2/msgpack"
BODY = pack({"m": "m", "columns": {"n": [1]}})


def post(
    server: Server, tls: ssl.SSLContext, headers: dict[str, str] | None = None, path: str = V2, body: bytes = BODY
) -> Response:
    with Client(server.url, tls=tls) as client:
        return client.request("POST", path, body, headers)


def assert_refused(server: Server, tls: ssl.SSLContext) -> None:
    """No request gets through: the handshake fails, or with TLS 1.3 what follows it."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        post(server, tls)


@pytest.fixture(scope="module")
def optional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("optional")
    server = mutual(directory, server_tls_client_auth="optional", auth_enabled=True)
    create(directory, "--scope", "write", "--database", "hall", "--certificate", "CN:hall-3")
    create(directory, "--scope", "read", "--certificate", "URI:spiffe://example/telegraf")
    (directory / "token").write_text(create(directory, "--scope", "write"))
    with server:
        yield server
        assert "Traceback" not in server.log
        assert "[ERROR]" not in server.log


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_a_certificate_of_the_authority_gets_in_where_one_is_required(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    with mutual(tmp_path) as server:
        assert post(server, showing(tmp_path, "writer", version)).status == 202
        assert post(server, showing(tmp_path, "unknown", version)).status == 202  # nobody is asked for a token
        assert_refused(server, showing(tmp_path, "stranger", version))
        assert_refused(server, showing(tmp_path, "", version))
        server.wait_for_rows(2)
        server.stop()


def test_the_owner_of_a_certificate_may_do_what_its_token_allows(optional: Server) -> None:
    tls = showing(optional.directory, "writer")
    with Client(optional.url, tls=tls) as client:
        for _ in range(3):
            assert client.request("POST", V2, BODY, {"x-arc-database": "hall"}).status == 202
        refused = client.request("POST", V2, BODY, {"x-arc-database": "other"})
        assert (refused.status, refused.json()["code"]) == (403, "forbidden")
        assert client.request("GET", "/metrics").status == 403
        assert client.request("GET", "/health").status == 200


def test_the_alternative_names_come_before_the_common_name(optional: Server) -> None:
    with Client(optional.url, tls=showing(optional.directory, "workload")) as client:
        assert client.request("GET", "/metrics").status == 200
        assert client.request("POST", V2, BODY, {"x-arc-database": "hall"}).status == 403


def test_without_a_certificate_of_a_token_a_token_has_to_be_sent(optional: Server) -> None:
    """Without a certificate or with one that no token is for a token has to be sent."""
    sent = {"Authorization": "Bearer " + (optional.directory / "token").read_text()}
    for stem, reason in (("", "a token is needed"), ("unknown", "no token is for the client certificate")):
        tls = showing(optional.directory, stem)
        refused = post(optional, tls)
        assert refused.status == 401
        assert reason in refused.reason
        assert post(optional, tls, sent).status == 202


def test_a_token_that_is_sent_counts_more_than_the_certificate(optional: Server) -> None:
    tls = showing(optional.directory, "writer")
    refused = post(optional, tls, {"Authorization": "Bearer arc_wrong", "x-arc-database": "hall"})
    assert refused.status == 401
    sent = {"x-api-key": (optional.directory / "token").read_text(), "x-arc-database": "anything"}
    assert post(optional, tls, sent).status == 202


def test_the_id_of_a_certificate_s_token_opens_nothing(optional: Server) -> None:
    tokens = (optional.directory / "tokens.toml").read_text()
    number = tokens.split('id = "')[1].split('"')[0]
    for secret in ("", "0" * 43):
        sent = {"Authorization": f"Bearer arc_{number}_{secret}"}
        assert post(optional, showing(optional.directory), sent).status == 401


def test_a_stranger_s_certificate_always_ends_the_connection(optional: Server) -> None:
    """A stranger's certificate ends the connection even where none is needed."""
    assert_refused(optional, showing(optional.directory, "stranger"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_writes_with_a_certificate(optional: Server) -> None:
    done = subprocess.run(
        [
            *("curl", "-sS", "-w", "%{http_code}", "--cacert", "server-ca.pem", "--cert", "writer.pem"),
            *("--key", "writer.key", "--resolve", f"localhost:{optional.port}:127.0.0.1", "--data-binary", "m n=1"),
            f"https://localhost:{optional.port}/write?db=hall",
        ],
        cwd=optional.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "204"


def test_a_revoked_token_ends_the_right_at_once_on_open_connections_too(tmp_path: Path) -> None:
    number = create(tmp_path, "--scope", "write", "--certificate", "CN:hall-3")
    server = mutual(tmp_path, auth_enabled=True)
    with server, server.client() as client:
        assert client.request("POST", V2, BODY).status == 202
        preloaded.run("token", "revoke", number, directory=tmp_path, environ=environment(), check=True)
        server.reload()
        refused = client.request("POST", V2, BODY)
        assert refused.status == 401
        assert "has expired or was revoked" in refused.reason
        server.stop()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_reload_takes_other_authorities_for_old_sessions_too(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Other authorities are taken at a reload and no session goes around them."""
    with mutual(tmp_path) as server:
        tls = showing(tmp_path, "writer", version)
        with Client(server.url, tls=tls) as client:
            assert client.request("POST", V2, BODY).status == 202
            assert isinstance(client.socket, ssl.SSLSocket)
            session = client.socket.session
        assert is_resumed(server, tls, session)
        # One more authority breaks nobody's connection: the certificate is only asked for again.
        both = (tmp_path / "clients.pem").read_text() + (tmp_path / "strangers.pem").read_text()
        (tmp_path / "clients.pem").write_text(both)
        server.reload()
        assert not is_resumed(server, tls, session)
        shutil.copy(tmp_path / "strangers.pem", tmp_path / "clients.pem")
        server.reload()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            is_resumed(server, tls, session)
        assert_refused(server, showing(tmp_path, "writer", version))
        assert post(server, showing(tmp_path, "stranger", version)).status == 202
        server.stop()


def test_bad_authorities_are_refused_at_reload_and_the_former_ones_stay(tmp_path: Path) -> None:
    with mutual(tmp_path) as server:
        (tmp_path / "clients.pem").write_text("nothing")
        server.reload()
        assert "server.tls_client_ca: there is no PEM certificate in clients.pem" in server.log
        assert post(server, showing(tmp_path, "writer")).status == 202
        assert_refused(server, showing(tmp_path, "stranger"))
        server.stop()


def test_authorities_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    make_authority(tmp_path, "cert")
    settings: dict[str, object] = {"server_port": 0, "server_tls_cert": "cert.pem", "server_tls_key": "cert.key"}
    broken = "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"
    for content, reason in (("x", "there is no PEM certificate in ca.pem"), (broken, "ca.pem: "), (None, "No such")):
        if content is None:
            (tmp_path / "ca.pem").unlink()
        else:
            (tmp_path / "ca.pem").write_text(content)
        done = serve_and_fail(tmp_path, **settings, server_tls_client_ca="ca.pem")
        assert done.returncode == 1
        assert "server.tls_client_ca: " in done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


def test_a_status_is_asked_where_no_certificate_is_wanted(tmp_path: Path) -> None:
    listeners = json.dumps([{"address": f"unix:{tmp_path}/ops.sock", "paths": "operations"}])
    with mutual(tmp_path, server_listeners=listeners) as server:
        done = preloaded.run("status", "--json", directory=tmp_path, environ=environment(**server.settings))
        assert json.loads(done.stdout)["instance"]["wal_dir"] == str(server.wal), done.stderr
        server.stop()


def test_a_certificate_counts_behind_a_proxy_header_too(tmp_path: Path) -> None:
    create(tmp_path, "--scope", "write", "--certificate", "CN:hall-3")
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n"
    settings = {"server_proxy_protocol": True, "server_trusted_proxies": "127.0.0.1"}
    with mutual(tmp_path, auth_enabled=True, **settings) as server:
        for stem, status in (("writer", 202), ("unknown", 401)):
            with Client(server.url, tls=showing(tmp_path, stem), preamble=header) as client:
                assert client.request("POST", V2, BODY).status == status
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Client(server.url, tls=showing(tmp_path), preamble=header).request("POST", V2, BODY)
        server.stop()
