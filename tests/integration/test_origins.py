"""Browsers: pages that may write, and pages that may not; by the headers that browsers send, and by a real one."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.support.http import Client, Response, pack
from tests.support.server import Server
from tests.support.tokens import create
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})
LINE = b"cpu usage=0.5"
APP = "https://app.example"
CLEANUP = "/api/wal/cleanup"
TAKEN = "Authorization, Content-Encoding, Content-Type, Idempotency-Key, X-Api-Key, X-Arc-Database, *"
EXPOSED = (
    "Date, Idempotency-Replayed, Retry-After, X-Influxdb-Build, X-Influxdb-Error, X-Influxdb-Version, X-Request-Id"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the settings as they are: no page of another site may do anything."""
    with Server(tmp_path_factory.mktemp("closed"), server_workers=1) as server:
        yield server
        server.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server to which pages of two origins may write, and that has a name."""
    with Server(
        tmp_path_factory.mktemp("shared"),
        server_workers=1,
        server_cors_origins=f"{APP}, HTTPS://Other.example:443 http://localhost:3000",
        server_allowed_hosts="ingest.example",
    ) as server:
        yield server
        server.stop()


def host(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


# Who may not


FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin, none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": APP},
    {"Origin": APP},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://localhost:PORT"},
    {"Origin": "http://127.0.0.1:PORT.evil.example"},
    {"Origin": "http://evil.example:PORT", "Host": "evil.example:PORT"},
    {"Origin": "http://[::1]:PORT"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", [CLEANUP, "/api/v1/wal/cleanup", V2, "/write", "/api/v2/write"])
def test_a_page_of_another_site_changes_nothing(server: Server, path: str, headers: dict[str, str]) -> None:
    sent = {"Host": host(server), **{name: value.replace("PORT", str(server.port)) for name, value in headers.items()}}
    with server.client() as client:
        for _ in range(3):  # a head that is refused is not learned
            response = client.request("POST", path, BODY, sent)
            assert response.status == 403
            assert response.json()["code"] in ("cross_site", "forbidden")
            assert "access-control-allow-origin" not in response.headers


OWN: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:PORT"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://127.0.0.1:PORT"},
    {"Origin": "HTTP://LOCALHOST:PORT", "Host": "localhost:PORT"},
    {"Origin": "http://app.localhost:PORT", "Host": "app.localhost:PORT"},
    {"Origin": "https://10.1.2.3", "Host": "10.1.2.3:443"},
    {"Origin": "http://[fe80::1]", "Host": "[fe80::1]"},
]


@pytest.mark.parametrize("headers", OWN, ids=str)
@pytest.mark.parametrize("path", [CLEANUP, V2])
def test_programs_and_pages_of_the_server_itself_are_served(server: Server, path: str, headers: dict[str, str]) -> None:
    sent = {"Host": host(server), **{name: value.replace("PORT", str(server.port)) for name, value in headers.items()}}
    with server.client() as client:
        for _ in range(3):
            assert client.request("POST", path, BODY, sent).status == (200 if path == CLEANUP else 202)


def test_an_operation_by_an_unknown_name_says_what_to_set(server: Server, shared: Server) -> None:
    """An operation by a name that is not known is refused and says what to set."""
    with server.client() as client:
        response = client.request("POST", CLEANUP, headers={"Host": "ingest.example"})
        assert (response.status, response.json()["code"]) == (403, "cross_site")
        assert "server.allowed_hosts" in response.reason
        assert client.request("POST", V2, BODY, {"Host": "ingest.example"}).status == 202  # of a program
        assert client.request("GET", "/api/wal/files", headers={"Host": "ingest.example"}).status == 200
    with shared.client() as client:
        for name in ("ingest.example", "Ingest.Example:8000", "ingest.example."):
            assert client.request("POST", CLEANUP, headers={"Host": name}).status == 200


def test_a_token_counts_unless_browsers_add_it_by_themselves(tmp_path: Path) -> None:
    """A token is as good as a known name unless browsers add it by themselves."""
    token = create(tmp_path, "--scope", "admin,write")
    basic = base64.b64encode(f"user:{token}".encode()).decode()
    named = {"Host": "ingest.example", "Origin": "http://ingest.example"}
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server, server.client() as client:
        for path, fine in ((CLEANUP, 200), (V2, 202)):
            for _ in range(3):
                bearer = {"Authorization": f"Bearer {token}"}
                assert client.request("POST", path, BODY, named | bearer).status == fine
                assert client.request("POST", f"{path}?p={token}", BODY, named).status == fine
                assert client.request("POST", path, BODY, named | {"Authorization": f"Basic {basic}"}).status == 403
                assert client.request("POST", path, BODY, bearer | {"Sec-Fetch-Site": "cross-site"}).status == 403
                assert client.request("POST", path, BODY, {"Sec-Fetch-Site": "cross-site"}).status == 401
        server.stop()


def test_refusals_are_counted(server: Server) -> None:
    assert server.post(CLEANUP, headers={"Origin": APP}).status == 403

    def counted() -> bool:
        line = 'arcpipe_refused_requests_total{reason="cross_site"} '
        text = server.get("/metrics").body.decode()
        return float(text.partition(line)[2].partition("\n")[0] or 0) > 0

    wait_until(counted, "the refusal to be counted")


def test_nothing_is_said_to_browsers_unless_a_setting_names_them(server: Server) -> None:
    with server.client() as client:
        asked = {"Origin": APP, "Access-Control-Request-Method": "POST"}
        refused = client.request("OPTIONS", "/write", headers=asked)
        assert (refused.status, refused.headers["allow"]) == (405, "POST")
        for response in (refused, client.request("GET", "/ping", headers={"Origin": APP})):
            assert not [name for name in response.headers if name.startswith("access-control") or name == "vary"]


# Who may


def preflight(client: Client, path: str, origin: str, **more: str) -> Response:
    return client.request(
        "OPTIONS",
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-arc-database",
            **more,
        },
    )


@pytest.mark.parametrize("origin", [APP, "https://other.example", "http://localhost:3000"])
@pytest.mark.parametrize("path", [V2, "/write", "/api/v2/write", "/api/v3/write_lp", "/query", "/ping"])
def test_a_preflight_of_an_origin_that_is_named_is_answered(shared: Server, origin: str, path: str) -> None:
    with shared.client() as client:
        response = preflight(client, path, origin)
        methods = {V2: "OPTIONS, POST", "/query": "GET, HEAD, OPTIONS, POST", "/ping": "GET, HEAD, OPTIONS"}
        date = response.headers.pop("date")
        assert (response.status, response.body, bool(date)) == (204, b"", True)
        assert response.headers == {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": methods.get(path, "OPTIONS, POST"),
            "access-control-allow-headers": TAKEN,
            "access-control-max-age": "600",
            "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
            "allow": methods.get(path, "OPTIONS, POST"),
        }


def test_a_preflight_to_a_private_network_is_answered(shared: Server) -> None:
    with shared.client() as client:
        response = preflight(client, V2, APP, **{"Access-Control-Request-Private-Network": "true"})
        assert response.headers["access-control-allow-private-network"] == "true"


def test_a_preflight_of_another_origin_is_refused(shared: Server) -> None:
    with shared.client() as client:
        for origin in ("https://evil.example", "null", "https://app.example.evil.example", "http://app.example", "*"):
            response = preflight(client, V2, origin)
            assert (response.status, response.json()["code"]) == (403, "cross_site")
            assert "access-control-allow-origin" not in response.headers
            assert response.headers["vary"] == "Origin"
        assert preflight(client, CLEANUP, APP).status == 405
        plain = client.request("OPTIONS", "/write")
        assert (plain.status, plain.headers["allow"]) == (204, "OPTIONS, POST")


def test_answers_tell_an_origin_that_is_named_that_its_page_may_read_them(shared: Server) -> None:
    with shared.client() as client:
        for _ in range(4):  # heads that come again are known
            written = client.request("POST", V2, BODY, {"Origin": APP, "Sec-Fetch-Site": "cross-site"})
            bad = client.request("POST", "/write", b"bad", {"Origin": APP})
            missing = client.request("GET", V2, headers={"Origin": APP})
            assert [response.status for response in (written, bad, missing)] == [202, 400, 405]
            for response in (written, bad, missing):
                assert response.headers["access-control-allow-origin"] == APP
                assert response.headers["access-control-expose-headers"] == EXPOSED
                assert response.headers["vary"] == "Origin"
            without = client.request("POST", V2, BODY)
            assert "access-control-allow-origin" not in without.headers
        assert client.request("GET", "/ping").headers["vary"] == "Origin"
        assert client.request("POST", V2, BODY, {"Origin": "https://evil.example"}).status == 403
        assert client.request("POST", CLEANUP, headers={"Origin": APP}).status == 403
        assert "access-control-allow-origin" not in client.request("GET", "/metrics", headers={"Origin": APP}).headers


def test_refusals_by_the_head_can_be_read_by_the_page(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, server_cors_origins="*", wal_min_free_mb=1 << 29) as server:
        with server.client() as client:
            response = client.request("POST", V2, BODY, {"Origin": APP})
            assert (response.status, response.headers["access-control-allow-origin"]) == (507, "*")
            assert "vary" not in response.headers
        server.stop()


# A browser


class Site:
    """A web server of another origin with one empty page."""

    def __init__(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


WRITE = """async ([url, headers, mode]) => {
    try {
        const answer = await fetch(url, {method: "POST", headers, mode, body: "cpu,host=browser usage=0.5"});
        return [answer.status, answer.headers.get("x-influxdb-version"), answer.headers.get("x-influxdb-error")];
    } catch (error) {
        return String(error);
    }
}"""
WITH_TOKEN = {"Authorization": "Bearer something", "x-arc-database": "pages"}


def test_a_page_of_a_named_origin_writes_and_reads_the_answer(tmp_path: Path, page: Page) -> None:
    """A page of an origin that is named writes by fetch and reads the answer."""
    with Site() as site, Server(tmp_path, server_workers=1, server_cors_origins=site.url) as server:
        page.goto(site.url)
        assert page.evaluate(WRITE, [f"{server.url}/write?db=pages", {}, "cors"]) == [204, "1.8.10", None]
        assert page.evaluate(WRITE, [f"{server.url}/write", WITH_TOKEN, "cors"]) == [204, "1.8.10", None]
        status, version, error = page.evaluate(WRITE, [f"{server.url}/write?precision=weeks", WITH_TOKEN, "cors"])
        assert (status, version) == (400, "1.8.10")
        assert "'precision': 'weeks' is not one of" in error
        server.wait_for_rows(2, "pages")
        server.stop()


@pytest.mark.parametrize("mode", ["cors", "no-cors"])
@pytest.mark.parametrize("headers", [{}, WITH_TOKEN], ids=["simple", "preflight"])
def test_a_page_of_another_origin_can_neither_write_nor_clean_up(
    tmp_path: Path, page: Page, mode: str, headers: dict[str, str]
) -> None:
    with Site() as site, Server(tmp_path, server_workers=1) as server:
        page.goto(site.url)
        for path in ("/write?db=pages", f"{CLEANUP}?max_age_hours=0"):
            answer = page.evaluate(WRITE, [server.url + path, headers, mode])
            assert answer in ("TypeError: Failed to fetch", [0, None, None])
        page.goto(f"{server.url}/nothing")  # a page of the server itself may
        assert page.evaluate(WRITE, [f"{server.url}/write?db=own", {}, "cors"])[0] == 204
        assert page.evaluate(WRITE, [f"{server.url}{CLEANUP}", {}, "cors"])[0] == 200
        server.wait_for_rows(1, "own")
        server.stop()
        assert not list(server.lake.glob("pages/**/*.parquet"))
        assert "cleanup asked for by a client: removed 0" in server.log
        assert server.log.count("cleanup asked for by a client") == 1
