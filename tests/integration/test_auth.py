"""Who may enter: tokens in every place where a client may put them, their rights, and their end, on a real server."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support import preloaded
from tests.support.http import Response, pack, request_bytes
from tests.support.program import COMMAND, ROOT, environment
from tests.support.server import Server, serve_and_fail
from tests.support.tokens import arcpipe, bearer, create
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
# Health checks of InfluxDB's clients, of balancers and of Prometheus's tools: they tell the version and no more.
PROBES = {"/health", "/ready", "/ping", "/-/healthy", "/-/ready", "/api/v1/status/buildinfo"}
LINES = "/api/v2/write?org=o&bucket="
BODY = pack({"m": "m", "columns": {"n": [1]}})
MARKER = "S3cretS3cretS3cret"  # stands where a secret would, and is looked for wherever anything is put out


class Guarded:
    """A server that asks for tokens, and tokens of all kinds."""

    def __init__(self, directory: Path) -> None:
        self.write = create(directory, "--scope", "write")
        self.read = create(directory, "--scope", "read")
        self.admin = create(directory, "--scope", "admin")
        self.production = create(directory, "--scope", "write", "--database", "production,staging")
        self.server = Server(directory, auth_enabled=True, server_workers=1)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    with guarded.server:
        yield guarded
        assert "Traceback" not in guarded.server.log


def post(server: Server, path: str = V2, headers: dict[str, str] | None = None, body: bytes = BODY) -> Response:
    return server.post(path, body, headers)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


# Where a token may stand


def test_a_token_is_taken_in_every_place_where_clients_put_it(guarded: Guarded) -> None:
    token = guarded.write
    for headers in (
        bearer(token),
        {"Authorization": f"bearer {token}"},
        {"AUTHORIZATION": f"BEARER  {token}"},
        {"Authorization": f"Token {token}"},
        {"Authorization": f"Token anybody:{token}"},  # InfluxDB 1.x through a 2.x client
        basic("anybody", token),
        basic("", token),
        {"x-api-key": token},
        {"X-API-Key": token},
    ):
        for _ in range(2):  # the second time it is known
            assert post(guarded.server, headers=headers).status == 202, headers
    for query in (f"?u=anybody&p={token}", f"?p={token}", f"?db=x&p={quote(token)}&u="):
        for _ in range(2):
            assert post(guarded.server, "/write" + query, body=b"m n=1").status == 204, query


def test_what_is_no_token_is_refused_in_every_place(guarded: Guarded) -> None:
    token = guarded.write
    other = token[:-1] + ("a" if token[-1] != "a" else "b")
    for headers in (
        bearer(other),
        bearer(token[:-1]),
        bearer(token + "x"),
        bearer(token.upper()),
        bearer(f"x:{token}"),
        bearer(""),
        {"Authorization": token},
        {"Authorization": f"Digest {token}"},
        {"Authorization": "Bearer"},
        {"Authorization": ""},
        {"Authorization": f"Bearer {token}, Bearer {token}"},
        {"Authorization": f"Basic {token}"},
        {"Authorization": "Basic ====="},
        basic(token, ""),
        basic(token, "x"),
        {"x-api-key": other},
        {"x-api-key": ""},
        # One that is bad is not mended by one that is good: who would say which of them counts?
        {**bearer(other), "x-api-key": token},
        {"x-api-key": f"x-api-key: {token}"},
    ):
        response = post(guarded.server, headers=headers)
        assert response.status == 401, headers
        assert "not known" in response.reason
    for query in (f"?u={token}", "?p=", f"?u=x&p={other}", f"?q=p={token}"):
        assert post(guarded.server, "/write" + query, body=b"m n=1").status == 401, query
    assert post(guarded.server, f"/write?p={token}&p={token}", body=b"m n=1").status == 400


def test_a_repeated_authorization_header_is_refused(guarded: Guarded) -> None:
    with guarded.server.client() as client:
        line = f"Authorization: Bearer {guarded.write}\r\n"
        client.send(f"POST {V2} HTTP/1.1\r\nHost: x\r\n{line}{line}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        assert client.receive().status in (400, 401)


# Refusals


def test_without_a_token_the_answer_says_how_to_send_one(guarded: Guarded) -> None:
    response = post(guarded.server)
    assert response.status == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="arcpipe", Basic realm="arcpipe"'
    assert response.json() == {
        "error": "a token is needed: send it as 'Authorization: Bearer TOKEN'",
        "code": "unauthorized",
    }
    bad = post(guarded.server, headers=bearer("nonsense"))
    assert bad.headers["www-authenticate"].startswith('Bearer realm="arcpipe", error="invalid_token"')


def test_a_missing_scope_is_named(guarded: Guarded) -> None:
    for token, path, scope in (
        (guarded.read, V2, "write"),
        (guarded.admin, V2, "write"),
        (guarded.read, "/write", "write"),
        (guarded.read, "/api/wal/cleanup", "admin"),
        (guarded.write, "/api/wal/cleanup", "admin"),
    ):
        response = post(guarded.server, path, bearer(token))
        assert response.status == 403
        assert response.json() == {"error": f"this token lacks the scope '{scope}'", "code": "forbidden"}
        assert f'error="insufficient_scope", scope="{scope}"' in response.headers["www-authenticate"]


def test_a_refusal_is_in_the_shape_that_influxdb_2_clients_read(guarded: Guarded) -> None:
    for headers, status, code in (({}, 401, "unauthorized"), (bearer(guarded.read), 403, "forbidden")):
        response = post(guarded.server, "/api/v2/write?bucket=b", headers, b"m n=1")
        answer = response.json()
        assert (response.status, answer["code"], answer["message"]) == (status, code, answer["error"])
        assert "www-authenticate" in response.headers


def test_a_token_for_databases_writes_to_no_other(guarded: Guarded) -> None:
    token = bearer(guarded.production)
    for path, headers, body, answered in (
        (V2, {"x-arc-database": "production"}, BODY, 202),
        (V2 + "?db=staging", {}, BODY, 202),
        ("/write?db=production", {}, b"m n=1", 204),
        (LINES + "production", {}, b"m n=1", 204),
        ("/api/v3/write_lp?db=production", {}, b"m n=1", 204),
    ):
        assert post(guarded.server, path, {**token, **headers}, body).status == answered, path
    for path, headers, body, database in (
        (V2, {}, BODY, "default"),
        (V2, {"x-arc-database": "production2"}, BODY, "production2"),
        (V2 + "?db=Production", {}, BODY, "Production"),
        ("/write", {}, b"m n=1", "default"),
        ("/write?db=other", {}, b"m n=1", "other"),
        (LINES + "other", {}, b"m n=1", "other"),
        ("/api/v3/write_lp?db=other", {}, b"m n=1", "other"),
        ("/api/v1/write/line-protocol", {}, b"m n=1", "default"),
        ("/api/v1/write/msgpack", {}, BODY, "default"),
    ):
        response = post(guarded.server, path, {**token, **headers}, body)
        assert response.status == 403, path
        assert response.json()["error"] == f"this token is not for the database '{database}'"


def test_a_known_database_opens_for_nobody_else(guarded: Guarded) -> None:
    """Where the records of a query go is remembered; who may send them there is not."""
    path = V2 + "?db=remembered"
    assert post(guarded.server, path, bearer(guarded.write)).status == 202
    assert post(guarded.server, path, bearer(guarded.production)).status == 403
    assert post(guarded.server, path, bearer(guarded.write)).status == 202


def test_what_probes_ask_is_open_and_what_reveals_is_not(guarded: Guarded) -> None:
    server = guarded.server
    for path in sorted(PROBES):
        assert server.get(path).status in (200, 204), path
    for path in ("/metrics", "/api/wal/status", "/api/wal/files", "/api/v1/wal/health", "/api/monitoring/buffer"):
        for token, status in ((None, 401), (guarded.write, 403), (guarded.read, 200), (guarded.admin, 200)):
            with server.client() as client:
                assert client.request("GET", path, headers=bearer(token) if token else {}).status == status, path
    assert post(server, "/api/wal/cleanup?max_age_hours=1000", bearer(guarded.admin), b"").status == 200
    assert server.get("/nowhere").status == 404
    assert post(server, "/query?q=CREATE+DATABASE+x", bearer(guarded.write), b"").status == 200
    assert post(server, "/query?q=CREATE+DATABASE+x", {}, b"").status == 401


@pytest.mark.smoke
def test_every_endpoint_but_the_probes_wants_a_token(guarded: Guarded) -> None:
    """Whatever the router offers, now and later: its table is asked for what it takes, path by path."""
    source = "".join(path.read_text() for path in (ROOT / "arcpipe" / "ingest").rglob("*.py"))
    # The page itself shows nothing: it asks /api/v1/status, with the token that its reader gives it.
    paths = set(re.findall(r'"(/[a-z0-9_/.-]*)"', source)) - {"/"} - PROBES
    assert {"/metrics", V2, "/query"} <= paths
    with guarded.server.client() as client:
        for path in sorted(paths):
            for method in ("GET", "POST"):
                assert client.request(method, path).status in (401, 404, 405), (method, path)


# The body of a request without rights


def test_a_body_without_rights_is_not_asked_for(guarded: Guarded) -> None:
    with guarded.server.client() as client:
        client.send(f"POST {V2} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n".encode())
        response = client.receive()
        assert (response.status, response.headers["connection"]) == (401, "close")
        client.assert_closed()


def test_a_large_body_without_rights_is_refused_before_it_is_there(guarded: Guarded) -> None:
    for length in ("Content-Length: 50000000", "Transfer-Encoding: chunked"):
        with guarded.server.client() as client:
            client.send(f"POST {V2} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
            assert client.receive().status == 401


def test_a_connection_goes_on_after_a_refusal(guarded: Guarded) -> None:
    with guarded.server.client() as client:
        for _ in range(3):
            assert client.request("POST", V2, BODY).status == 401
            assert client.request("POST", V2, BODY, bearer(guarded.read)).status == 403
            assert client.request("POST", V2, BODY, bearer(guarded.write)).status == 202


def test_pipelined_requests_are_judged_each_by_its_own_token(guarded: Guarded) -> None:
    good, bad = bearer(guarded.write), bearer(guarded.read)
    with guarded.server.client() as client:
        client.send(b"".join(request_bytes("POST", V2, BODY, headers) for headers in (good, bad, {}, good)))
        assert [client.receive().status for _ in range(4)] == [202, 403, 401, 202]


def test_spellings_that_never_end_do_not_fill_the_memory(guarded: Guarded) -> None:
    """Any user name goes with a token: 5000 of them are more than are remembered."""
    with guarded.server.client() as client:
        for first in range(0, 5000, 50):
            numbers = range(first, first + 50)
            client.send(
                b"".join(request_bytes("POST", V2, BODY, basic(f"user {one}", guarded.write)) for one in numbers)
            )
            assert [client.receive().status for _ in numbers] == [202] * 50


# The end of a token


def test_a_revoked_token_ends_on_connections_that_are_open(tmp_path: Path) -> None:
    kept, lost = create(tmp_path, "--scope", "write"), create(tmp_path, "--scope", "write")
    with Server(tmp_path, auth_enabled=True, server_workers=2) as server:
        clients = [server.client() for _ in range(8)]  # at both workers, most likely
        for client in clients:
            assert client.request("POST", V2, BODY, bearer(lost)).status == 202
        arcpipe(tmp_path, "token", "revoke", lost)
        new = create(tmp_path, "--scope", "write")
        assert clients[0].request("POST", V2, BODY, bearer(new)).status == 401
        server.reload()
        for client in clients:
            refused = client.request("POST", V2, BODY, bearer(lost))
            assert (refused.status, refused.reason) == (401, "the token has expired or was revoked")
            assert client.request("POST", V2, BODY, bearer(kept)).status == 202
            assert client.request("POST", V2, BODY, bearer(new)).status == 202
            client.socket.close()
        # Who has only its id learns nothing of it.
        guess = lost[:13] + "a" * 43
        assert "not known" in server.post(V2, BODY, bearer(guess)).reason
        for dead in (server.kill("ingest 1"), server.kill("ingest 2")):
            assert dead
        assert server.post(V2, BODY, bearer(lost)).status == 401
        assert server.post(V2, BODY, bearer(kept)).status == 202
        server.stop()


def test_a_token_ends_when_its_time_is_over_without_a_reload(tmp_path: Path) -> None:
    token = create(tmp_path, "--scope", "write")
    path = tmp_path / "tokens.toml"
    now = subprocess.run(
        ["date", "-u", "-d", "+6 seconds", "+%Y-%m-%dT%H:%M:%SZ"], capture_output=True, text=True, check=True
    )
    path.write_text(path.read_text() + f"expires = {now.stdout.strip()}\n")
    with Server(tmp_path, auth_enabled=True, server_workers=1) as server, server.client() as client:

        def is_over() -> bool:
            response = client.request("POST", V2, BODY, bearer(token))
            assert response.status in (202, 401)
            return response.status == 401

        wait_until(is_over, "the end of the token")


def test_a_bad_tokens_file_is_refused_at_reload_and_the_former_tokens_stay(tmp_path: Path) -> None:
    token = create(tmp_path, "--scope", "write")
    path = tmp_path / "tokens.toml"
    good = path.read_text()
    with Server(tmp_path, auth_enabled=True, server_workers=2) as server:
        for content, reason in (
            (good[:-30], "not valid TOML|not a tokens file"),
            (good.replace("write", "rite"), "not a tokens file"),
            (None, "there is no tokens file"),
        ):
            if content is None:
                path.unlink()
            else:
                path.write_text(content)
            server.reload()
            line = [line for line in server.log.splitlines() if "[ERROR]" in line][-1]
            assert "supervisor: the tokens file is refused, and the former tokens stay in force: " in line
            assert re.search(reason, line)
            last = [line for line in server.log.splitlines() if "supervisor: reloaded" in line][-1]
            assert last.endswith("supervisor: reloaded, except for the tokens file: the lines above say why")
            assert server.post(V2, BODY, bearer(token)).status == 202
        # A worker that starts meanwhile has the former tokens too, although there is no file any more.
        server.kill("ingest 1")
        server.kill("ingest 2")
        assert server.post(V2, BODY, bearer(token)).status == 202
        assert server.post(V2, BODY).status == 401
        path.write_text(good)
        path.chmod(0o644)
        server.reload()
        assert "can be read by others" in server.log
        server.stop()


def test_the_log_level_changes_at_reload_in_every_process(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[log]\nlevel = "INFO"\n')
    with Server(tmp_path, server_workers=1) as server:
        server.write({"m": "m", "columns": {"n": [1]}})
        server.wait_for_rows(1)
        config.write_text('[log]\nlevel = "ERROR"\n[parquet]\nkeep_nanoseconds = true\n')
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: "changes of parquet.keep_nanoseconds take effect at the next" in server.log, "it")
        shipped = server.log.count("shipped")

        def ships_silently() -> bool:
            nonlocal shipped
            rows = len(server.wait_for_rows(1))
            server.write({"m": "m", "columns": {"n": [1]}})
            server.wait_for_rows(rows + 1)
            before, shipped = shipped, server.log.count("shipped")
            return shipped == before

        wait_until(ships_silently, "the uploader to be silent")
        config.write_text('[log]\nlevel = "LOUD"\n')
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: 'the log level stays as it was: config.toml: log.level = "LOUD"' in server.log, "the error")
        config.write_text("")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: "supervisor: reloaded" in server.log, "a line that ERROR does not show")
        server.stop()
        assert "ingest 1: stopped" in server.log


# Listening


def test_an_address_that_others_reach_wants_auth(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::"):
        done = serve_and_fail(tmp_path, server_host=host, server_port=0)
        assert done.returncode == 2
        assert "auth.allow_anonymous" in done.stderr
    with Server(tmp_path, server_host="0.0.0.0", auth_allow_anonymous=True, server_workers=1) as server:
        server.stop()


def test_a_name_that_stands_for_another_address_than_loopback_is_refused(tmp_path: Path) -> None:
    """The settings let "localhost" pass; what it stands for is known when it is looked up."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare, to have an /etc/hosts of its own")
    (tmp_path / "hosts").write_text("192.0.2.1 localhost\n")
    script = f"mount --bind {tmp_path}/hosts /etc/hosts && exec {' '.join(COMMAND)} serve"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        env=environment(server_host="localhost", server_port=0),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"mounting is not allowed here: {done.stderr}")
    assert done.returncode == 1
    assert "server.host = 'localhost' is 192.0.2.1, and anyone who reaches it could write" in done.stderr


def test_auth_without_a_tokens_file_says_how_to_make_one(tmp_path: Path) -> None:
    checked = preloaded.run("serve", "--check", directory=tmp_path, environ=environment(auth_enabled=True))
    for done in (serve_and_fail(tmp_path, auth_enabled=True, server_port=0), checked):
        assert done.returncode == 1
        assert "there is no tokens file tokens.toml: `arcpipe token create` makes it" in done.stderr
    assert os.listdir(tmp_path) == []


def test_tokens_in_plain_text_beyond_loopback_are_warned_of(tmp_path: Path) -> None:
    create(tmp_path, "--scope", "write")
    with Server(tmp_path, server_host="0.0.0.0", auth_enabled=True, server_workers=1) as server:
        assert "tokens cross the network as plain text" in server.log
        assert server.post(V2, BODY).status == 401
        server.stop()


# Secrets


def test_no_secret_is_put_out_anywhere(tmp_path: Path) -> None:
    token = create(tmp_path, "--scope", "read")  # good, and yet not good for a write
    answers = []
    with Server(
        tmp_path, auth_enabled=True, server_workers=1, log_level="DEBUG", storage_s3_secret_access_key=MARKER,
        storage_s3_access_key_id=MARKER,
    ) as server:  # fmt: skip
        for secret in (MARKER, token, f"arc_23456789_{MARKER:a<43}"):
            for headers in (
                bearer(secret),
                {"Authorization": secret},
                {"Authorization": f"Token u:{secret}"},
                basic("u", secret),
                {"x-api-key": secret},
                {"Cookie": f"session={secret}"},
            ):
                paths = (V2, "/write", "/api/v2/write", "/api/wal/status", "/nowhere")
                answers += [post(server, path, headers) for path in paths]
            for path in ("/write", "/api/v2/write", "/api/v3/write_lp", "/query", "/nowhere", "/metrics", V2):
                for query in ("p={}&u=x", "u={}", "p={}&p={}", "p={}&precision=bad", "p={}&db=b%20d", "p={}&x=%ff"):
                    answers.append(post(server, f"{path}?{query.replace('{}', secret)}", {}))
                    answers.append(post(server, f"{path}?{query.replace('{}', secret)}", bearer(token)))
            with server.client() as client:  # a bad request line, and bad headers
                client.send(f"GET /write?p={secret} HTTP/9.9\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
                answers.append(client.receive())
            with server.client() as client:
                client.send(f"POST {V2}?p={secret} HTTP/1.1\r\nAuthorization: Bearer {secret}\r\nbad\r\n\r\n".encode())
                answers.append(client.receive())
        for path in ("/metrics", "/api/wal/status", "/api/wal/stats", "/api/wal/health", "/api/v1/status"):
            with server.client() as client:
                answers.append(client.request("GET", path, headers=bearer(token)))
        server.reload()
        titles = [process.title for process in server.processes()]
        server.stop()
        shown = arcpipe(tmp_path, "config", "show").stdout + arcpipe(tmp_path, "token", "list").stdout
        everything = [server.log, *titles, shown, *(repr(answer) for answer in answers)]
        assert {answer.status for answer in answers} >= {200, 400, 401, 403, 404}
        for text in everything:
            assert MARKER not in text
            assert token[-43:] not in text
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        assert token[-43:].encode() not in file.read_bytes(), file


def test_refusals_are_counted_and_logged_in_sums(tmp_path: Path) -> None:
    token = create(tmp_path, "--scope", "read")
    with Server(tmp_path, auth_enabled=True, server_workers=1) as server:
        with server.client() as client:
            for _ in range(300):
                assert client.request("POST", V2, BODY).status == 401
        wait_until(lambda: "requests without a valid token" in server.log, "the line")
        assert server.log.count("requests without a valid token") == 1
        with server.client() as client:
            metrics = client.request("GET", "/metrics", headers=bearer(token)).body.decode()
        assert 'status="401"' in metrics
        server.stop()


# Real clients


def test_curl_sends_a_token_in_all_its_ways(guarded: Guarded) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = f"{guarded.server.url}/write"
    for options in (
        ["-H", f"Authorization: Bearer {guarded.write}"],
        ["--oauth2-bearer", guarded.write],
        ["-u", f"anybody:{guarded.write}"],
        ["--anyauth", "-u", f"anybody:{guarded.write}"],
        ["-H", f"x-api-key: {guarded.write}"],
    ):
        done = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "m n=1", *options, url],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == "204", options


def test_a_slow_hash_is_not_needed_for_a_request_to_be_cheap(guarded: Guarded) -> None:
    """Nobody keeps the server busy with bad tokens: a thousand of them take less than a second or two."""
    with guarded.server.client() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for first in range(0, 1000, 50):
            made = [f"arc_23456789_{number:a>43}" for number in range(first, first + 50)]
            client.send(b"".join(request_bytes("POST", V2, BODY, bearer(one)) for one in made))
            assert [client.receive().status for _ in made] == [401] * 50


def test_the_error_of_a_token_is_json_for_every_method(guarded: Guarded) -> None:
    with guarded.server.client() as client:
        for method, path in (("GET", "/metrics"), ("HEAD", "/metrics"), ("POST", V2)):
            response = client.request(method, path)
            assert response.status == 401
            assert response.headers["content-type"] == "application/json"
            if method != "HEAD":
                assert json.loads(response.body)["code"] == "unauthorized"
